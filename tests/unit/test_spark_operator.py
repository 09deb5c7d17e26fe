"""The operator's arguments and its promise, without Spark."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.providers.apache.spark.hooks import spark_submit

from airflow_mlscale import errors
from airflow_mlscale.hooks.spark import DeadlineSparkSubmitHook
from airflow_mlscale.operators.spark import PROMISE_KEY, DeadlineSparkSubmitOperator

START = datetime.now(UTC)


def operator(**arguments: Any) -> DeadlineSparkSubmitOperator:
    given = {"application": "/job.py", "deadline": timedelta(hours=9), **arguments}
    return DeadlineSparkSubmitOperator(task_id="task", **given)


class Store(dict[str, Any]):
    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


def context(store: Store, *, start: datetime = START, max_tries: int = 2) -> dict[str, Any]:
    return {"ti": SimpleNamespace(start_date=start, max_tries=max_tries), "task_state_store": store}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("deadline", 90),
        ("deadline", timedelta(0)),
        ("mode", "fast"),
        ("on_infeasible", "hope"),
        ("min_cores", -1),
        ("max_cores", 0),
        ("allocator", "magic"),
        ("tuning", {"speed": 3}),
    ],
)
def test_a_wrong_argument_breaks_the_dag_at_once(field: str, value: object) -> None:
    with pytest.raises(errors.InvalidInputError) as caught:
        operator(**{field: value})
    assert caught.value.field == field
    assert field in str(caught.value)


def test_settings_of_the_controller_can_be_tuned_within_their_ranges() -> None:
    assert operator(tuning={"aim": 0.8}).settings.aim == 0.8
    with pytest.raises(errors.InvalidInputError, match=r"aim=2: must be a number from 0.5 to 1.0"):
        operator(tuning={"aim": 2})


def test_the_deadline_is_required() -> None:
    with pytest.raises(TypeError, match="deadline"):
        DeadlineSparkSubmitOperator(task_id="task", application="/job.py")


def test_the_deadline_counts_from_the_start_of_the_task() -> None:
    promise = operator(deadline=pendulum.duration(hours=9))._promise(context(Store()))
    assert promise.started_at == START.timestamp()
    assert promise.duration_s == 32400.0


def test_retries_share_the_deadline_and_a_cleared_task_gets_a_new_one() -> None:
    store, later = Store(), START + timedelta(seconds=60)
    first = operator()._promise(context(store))
    assert operator()._promise(context(store, start=later)) == first
    assert set(store) == {PROMISE_KEY}
    # Clearing raises the number of the last try.
    cleared = operator()._promise(context(store, start=later, max_tries=5))
    assert cleared.deadline_at == first.deadline_at + 60


def test_a_deadline_in_the_past_is_refused() -> None:
    with pytest.raises(errors.InvalidInputError, match="in the past"):
        operator(deadline=datetime(2020, 1, 1, tzinfo=UTC))._promise(context(Store()))


def test_templates_are_rendered() -> None:
    found = operator(deadline="{{ seconds }}", profile_key="{{ key }}")
    found.render_template_fields({"seconds": 4500, "key": "k"})
    assert found._promise(context(Store())).duration_s == 4500.0
    assert found.profile_key == "k"


@pytest.mark.parametrize(
    ("connection", "master"),
    [
        ({"conn_type": "mlscale_spark", "host": "127.0.0.1", "port": 7077}, "spark://127.0.0.1:7077"),
        ({"conn_type": "mlscale_spark", "host": "spark://a", "port": 7077}, "spark://a:7077"),
        ({"conn_type": "mlscale_spark", "host": "local[2]"}, "local[2]"),
        ({"conn_type": "spark", "host": "spark://a", "port": 7077}, "spark://a:7077"),
        ({"conn_type": "spark", "host": "local[*]"}, "local[*]"),
        ({"conn_type": "spark", "host": "yarn"}, "yarn"),
    ],
)
def test_both_kinds_of_connection_name_the_master(
    monkeypatch: pytest.MonkeyPatch, connection: dict[str, object], master: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps(connection))
    assert DeadlineSparkSubmitHook(conn_id="c").master == master


def test_kubernetes_is_known_to_our_hooks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps({"conn_type": "spark", "host": "k8s://https://api", "port": 6443}))
    monkeypatch.setattr(spark_submit, "kube_client", None)  # as without the provider cncf.kubernetes
    assert DeadlineSparkSubmitHook(conn_id="c").master == "k8s://https://api:6443"
    with pytest.raises(RuntimeError, match="kubernetes dependencies are not installed"):
        spark_submit.SparkSubmitHook(conn_id="c")


def test_an_unknown_connection_is_not_taken_for_yarn() -> None:
    with pytest.raises(errors.InvalidInputError, match="conn_id='nothing': there is no such connection"):
        DeadlineSparkSubmitHook(conn_id="nothing")


def test_every_argument_of_the_base_operator_reaches_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLSCALE_SPARK", "spark://127.0.0.1:7077")
    hook = operator(
        conf={"spark.x": 1}, jars="a.jar", executor_cores=3, application_args=[1, "two"], verbose=True
    )._get_hook()
    command = hook._build_spark_submit_command("/job.py")
    assert command[-3:] == ["/job.py", "1", "two"]
    assert {"spark.x=1", "a.jar", "--verbose", "--executor-cores"} <= set(command)
    assert command[command.index("--name") + 1].endswith(".task")


def test_the_engine_loads_no_airflow() -> None:
    code = "import sys, airflow_mlscale.spark.main, airflow_mlscale.spark.run; sys.exit('airflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
