"""The Airflow plugin. Imported by every Airflow component, so it stays light."""

from __future__ import annotations

from airflow.sdk.plugins_manager import AirflowPlugin


class MlscalePlugin(AirflowPlugin):
    """Registers what the Airflow UI shows of this provider."""

    name = "mlscale"
