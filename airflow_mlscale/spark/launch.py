"""The Spark properties and environment with which an application is observed and enters its CPU group."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from airflow_mlscale import errors
from airflow_mlscale.spark.adapters import cluster, master, rest
from airflow_mlscale.spark.adapters.install import Install

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an application runs."""

    url: str
    """The master: ``spark://…`` or ``local[…]``."""
    cores: int
    """Cores of all its workers; 0 when unknown."""
    worker_cores: int
    """Cores of its largest worker; 0 when unknown."""
    here: bool
    """Whether all executors run on this host."""

    @property
    def local_mode(self) -> bool:
        """Whether the driver is the executor."""
        return self.url.startswith("local")

    @property
    def loopback(self) -> bool:
        """Whether nothing needs to be reached from another host."""
        return self.local_mode or all(_is_loopback(host) for host, _ in master.addresses(self.url))


def local_slots(url: str) -> int | None:
    """Tasks that a ``local`` master runs at once; None for as many as the host has cores (``local[*]``)."""
    if url == "local":
        return 1
    named = re.match(r"local\[(\d+)[,\]]", url)
    return int(named[1]) if named else None


def target(url: str, *, web_url: str | None, host_cores: float) -> Target:
    """Ask the master about its workers.

    Raises:
        InvalidInputError: a cluster manager that deadline control does not support.
        UnreachableError: the master does not answer, or an explicitly given web page does not.
    """
    if url.startswith("local"):
        slots = local_slots(url) or int(host_cores)
        return Target(url=url, cores=slots, worker_cores=slots, here=True)
    if not url.startswith("spark://"):
        raise errors.InvalidInputError(
            "master", url, "deadlines are kept on standalone clusters (spark://) and local[*]; use SparkSubmitOperator"
        )
    master.ping(url)
    host = master.addresses(url)[0][0]
    here = all(_is_loopback(host) for host, _ in master.addresses(url))
    try:
        found = master.state(web_url or cluster.web_url(url) or f"http://{host}:8080")
    except errors.UnreachableError:
        if web_url:
            raise
        return Target(url=url, cores=0, worker_cores=0, here=here)
    largest = max((worker.cores for worker in found.workers), default=0)
    return Target(url=url, cores=found.cores, worker_cores=largest, here=here or found.is_local)


def properties(
    where: Target, *, run: str, ui_port: int, entry_env: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
    """The user's Spark properties with ours added; the user's win where both are possible."""
    ours = {
        **given,
        rest.RUN_PROPERTY: run,
        "spark.ui.enabled": "true",  # progress is read from it
        "spark.ui.port": given.get("spark.ui.port", str(ui_port)),
    }
    if where.loopback:
        ours.setdefault("spark.driver.host", LOOPBACK)
        ours.setdefault("spark.driver.bindAddress", LOOPBACK)
    if where.local_mode:
        return ours
    ours |= {f"spark.executorEnv.{name}": value for name, value in entry_env.items()}
    slots = int(given.get("spark.executor.cores") or where.worker_cores)
    options = given.get("spark.executor.extraJavaOptions", "")
    if slots and "ActiveProcessorCount" not in options:
        # The JVM would size its collector and pools by the share of the moment, and never again.
        ours["spark.executor.extraJavaOptions"] = f"{options} -XX:ActiveProcessorCount={slots}".strip()
    return ours


def environment(
    where: Target, install: Install, *, entry_env: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
    """The environment of spark-submit and the driver, which enters the group of ``entry_env``."""
    env = {**install.env(), **given}
    if where.loopback:
        env.setdefault("SPARK_LOCAL_IP", LOOPBACK)  # or the driver's web page would listen on every address
    return {**env, **entry_env}


def ui_address(where: Target, properties_: Mapping[str, str], env: Mapping[str, str]) -> str:
    """Where the driver's web page, and with it its REST API, will be."""
    host = env.get("SPARK_LOCAL_IP") or LOOPBACK
    return f"http://{host}:{properties_['spark.ui.port']}"


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"
