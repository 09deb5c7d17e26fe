"""The number of a running application's executors is changed from outside its driver."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from airflow_mlscale.cpu import ports
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark.adapters import cluster, executor_count, executors, install
from tests.fakes import cpu as fake_cpu
from tests.integration import spark_task

pytestmark = [pytest.mark.engine, pytest.mark.long]

JOB = str(Path(__file__).parent / "spark_job.py")
MEMORY = {"spark.executor.memory": "512m"}
UNTIL_TOLD = """
import os, sys
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
rounds = 0
kept = spark.sparkContext.parallelize(range(4000), 4).map(lambda x: (x % 7, x)).groupByKey()  # blocks of a shuffle
assert kept.count() == 7
while not os.path.exists(sys.argv[1]):
    assert spark.sparkContext.parallelize(range(100), 8).map(lambda x: x * x).sum() == 328350
    assert kept.mapValues(len).count() == 7
    rounds += 1
spark.stop()
"""


@pytest.fixture(scope="module", autouse=True)
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLSCALE_HOME", str(tmp_path_factory.mktemp("home")))
        port = processes.free_port()
        connection = {"conn_type": "mlscale_spark", "host": "127.0.0.1", "port": port}
        patch.setenv("AIRFLOW_CONN_MLSCALE_SPARK", json.dumps(connection))
        try:
            running = cluster.up(cluster.ClusterSettings(workers=1, cores=2, memory="1g", port=port))
            yield running.details["master"]
        finally:
            cluster.down()


def test_one_executor_then_two_then_one(master: str, tmp_path: Path) -> None:
    settings = executor_count.CountSettings(executor_cores=1, most=2, settle_s=0.0, repeat_s=1.0)
    port = executor_count.ExecutorCountPort(fake_cpu.FakeCpu(), settings, group="job")
    port.open("job")
    found, ui_port, enough = install.find(), processes.free_port(), tmp_path / "enough"
    (tmp_path / "job.py").write_text(UNTIL_TOLD)
    given = {**MEMORY, "spark.ui.port": str(ui_port), "spark.driver.host": "127.0.0.1"}
    conf = executor_count.launch_properties(given, settings)
    command = [found.command("spark-submit"), "--master", master]
    command += [word for name, value in conf.items() for word in ("--conf", f"{name}={value}")]
    env = {**found.env(), "SPARK_LOCAL_IP": "127.0.0.1"}
    env |= executor_count.launch_env(port, given, env)
    log_path = tmp_path / "submit.log"
    submitted = processes.spawn("job", [*command, str(tmp_path / "job.py"), str(enough)], env=env, log_path=log_path)
    ask = executors.over_http(f"http://127.0.0.1:{ui_port}")

    def have(count: int) -> bool:
        """Ask for so many at each look, as a controller does, and see whether that is what runs."""
        port.apply("job", ports.CpuShare.strict(0.8 * count))
        try:
            (application,) = ask("/applications")
            running = executors.loads_of(ask(f"/applications/{application['id']}/executors"))
        except (executor_count.errors.UnreachableError, ValueError):  # not up yet
            return False
        return port.count == count and len(running) == count

    try:
        for count in (1, 2, 1):
            processes.wait_until(
                lambda count=count: have(count),
                what=f"{count} executor(s)",
                timeout_s=200,
                alive=lambda: submitted.poll() is None,
                log_path=log_path,
            )
        enough.touch()
        assert submitted.wait(60) == 0, log_path.read_text()[-3000:]
        assert "Lost task" not in log_path.read_text()  # those that left had finished, and handed on their blocks
    finally:
        submitted.end()
        port.close("job")


def test_a_deadline_by_the_number_of_executors(tmp_path: Path) -> None:
    from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator

    operator = DeadlineSparkSubmitOperator(
        task_id="task",
        application=JOB,
        application_args=[3000, 1],
        conf=MEMORY,
        name="counted",
        deadline=timedelta(seconds=290),
        mode="reserve",
        max_cores=1.0,
        allocator="executors",
        profile_store=str(tmp_path),
    )
    summary = operator.execute(spark_task.context())
    assert summary["allocator"] == "executors"
    assert summary["executor_core_s"] > 0
    assert {point["guaranteed_cores"] for point in summary["series"]} == {1.0}
