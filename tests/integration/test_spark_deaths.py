"""Whatever is killed under a job with a deadline: it ends or goes on, nothing stays limited, nothing is left.

Each test kills one thing with SIGKILL, on a real cluster under a real host agent.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports
from airflow_mlscale.cpu.adapters import cgroup, cgroup_v1
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark.adapters import cluster
from tests.integration import spark_held
from tests.integration.spark_held import HeldJob, Host

pytestmark = [pytest.mark.engine, pytest.mark.long]  # test_spark_deadline.py and test_spark_cluster_mode.py kill, too

LIMIT_CORES = 1.0
LIMITED = {"mode": "reserve", "max_cores": LIMIT_CORES}
"""So that there is something to restore."""

Begin = Callable[..., HeldJob]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with spark_held.running_host(tmp_path_factory.mktemp("deaths")) as host:
        yield host


@pytest.fixture
def begin(host: Host, tmp_path: Path) -> Iterator[Begin]:
    """Begins jobs, and ends those that are left."""
    begun: list[HeldJob] = []

    def begin(name: str, **given: object) -> HeldJob:
        begun.append(HeldJob(tmp_path, name, **given))
        return begun[-1]

    yield begin
    for job in begun:
        job.end()


def kernel(host: Host) -> cgroup.CgroupPort:
    """Looks at the groups past the agent."""
    layout = cgroup_v1.find(host.base)
    assert layout is not None
    return cgroup.CgroupPort(layout)


def shares(host: Host, name: str) -> list[ports.CpuShare]:
    """Enforced now for a job's groups."""
    return [info.share for info in kernel(host).groups() if info.name.startswith(f"spark-{name}-")]


def limited(host: Host, name: str) -> bool:
    return any(share.ceiling_cores == LIMIT_CORES for share in shares(host, name))


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def one(job: HeldJob, *words: str) -> int:
    """The job's process whose command line has all the words, each of them as a part of an argument."""
    (found,) = (
        process.pid
        for process in spark_held.processes_of(job.mark)
        if (line := process.cmdline()) and all(any(word in part for part in line) for word in words)
    )
    return found


SUBMIT = "org.apache.spark.deploy.SparkSubmit"


def driver_jvm(job: HeldJob) -> int:
    return one(job, "java", SUBMIT)


def driver_python(job: HeldJob) -> int:
    """The one that the JVM started, not the guard above both, whose command line names the application, too."""
    (child,) = (
        child.pid for child in psutil.Process(driver_jvm(job)).children() if job.operator.application in child.cmdline()
    )
    return child


@pytest.mark.parametrize("driver", [driver_jvm, driver_python], ids=["jvm", "python"])
def test_a_killed_driver_fails_the_task_and_a_retry_has_the_time_that_is_left(
    host: Host, begin: Begin, driver: Callable[[HeldJob], int]
) -> None:
    name = driver.__name__.replace("_", "-")
    job = begin(name, **LIMITED)
    job.wait_until_held()
    assert limited(host, name)
    kill(driver(job))
    with pytest.raises(errors.SparkJobFailedError):
        job.join()
    spark_held.wait_until_nothing_is_left(host, job)

    again = begin(name, store=job.store, **LIMITED)
    again.let_go()
    again.join()
    assert again.summary["met"]
    assert again.summary["started_at"] == job.store["mlscale_deadline"]["started_at"]
    assert again.summary["finish_s"] > again.summary["series"][0]["t_s"] > 0  # counted from the first try
    spark_held.wait_until_nothing_is_left(host, again)


def test_a_killed_task_leaves_nothing_and_its_retry_keeps_the_promise(host: Host, begin: Begin, tmp_path: Path) -> None:
    store = tmp_path / "state.json"
    made = spark_held.arguments(tmp_path, "task", **LIMITED)
    mark = made["env_vars"][spark_held.MARK]
    command = [sys.executable, "-m", "tests.integration.spark_held", json.dumps(made), str(store)]
    log_path = tmp_path / "task.log"
    with log_path.open("wb") as log:
        task = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2])
    try:
        processes.wait_until(
            lambda: bool(spark_held.tasks(tmp_path)),
            what="a running task",
            timeout_s=spark_held.PATIENCE_S,
            alive=lambda: task.poll() is None,
            log_path=log_path,
        )
        assert limited(host, "task")
    finally:
        task.kill()
        task.wait()
    spark_held.wait_until_nothing_is_left(host, name="task", mark=mark)

    promised = json.loads(store.read_text())["mlscale_deadline"]
    again = begin("task", store=spark_held.FileStore(store), **LIMITED)
    again.let_go()
    again.join()
    assert again.summary["started_at"] == promised["started_at"]
    assert again.summary["met"]
    spark_held.wait_until_nothing_is_left(host, again)


def test_a_killed_executor_is_replaced_within_its_group_and_its_lost_work_is_not_taken_for_done(
    host: Host, begin: Begin, tmp_path: Path
) -> None:
    spark_held.save_profile(tmp_path, core_s=12.0)
    job = begin("executor", **LIMITED, min_cores=LIMIT_CORES)  # there is time for less, which would only be slow
    victim = job.executor_at_work(host)
    kill(victim)
    successor = job.executor_at_work(host, other_than=victim)
    replaced_at = time.time()
    workers = spark_held.tasks(tmp_path) & spark_held.descendants(successor)
    (group,) = (row for name, row in host.groups("executor").items() if not name.endswith("-driver"))
    assert {successor, *workers} <= set(group["members"])
    assert group["share"]["ceiling_cores"] is not None
    job.wait(
        lambda: any(row["at"] > replaced_at and row["seen"]["tasks_running"] for row in job.journal()),
        "a step with the new executor",
    )
    # 2 core-s of the short stage and at most 0.9 of two of the four tasks of 3 core-s: (2 + 5.4) / 14
    assert max(row["seen"]["progress"] or 0.0 for row in job.journal()) < 0.55
    job.let_go()
    job.join()
    assert job.summary["met"]
    spark_held.wait_until_nothing_is_left(host, job)


def test_a_killed_agent_leaves_the_job_unlimited_until_its_successor_takes_it_up(host: Host, begin: Begin) -> None:
    job = begin("agent", **LIMITED)
    job.wait_until_held()
    job.wait(lambda: limited(host, "agent"), "a limit")
    assert host.agent is not None
    kill(host.agent.pid)
    job.wait(lambda: set(shares(host, "agent")) == {ports.UNMANAGED}, "restored shares")
    job.wait(lambda: any("does not answer" in row["reason"] for row in job.journal()), "its record of that")
    (executor,) = (
        pid
        for info in kernel(host).groups()
        for pid in info.members
        if spark_held.executors.MAIN_CLASS in spark_held.cmdline(pid)
    )

    host.start_agent()
    job.wait(lambda: limited(host, "agent"), "the limit again")
    assert host.executors_of("agent") == [executor]
    job.let_go()
    job.join()
    assert job.summary["met"]
    assert "does not answer" not in job.journal()[-1]["reason"]
    spark_held.wait_until_nothing_is_left(host, job)


def test_a_job_outlives_a_killed_worker_that_is_started_again(host: Host, begin: Begin) -> None:
    job = begin("worker", **LIMITED)
    executor = job.executor_at_work(host)
    worker = processes.service(f"{cluster.PREFIX}worker-1")
    assert worker is not None
    pid = processes.command_pid(worker.pid)
    assert pid is not None
    kill(pid)
    job.wait(lambda: not psutil.pid_exists(executor), "the end of the executor")
    processes.wait_until(lambda: not worker.alive(), what="the end of the worker's guard", timeout_s=30)

    cluster.up(host.settings)
    job.executor_at_work(host, other_than=executor)
    job.let_go()
    job.join()
    assert job.summary["met"]
    spark_held.wait_until_nothing_is_left(host, job)
