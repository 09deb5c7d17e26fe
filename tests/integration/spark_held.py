"""Held jobs (`spark_held_job`) under a host agent of the test's own, and what may be left of them.

``python -m tests.integration.spark_held ARGUMENTS_JSON STORE_FILE`` runs one as a task process would.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu.adapters import lease_client
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark.adapters import cluster, executors, profile_store
from airflow_mlscale.spark.model import Plan, Profile, StageProfile
from tests.fakes import cpu_agent, cpu_host
from tests.integration import spark_held_job, spark_task

MARK = "MLSCALE_TEST_JOB"
"""In the environment of every process of a held job."""
PATIENCE_S = 90.0
"""On a busy machine."""


class Host:
    """A cluster, an agent and its cgroup base; all of them this test module's own."""

    def __init__(self, folder: Path, base: str, settings: cluster.ClusterSettings, *agent_arguments: str) -> None:
        self.base = base
        self.settings = settings
        self._socket = folder / "agent.sock"
        self._arguments = ("--base", base, *agent_arguments)
        self._agents = contextlib.ExitStack()
        self.agent: cpu_agent.AgentProcess | None = None

    @property
    def address(self) -> str:
        return f"unix:{self._socket}"

    @property
    def port(self) -> lease_client.LeasePort:
        return lease_client.LeasePort(self.address)

    def start_agent(self, *arguments: str) -> None:
        """Another one than before, if there was one."""
        self._agents.close()
        agent = cpu_agent.agent_process(self._socket, *self._arguments, *arguments)
        self.agent = self._agents.enter_context(agent)

    def end(self) -> None:
        self._agents.close()

    def groups(self, name: str) -> dict[str, dict[str, Any]]:
        """What the agent says of a job's groups."""
        return {row["name"]: row for row in self.port.status() if row["name"].startswith(f"spark-{name}-")}

    def directories(self, name: str) -> list[str]:
        """A job's groups in the kernel, whatever the agent says."""
        found = Path("/sys/fs/cgroup").glob(f"*/{self.base}/mlscale.spark-{name}-*/")
        return sorted({path.name for path in found})

    def executors_of(self, name: str) -> list[int]:
        """Executors in the job's group."""
        members = [pid for row in self.groups(name).values() for pid in row["members"]]
        return [pid for pid in members if executors.MAIN_CLASS in cmdline(pid)]


@contextlib.contextmanager
def running_host(folder: Path, *agent_arguments: str, cores: int = 2, memory: str = "1g") -> Iterator[Host]:
    """All of it; ended afterwards, whatever happens."""
    port = processes.free_port()
    with cpu_host.v1_base() as base, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLSCALE_HOME", str(folder / "home"))
        host = Host(folder, base, cluster.ClusterSettings(cores=cores, memory=memory, port=port), *agent_arguments)
        extra = {"agent": host.address}
        connection = {"conn_type": "mlscale_spark", "host": "127.0.0.1", "port": port, "extra": extra}
        patch.setenv("AIRFLOW_CONN_MLSCALE_SPARK", json.dumps(connection))
        try:
            host.start_agent()
            cluster.up(host.settings)
            yield host
        finally:
            cluster.down()
            host.end()


class FileStore(spark_task.Store):
    """A task state store that outlives its task process."""

    def __init__(self, path: Path) -> None:
        super().__init__(json.loads(path.read_text()) if path.exists() else {})
        self.path = path

    def set(self, key: str, value: object) -> None:
        super().set(key, value)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self))
        partial.replace(self.path)


def arguments(folder: Path, name: str, *, core_s: float = 0.0, **given: Any) -> dict[str, Any]:
    """Of the operator, plain values: with them any process can run the job; each try has a mark of its own."""
    mark = f"{name}-{uuid.uuid4().hex[:8]}"
    conf = {"spark.executor.memory": "512m", f"spark.executorEnv.{MARK}": mark, **given.pop("conf", {})}
    return {
        "application": str(Path(spark_held_job.__file__)),
        "application_args": [str(folder), core_s],
        "name": name,
        "conf": conf,
        "env_vars": {MARK: mark},
        "profile_store": str(folder),
        "profile_key": "held",
        "deadline": 300.0,
        **given,
    }


def save_profile(folder: Path, *, core_s: float) -> None:
    """Of a held job whose long stage costs so much."""
    first, second = spark_held_job.stage_names()
    plan = Plan(
        stages=(
            StageProfile(key=f"{first}#0", core_s=2.0, tasks=8, kind="generate"),
            StageProfile(
                key=f"{second}#0", core_s=core_s, tasks=spark_held_job.PARTITIONS, kind="result", after=(f"{first}#0",)
            ),
        ),
        startup_core_s=4.0,
        lead_s=5.0,
        runs=5,
        spread=0.02,
    )
    profile_store.ProfileFiles(str(folder)).save(Profile(key="held", plans=(plan,)))


class HeldJob:
    """One try of a task, in a thread: from its beginning until it is let go."""

    def __init__(self, folder: Path, name: str, store: spark_task.Store | None = None, **given: Any) -> None:
        self.folder = folder
        self.name = name
        self.store = spark_task.Store() if store is None else store
        self.summary: dict[str, Any] = {}
        self.error: BaseException | None = None
        made = arguments(folder, name, **given)
        self.mark = made["env_vars"][MARK]
        self.operator = operator(made)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.summary = self.operator.execute(spark_task.context(self.store))
        except BaseException as exc:  # told by `join`
            self.error = exc

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Until something holds; at once what the job raised when it ends before."""
        try:
            processes.wait_until(ready, what=f"{self.name}: {what}", timeout_s=PATIENCE_S, alive=lambda: self.alive)
        except errors.TransientError as exc:
            raise (self.error or exc) from exc

    def wait_until_held(self) -> None:
        """Until a task of the long stage runs."""
        self.wait(lambda: bool(tasks(self.folder)), "a running task")

    def executor_at_work(self, host: Host, *, other_than: int = 0) -> int:
        """An executor in the job's group whose Python workers have begun the long stage; waits for one."""
        found: list[int] = []

        def at_work() -> bool:
            workers = tasks(self.folder)
            found[:] = [pid for pid in host.executors_of(self.name) if pid != other_than and workers & descendants(pid)]
            return bool(found)

        self.wait(at_work, "an executor at work")
        return found[0]

    def let_go(self) -> None:
        (self.folder / "gate").touch()

    def join(self) -> None:
        """Until it has ended; raises what it raised."""
        self._thread.join(timeout=PATIENCE_S)
        assert not self.alive, f"{self.name} did not end"
        if self.error is not None:
            raise self.error

    def journal(self) -> list[dict[str, Any]]:
        """As the task state has it."""
        return list(self.store.get("mlscale_journal") or [])

    def end(self) -> None:
        self.let_go()
        if self.alive:
            self.operator.on_kill()
            self._thread.join(timeout=30)
        for process in processes_of(self.mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def operator(made: dict[str, Any]) -> Any:
    from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator

    deadline = made["deadline"] if isinstance(made["deadline"], datetime) else timedelta(seconds=made["deadline"])
    return DeadlineSparkSubmitOperator(task_id="task", **{**made, "deadline": deadline})


def tasks(folder: Path) -> set[int]:
    """Process ids of the tasks of the long stage that have begun, ended or not."""
    return {int(text) for path in folder.glob("running-*") if (text := path.read_text())}


def descendants(pid: int) -> set[int]:
    try:
        return {child.pid for child in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def processes_of(mark: str) -> list[psutil.Process]:
    """All processes of one try on this machine, wherever they descend from."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def cmdline(pid: int) -> list[str]:
    try:
        return psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return []


def wait_until_nothing_is_left(host: Host, job: HeldJob | None = None, *, name: str = "", mark: str = "") -> None:
    """No process, no group known to the agent, no directory in the kernel, no half-written file or lock."""
    name, mark = (job.name, job.mark) if job else (name, mark)
    processes.wait_until(lambda: not processes_of(mark), what=f"the end of {name}'s processes", timeout_s=30)
    processes.wait_until(
        lambda: not host.groups(name) and not host.directories(name), what=f"the end of {name}'s groups", timeout_s=30
    )
    left = [path for pattern in ("*.partial", "*.lock") for path in processes.home().rglob(pattern)]
    assert left == []


def main(made: dict[str, Any], store: Path) -> None:
    import signal

    task = operator(made)
    signal.signal(signal.SIGTERM, lambda *_: task.on_kill())  # as Airflow's task runner does
    task.execute(spark_task.context(FileStore(store)))


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
