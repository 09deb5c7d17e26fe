"""Metrics and links of a run, without Spark."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import statsd_logger

from airflow_mlscale.hooks import telemetry
from airflow_mlscale.links.spark import SparkMasterLink, SparkUiLink
from airflow_mlscale.operators import onlookers
from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator
from airflow_mlscale.runtime.journal import Journal
from tests.fakes import federated_task
from tests.fakes.spark_records import record


@pytest.fixture
def statsd() -> Iterator[Callable[[], list[str]]]:
    """Airflow's metrics go to a StatsD server: what it has received."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, pytest.MonkeyPatch.context() as patch:
        server.bind(("127.0.0.1", 0))
        server.settimeout(10)
        patch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        patch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(server.getsockname()[1]))
        patch.setenv("AIRFLOW__METRICS__STATSD_INFLUXDB_ENABLED", "True")
        stats.initialize(factory=statsd_logger.get_statsd_logger, export_legacy_names=True)

        def received() -> list[str]:
            stats.incr("the.end")
            found: list[str] = []
            while not (line := server.recv(4096).decode()).startswith("airflow.the.end"):
                found.append(line)
            return found

        yield received
        stats.initialize(factory=NoStatsLogger, export_legacy_names=True)


def test_a_run_is_seen_in_airflows_metrics(statsd: Callable[[], list[str]]) -> None:
    journal = Journal()
    context = federated_task.context("task")
    with onlookers.looking_on(journal, context, ()) as metrics:
        journal.append(record(20, progress=0.25, guaranteed=1.5, finish_s=88, outlook="at_risk", deadline_s=100))
        journal.append(record(25, progress=0.5, guaranteed=0.5, finish_s=99.5, outlook="at_risk", deadline_s=100))
        journal.append(record(26, outlook=None, deadline_s=100))
    metrics.finished({"finish_s": 91.5, "met": True})
    tags = ",dag_id=a_dag,task_id=task"
    assert statsd() == [
        f"airflow.mlscale.spark.progress{tags}:0.25|g",
        f"airflow.mlscale.spark.guaranteed_cores{tags}:1.5|g",
        f"airflow.mlscale.spark.predicted_finish_s{tags}:88.0|g",
        f"airflow.mlscale.spark.deadline_left_s{tags}:80.0|g",
        f"airflow.mlscale.spark.progress{tags}:0.5|g",
        f"airflow.mlscale.spark.guaranteed_cores{tags}:0.5|g",
        f"airflow.mlscale.spark.predicted_finish_s{tags}:99.5|g",
        f"airflow.mlscale.spark.deadline_left_s{tags}:75.0|g",
        f"airflow.mlscale.spark.outlook.at_risk{tags}:1|c",
        f"airflow.mlscale.spark.guaranteed_cores{tags}:1.0|g",
        f"airflow.mlscale.spark.deadline_left_s{tags}:74.0|g",
        f"airflow.mlscale.spark.duration{tags}:91500.000000|ms",
        f"airflow.mlscale.spark.met{tags}:1|c",
    ]


def test_a_run_that_did_not_end_by_itself_is_neither_met_nor_missed(statsd: Callable[[], list[str]]) -> None:
    metrics = onlookers.metrics(federated_task.context("task"))
    metrics.finished({"finish_s": None, "met": None})
    assert statsd() == []


def test_who_looks_on_after_another_counts_no_change_again(statsd: Callable[[], list[str]]) -> None:
    earlier = [record(t, outlook="will_miss", finish_s=90, deadline_s=100) for t in range(10)]
    metrics = telemetry.of(federated_task.TaskInstance("task"), earlier)
    for t in range(10, 30):
        metrics(record(t, outlook="will_miss" if t < 20 else "on_track", finish_s=90, deadline_s=100))
    assert [line for line in statsd() if ".outlook." in line] == [
        "airflow.mlscale.spark.outlook.on_track,dag_id=a_dag,task_id=task:1|c"
    ]


def test_links_are_pushed_once_while_the_task_runs_and_kept_at_its_end() -> None:
    pushed: list[tuple[str, str]] = []

    class Instance(federated_task.TaskInstance):
        def xcom_push(self, key: str, value: Any) -> None:
            pushed.append((key, value))

    pages = onlookers.Pages(Instance("task"))
    for url in (None, "http://127.0.0.1:4040", "http://127.0.0.1:4040"):
        pages.show(SparkUiLink(), url)
    assert pushed == [("mlscale_spark_ui", "http://127.0.0.1:4040")]

    operator = DeadlineSparkSubmitOperator(task_id="t", application="/job.py", deadline="PT1H")
    operator.pages = pages.known
    links = {link.name: link.get_link(operator, ti_key=None) for link in operator.operator_extra_links}
    assert links == {"Spark UI": "http://127.0.0.1:4040", "Spark master": ""}
    assert SparkMasterLink().xcom_key == "mlscale_spark_master"


def test_the_links_are_known_to_the_serialised_dag() -> None:
    from airflow.sdk import DAG
    from airflow.serialization.serialized_objects import DagSerialization

    with DAG("d") as dag:
        DeadlineSparkSubmitOperator(task_id="t", application="/job.py", deadline="PT1H", on_outlook_change=print)
    task = DagSerialization.from_dict(DagSerialization.to_dict(dag)).get_task("t")
    assert {link.name: link.xcom_key for link in task.operator_extra_links} == {
        "Spark UI": "mlscale_spark_ui",
        "Spark master": "mlscale_spark_master",
    }
    assert task.has_retry_policy


def test_the_triggerer_sets_up_airflows_metrics_itself(
    statsd: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
    stats.initialize(factory=NoStatsLogger, export_legacy_names=True)  # as a triggerer begins
    telemetry.set_up.cache_clear()
    metrics = telemetry.in_triggerer(federated_task.TaskInstance("task"))
    metrics(record(20, progress=0.25, deadline_s=100))
    assert "airflow.mlscale.spark.progress,dag_id=a_dag,task_id=task:0.25|g" in statsd()
