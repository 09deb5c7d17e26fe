"""A standalone cluster of this machine's own: one master and its workers as detached local services, on loopback."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from airflow_mlscale import errors
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark.adapters import install, master

HOST = "127.0.0.1"
PREFIX = "spark-"
MASTER = "spark-master"
_END_FIRST = "end it first (mlscale spark down)"
_START_S = 120.0
"""A JVM on a busy machine takes its time."""


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """What `up` starts.

    Raises:
        InvalidInputError: a number out of its range, or a memory size that Spark does not know.
    """

    workers: int = 1
    """Worker processes."""
    cores: int = len(os.sched_getaffinity(0))
    """Cores, that is tasks at once, of each worker."""
    memory: str = "2g"
    """Memory that each worker gives to executors."""
    port: int = 7077
    """TCP port of the master."""

    def __post_init__(self) -> None:
        for field, high in (("workers", 64), ("cores", 1024), ("port", 65535)):
            if not 1 <= getattr(self, field) <= high:
                raise errors.InvalidInputError(field, getattr(self, field), f"must be between 1 and {high}")
        if not re.fullmatch(r"[1-9]\d*[kmgt]", self.memory, re.IGNORECASE):
            raise errors.InvalidInputError("memory", self.memory, "give a number and a unit, such as 512m or 2g")


def up(settings: ClusterSettings, *, asked: Collection[str] = ("workers", "cores", "memory")) -> processes.Service:
    """Start what of the cluster does not run yet; returns the master's service.

    Args:
        settings: of the cluster.
        asked: which of them a cluster that runs already must agree with; the others it may have otherwise.

    Raises:
        InvalidInputError: Java or pyspark is missing, the port is taken, or a cluster runs that is different.
        TransientError: it did not become ready; nothing of it is left running.
    """
    found = install.find()
    known = processes.service(MASTER)
    if known and known.details["master"] != _url(settings.port):
        raise errors.InvalidInputError(
            "port", settings.port, f"a cluster runs at {known.details['master']}; {_END_FIRST}"
        )
    _check_same(settings, asked)
    begun = not processes.services(PREFIX)
    try:
        running = known or _start_master(found, settings)
        for number in range(1, settings.workers + 1):
            if processes.service(f"{PREFIX}worker-{number}") is None:
                _start_worker(found, settings, number)
        _await_workers(running, settings.workers)
    except BaseException:
        if begun:  # leave nothing half-done, but never end a cluster that ran before
            down()
        raise
    return running


def _check_same(settings: ClusterSettings, asked: Collection[str]) -> None:
    """Refuse a cluster that runs with other values than those asked for: they would be ignored.

    Raises:
        InvalidInputError: names the first of them.
    """
    workers = processes.services(f"{PREFIX}worker-")
    if "workers" in asked and len(workers) > settings.workers:
        raise errors.InvalidInputError("workers", settings.workers, f"{len(workers)} run already; {_END_FIRST}")
    for worker in workers:
        for field in ("cores", "memory"):
            runs_with, wanted = worker.details.get(field), str(getattr(settings, field))
            if field in asked and runs_with is not None and runs_with.lower() != wanted.lower():
                raise errors.InvalidInputError(field, wanted, f"{worker.name} runs with {runs_with}; {_END_FIRST}")


def down() -> list[str]:
    """End the cluster, workers first; returns the names of what was running."""
    services = sorted(processes.services(PREFIX), key=lambda service: service.name == MASTER)
    return [service.name for service in services if processes.end_service(service.name)]


def status() -> tuple[list[processes.Service], master.Master | None]:
    """The services that run, and what the master says of itself; None when it does not run or answer."""
    services = processes.services(PREFIX)
    running = processes.service(MASTER)
    with contextlib.suppress(errors.UnreachableError):
        return services, master.state(running.details["web_url"]) if running else None
    return services, None


def web_url(master_url: str) -> str | None:
    """Address of the web page of the master at ``master_url``, if `up` started it."""
    running = processes.service(MASTER)
    return running.details["web_url"] if running and running.details["master"] == master_url else None


def _url(port: int) -> str:
    return f"spark://{HOST}:{port}"


def _start_master(found: install.Install, settings: ClusterSettings) -> processes.Service:
    url = _url(settings.port)
    _check_free(settings.port)
    web_port = processes.free_port(HOST)
    command = [found.command("spark-class"), "org.apache.spark.deploy.master.Master"]
    command += ["--host", HOST, "--port", str(settings.port), "--webui-port", str(web_port)]
    details = {"master": url, "web_url": f"http://{HOST}:{web_port}"}
    log_path = processes.home() / "logs" / f"{MASTER}.log"
    running = processes.detach(MASTER, command, details=details, env=_env(found), log_path=log_path)
    processes.wait_until(
        lambda: _answers(url), what="the Spark master", timeout_s=_START_S, alive=running.alive, log_path=log_path
    )
    return running


def _start_worker(found: install.Install, settings: ClusterSettings, number: int) -> None:
    name = f"{PREFIX}worker-{number}"
    work = processes.home() / "spark" / "work" / str(number)
    work.mkdir(parents=True, exist_ok=True)
    command = [found.command("spark-class"), "org.apache.spark.deploy.worker.Worker", "--host", HOST]
    command += ["--webui-port", "0", "--cores", str(settings.cores), "--memory", settings.memory]
    command += ["--work-dir", str(work), _url(settings.port)]
    details = {"cores": str(settings.cores), "memory": settings.memory}
    processes.detach(
        name, command, details=details, env=_env(found), cwd=work, log_path=processes.home() / "logs" / f"{name}.log"
    )


def _await_workers(running: processes.Service, workers: int) -> None:
    def ready() -> bool:
        try:
            return len(master.state(running.details["web_url"]).workers) >= workers
        except errors.UnreachableError:
            return False

    names = [f"{PREFIX}worker-{number}" for number in range(1, workers + 1)]
    processes.wait_until(
        ready,
        what=f"{workers} Spark worker(s)",
        timeout_s=_START_S,
        alive=lambda: running.alive() and all(processes.service(name) for name in names),
        log_path=processes.home() / "logs" / f"{names[-1]}.log",
    )


def _env(found: install.Install) -> Mapping[str, str]:
    return {
        **found.env(),
        "SPARK_LOCAL_IP": HOST,
        "SPARK_DAEMON_MEMORY": "384m",
        "SPARK_DAEMON_JAVA_OPTS": "-XX:+UseSerialGC",
        # The REST submission server would take jobs from anybody who reaches its fixed port.
        "SPARK_MASTER_OPTS": "-Dspark.master.rest.enabled=false",
        "SPARK_WORKER_OPTS": "-Dspark.worker.cleanup.enabled=true -Dspark.worker.cleanup.appDataTtl=86400",
    }


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the last master's closed connections may linger
        try:
            probe.bind((HOST, port))
        except OSError as exc:
            raise errors.InvalidInputError("port", port, f"{exc.strerror}; choose another one") from exc


def _answers(url: str) -> bool:
    try:
        master.ping(url, timeout_s=2)
    except errors.UnreachableError:
        return False
    return True
