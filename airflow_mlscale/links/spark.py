"""Links from a task to Spark's own pages."""

from __future__ import annotations

from typing import Any

from airflow.sdk import BaseOperatorLink


class _PushedLink(BaseOperatorLink):
    """A link that the task pushes while it runs, so that it leads somewhere before the task has ended."""

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        """The address that was pushed; when the task ends or defers, Airflow stores what this returns."""
        pages: dict[str, str] | None = getattr(operator, "pages", None)
        if pages is not None:
            return pages.get(self.xcom_key, "")
        from airflow.sdk.execution_time.xcom import XCom  # settles which XCom backend is configured

        return str(XCom.get_value(ti_key=ti_key, key=self.xcom_key) or "")


class SparkUiLink(_PushedLink):
    """The driver's page: jobs, stages, executors; there for as long as the driver is."""

    name = "Spark UI"

    @property
    def xcom_key(self) -> str:
        return "mlscale_spark_ui"


class SparkMasterLink(_PushedLink):
    """The cluster's page: workers and applications, finished ones too."""

    name = "Spark master"

    @property
    def xcom_key(self) -> str:
        return "mlscale_spark_master"
