"""Every test session has an Airflow home and a home for local services of its own, removed at its end."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis

SESSION = Path(tempfile.mkdtemp(prefix="mlscale-tests-"))

# Airflow reads its configuration when it is first imported: this must come before any test module.
os.environ.update(
    {
        "AIRFLOW_HOME": str(SESSION / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(SESSION / "dags"),
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",
        "MLSCALE_HOME": str(SESSION / "mlscale"),
    }
)

# How long an example takes is the machine's matter.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_unconfigure() -> None:
    shutil.rmtree(SESSION, ignore_errors=True)
