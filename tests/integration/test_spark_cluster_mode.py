"""Applications whose driver a worker runs: deferred, controlled by a trigger, taken up again after every death."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import detect
from airflow_mlscale.runtime import journal, processes
from airflow_mlscale.spark.adapters import cluster, install
from airflow_mlscale.spark.adapters import master as masters
from tests.integration import spark_task, spark_trigger

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(900),  # several JVMs start one after the other, on a machine that may be busy
    pytest.mark.skipif(shutil.which("javac") is None, reason="a JDK is needed to compile the application"),
]

HERE = Path(__file__).parent
ENOUGH_STEPS = 6_000_000
"""About a quarter of a second for each of 12 tasks in a round."""


@pytest.fixture(scope="module", autouse=True)
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of this module's own; address of its web page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLSCALE_HOME", str(tmp_path_factory.mktemp("home")))
        port = processes.free_port()
        connection = {"conn_type": "mlscale_spark", "host": "127.0.0.1", "port": port}
        patch.setenv("AIRFLOW_CONN_MLSCALE_SPARK", json.dumps(connection))
        try:
            running = cluster.up(cluster.ClusterSettings(workers=1, cores=3, memory="2g", port=port))
            yield running.details["web_url"]
        finally:
            cluster.down()


@pytest.fixture(scope="module")
def jar(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("java")
    jars = f"{install.spark_home() / 'jars'}/*"
    subprocess.run(["javac", "-d", str(folder), "-cp", jars, str(HERE / "SparkGrind.java")], check=True)
    subprocess.run(["jar", "cf", str(folder / "grind.jar"), "-C", str(folder), "SparkGrind.class"], check=True)
    return str(folder / "grind.jar")


def operator(jar: str, folder: Path, **arguments: object) -> Any:
    from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator

    given = {
        "application": jar,
        "java_class": "SparkGrind",
        "application_args": [ENOUGH_STEPS, 3],
        "conf": {"spark.executor.memory": "512m"},
        "driver_memory": "512m",
        "deploy_mode": "cluster",
        "deferrable": True,
        "deadline": timedelta(minutes=15),
        "mode": "reserve",
        "profile_store": str(folder),
        **arguments,
    }
    return DeadlineSparkSubmitOperator(task_id="task", **given)


def deferred(task: Any, store: spark_task.Store) -> Any:
    """The trigger for which a task has left its worker."""
    from airflow.sdk.exceptions import TaskDeferred

    with pytest.raises(TaskDeferred) as left:
        task.execute(spark_task.context(store))
    assert left.value.method_name == "execute_complete"
    return left.value.trigger


@contextmanager
def triggerer(serialised: Any, result: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs the trigger, from its serialised form."""
    command = [sys.executable, "-m", "tests.integration.spark_trigger", json.dumps(serialised), str(result)]
    with result.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=HERE.parents[1])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def groups_of(submission: dict[str, Any]) -> dict[str, Any]:
    """Groups of a submission, the driver's among them."""
    return {info.name: info for info in detect.local().groups() if info.name.startswith(submission["group"])}


def no_groups_named(name: str) -> bool:
    return not [info for info in detect.local().groups() if info.name.startswith(f"spark-{name}-")]


def drivers(web_url: str) -> dict[str, str]:
    return {driver.driver_id: driver.state for driver in masters.state(web_url).drivers}


def records_of(submission: dict[str, Any]) -> list[journal.Record]:
    return journal.read(processes.home() / "spark" / "runs" / f"{submission['run']}.jsonl")


def test_a_deferred_application_outlives_its_task_and_its_triggerer(jar: str, tmp_path: Path, master: str) -> None:
    store, before = spark_task.Store(), drivers(master)
    first = deferred(operator(jar, tmp_path, name="outlives", application_args=[ENOUGH_STEPS, 5], max_cores=1.0), store)
    (driver,) = drivers(master).keys() - before.keys()
    assert first.submission["application_id"] == driver

    # The worker is lost before Airflow hears of the deferral; another try takes up what it submitted.
    trigger = deferred(operator(jar, tmp_path, name="outlives"), store)
    assert trigger.submission == first.submission
    assert drivers(master).keys() - before.keys() == {driver}

    log, serialised = tmp_path / "event.log", trigger.serialize()
    with triggerer(serialised, tmp_path / "event.json") as doomed:
        processes.wait_until(
            lambda: any((record.seen["stages"] or 0) > 0 for record in records_of(trigger.submission)),
            what="a finished stage",
            timeout_s=300,
            alive=lambda: doomed.poll() is None,
            log_path=log,
        )
        before_death = groups_of(trigger.submission)
        doomed.kill()
        doomed.wait()
    seen_before = len(records_of(trigger.submission))
    group = trigger.submission["group"]
    if detect.local().enforces:
        assert before_death.keys() == {group, f"{group}-driver"}
        assert before_death[group].share.ceiling_cores == pytest.approx(1.0)
        processes.wait_until(
            lambda: groups_of(trigger.submission)[group].share.ceiling_cores is None,
            what="an unlimited application",
            timeout_s=60,
        )
    assert drivers(master)[driver] == "RUNNING"

    with triggerer(serialised, tmp_path / "event.json") as second:
        assert second.wait(400) == 0, log.read_text()
    event = json.loads((tmp_path / "event.json").read_text())
    assert event["state"] == "succeeded"
    assert len(records_of(trigger.submission)) > seen_before
    assert groups_of(trigger.submission) == {}

    summary = operator(jar, tmp_path, name="outlives").execute_complete(spark_task.context(store), event)
    assert summary["met"]
    assert summary["used_core_s"] > summary["executor_core_s"] > 0
    assert summary["granted_core_s"] > 0
    assert store["mlscale_summary"]["finish_s"] == summary["finish_s"]
    assert len(store["mlscale_journal"]) > 3
    assert "mlscale_spark_submission" not in store  # a cleared task submits anew
    (profile,) = tmp_path.glob("outlives*.json")
    (plan,) = json.loads(profile.read_text())["plans"]
    learned = plan["startup_core_s"] + sum(stage["core_s"] for stage in plan["stages"])
    assert learned == pytest.approx(summary["executor_core_s"], rel=0.02)


@pytest.mark.long
def test_a_user_who_ends_a_deferred_task_ends_its_application(jar: str, tmp_path: Path, master: str) -> None:
    task = operator(jar, tmp_path, name="ended", application_args=[ENOUGH_STEPS, 1000])
    trigger = spark_trigger.restored(deferred(task, spark_task.Store()).serialize())
    driver = trigger.submission["application_id"]

    async def end_midway() -> None:
        running = asyncio.create_task(spark_trigger.first_event(trigger))
        await asyncio.to_thread(
            processes.wait_until,
            lambda: bool(records_of(trigger.submission)) or running.done(),
            what="control",
            timeout_s=120,
        )
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await trigger.on_kill()

    asyncio.run(end_midway())
    processes.wait_until(lambda: drivers(master)[driver] == "KILLED", what="the end of the driver", timeout_s=30)
    processes.wait_until(lambda: groups_of(trigger.submission) == {}, what="the end of its CPU groups", timeout_s=30)


def test_a_failing_application_fails_its_task_and_leaves_nothing_to_take_up(
    jar: str, tmp_path: Path, master: str
) -> None:
    store = spark_task.Store()
    task = operator(jar, tmp_path, name="fails", application_args=["no-number", 1], deferrable=False)
    with pytest.raises(errors.SparkJobFailedError, match="the master says FAILED of driver-"):
        task.execute(spark_task.context(store))
    assert "mlscale_spark_submission" not in store
    assert no_groups_named("fails")
    assert list(tmp_path.glob("fails*.json")) == []


@pytest.mark.long
def test_a_jvm_application_in_client_mode_keeps_its_deadline_too(jar: str, tmp_path: Path) -> None:
    task = operator(jar, tmp_path, name="client", deploy_mode="client", conf={"spark.executor.memory": "512m"})
    summary = task.execute(spark_task.context())
    assert summary["met"]
    assert summary["executor_core_s"] > 0
    assert no_groups_named("client")


def test_secrets_of_the_worker_do_not_go_to_the_cluster(
    jar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_mlscale.spark import launch

    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://user:secret@host/db")
    carried = launch.carried(os.environ, given={"MINE": "1"}, entry_env={"JAVA_HOME": "/enter"})
    assert carried["MINE"] == "1"
    assert carried["JAVA_HOME"] == "/enter"
    assert "PATH" in carried
    assert not [name for name in carried if name.startswith(("AIRFLOW", "AWS"))]


def test_a_python_driver_is_refused_where_spark_refuses_it(tmp_path: Path) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    task = operator(str(HERE / "spark_job.py"), tmp_path, java_class=None)
    with pytest.raises(AirflowFailException, match="no Python drivers on a standalone cluster"):
        task.execute(spark_task.context())
