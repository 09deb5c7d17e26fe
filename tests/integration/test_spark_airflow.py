"""A DAG of decorated functions as Airflow itself runs it: the DAG run's deadline, XComs, links, state, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration import spark_dag

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]

DEADLINE_AT = datetime.now(UTC) + timedelta(minutes=10)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """State, XComs and kept state of each task after one run, and the log."""
    folder = tmp_path_factory.mktemp("run")
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(folder / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(spark_dag.DAGS),
        "AIRFLOW_CONN_MLSCALE_SPARK": json.dumps({"conn_type": "mlscale_spark", "host": "local[2]"}),
        "MLSCALE_HOME": str(folder / "mlscale"),
        "DEADLINE_AT": DEADLINE_AT.isoformat(),
    }
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=env, check=True, capture_output=True)
    command = [sys.executable, "-m", "tests.integration.spark_dag", str(folder / "result.json")]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return json.loads((folder / "result.json").read_text()), done.stdout + done.stderr


def grind(value: int) -> int:
    return sum((value * step) % 7 for step in range(40))


def test_the_function_runs_in_a_driver_and_its_value_is_the_xcom(ran: tuple[dict[str, Any], str]) -> None:
    run, _ = ran
    assert run["good"]["state"] == "success"
    expected = 3 * sum(grind(value) for value in range(200))  # factor=3, in Python workers
    assert run["good"]["xcoms"]["return_value"] == {"total": expected, "rows": 200, "run_id": run["run_id"]}


def test_its_deadline_is_the_dag_runs(ran: tuple[dict[str, Any], str]) -> None:
    run, _ = ran
    # the alert is one minute before the moment that it refers to
    expected = (DEADLINE_AT - timedelta(minutes=1)).timestamp()
    assert run["good"]["state_store"]["mlscale_deadline"]["deadline_at"] == pytest.approx(expected)
    summary = run["good"]["xcoms"]["mlscale_summary"]
    assert summary["started_at"] + summary["deadline_s"] == pytest.approx(expected, abs=0.1)
    assert summary["met"]
    assert run["good"]["state_store"]["mlscale_summary"]["finish_s"] == summary["finish_s"]


def test_its_link_leads_to_the_driver(ran: tuple[dict[str, Any], str]) -> None:
    run, _ = ran
    assert run["good"]["xcoms"]["mlscale_spark_ui"].startswith("http://127.0.0.1:")
    assert run["good"]["xcoms"]["mlscale_spark_master"] == ""  # local[2] has none


def test_a_function_that_fails_fails_as_itself(ran: tuple[dict[str, Any], str]) -> None:
    run, log = ran
    assert run["bad"]["state"] == "failed"
    assert "LookupError: no table in 3 rows" in log
    assert "return_value" not in run["bad"]["xcoms"]


def test_the_log_has_progress_and_stages(ran: tuple[dict[str, Any], str]) -> None:
    _, log = ran
    assert "0 stages done, " in log
    assert "sum at by_deadline.py:" in log
