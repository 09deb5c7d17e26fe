"""Finding the executors of an application: in this host's process table, by other hosts' agents, as pods."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httpx
import psutil

from airflow_mlscale import errors
from airflow_mlscale.cpu.adapters import hosts
from airflow_mlscale.cpu.ports import CpuPort, SpreadPort

log = logging.getLogger(__name__)

MAIN_CLASS = "org.apache.spark.executor.CoarseGrainedExecutorBackend"
"""Of a standalone cluster's executors."""
YARN_MAIN_CLASS = "org.apache.spark.executor.YarnCoarseGrainedExecutorBackend"
IDLE_SLOT = 0.1
"""Weight of a slot without a task, against 1 for one with a task: the next task must not begin throttled."""


class LocalExecutors:
    """`ExecutorFinder` by command line: the backend's main class with the application's id."""

    def find(self, application_id: str) -> frozenset[int]:
        found = set()
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or ()
            if MAIN_CLASS in words and application_id in words:
                found.add(process.pid)
        return frozenset(found)


class OneProcess:
    """`ExecutorFinder` for local mode, where the driver is the executor."""

    def __init__(self) -> None:
        self.pid: int | None = None

    def find(self, application_id: str) -> frozenset[int]:
        return frozenset(() if self.pid is None else (self.pid,))


@dataclass(frozen=True, kw_only=True)
class Load:
    """What one executor does now."""

    executor: str
    """Its id."""
    host: str
    slots: int
    active: int
    """Tasks that it runs."""

    @property
    def weight(self) -> float:
        return self.active + IDLE_SLOT * max(0, self.slots - self.active)


def loads_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Load, ...]:
    """Executors that run, from the rows of the REST API's ``executors``."""
    return tuple(
        Load(
            executor=str(row["id"]),
            host=str(row["hostPort"]).rpartition(":")[0],
            slots=int(row["totalCores"]),
            active=int(row["activeTasks"]),
        )
        for row in rows
        if row["isActive"] and row["id"] != "driver"
    )


Ask = Callable[[str], Any]
"""An answer of the driver's REST API to a path below ``/api/v1``; raises `UnreachableError`."""


def over_http(driver_url: str, *, timeout_s: float = 5.0) -> Ask:
    """Asks the driver whose web page is at ``driver_url``, such as ``http://127.0.0.1:4040``."""
    client = httpx.Client(base_url=f"{driver_url}/api/v1", timeout=timeout_s, trust_env=False)

    def ask(path: str) -> Any:
        try:
            return client.get(path).raise_for_status().json()
        except (httpx.HTTPError, ValueError) as exc:
            raise errors.UnreachableError("the Spark driver", driver_url, repr(exc)) from exc

    return ask


def spread(cpu: CpuPort, group: str, ask: Ask) -> SpreadExecutors | None:
    """The finder that this port needs, if it spreads its groups over hosts or pods.

    Args:
        cpu: the port.
        group: of the executors.
        ask: the driver.
    """
    if isinstance(cpu, hosts.HostsPort):
        return AgentExecutors(cpu, group, ask)
    return SpreadExecutors(cpu, group, ask) if is_spread(cpu) else None


def is_spread(cpu: CpuPort) -> bool:
    """Whether the port spreads its groups over hosts or pods; see `SpreadPort`."""
    return hasattr(cpu, "weigh")


class SpreadExecutors:
    """`ExecutorFinder` where executors are in their group already: it only says how much work each of them does."""

    def __init__(self, cpu: CpuPort, group: str, ask: Ask) -> None:
        self.cpu = cast("SpreadPort", cpu)
        self.group = group
        self.ask = ask

    def find(self, application_id: str) -> frozenset[int]:
        """Weigh the parts; no process is left for the caller to admit."""
        weights: dict[str, float] = {}
        for load in self._loads(application_id):
            part = self._part(load)
            weights[part] = weights.get(part, 0.0) + load.weight
        if weights:
            self.cpu.weigh(self.group, weights)
        return frozenset()

    def _part(self, load: Load) -> str:
        return load.executor

    def _loads(self, application_id: str) -> tuple[Load, ...]:
        try:
            return loads_of(self.ask(f"/applications/{application_id}/executors"))
        except (errors.UnreachableError, ValueError, KeyError, TypeError) as exc:
            log.debug("cannot weigh the executors of %s, the last weights hold: %r", application_id, exc)
            return ()


class AgentExecutors(SpreadExecutors):
    """`ExecutorFinder` over several hosts: each host's agent moves the executors there into the group.

    Hosts must be named as Spark names them: what the executor's ``--hostname`` says.
    """

    def __init__(self, cpu: hosts.HostsPort, group: str, ask: Ask) -> None:
        super().__init__(cpu, group, ask)
        self.agents = cpu

    def find(self, application_id: str) -> frozenset[int]:
        """Have the agents admit what they find, and weigh the hosts."""
        for main_class in (MAIN_CLASS, YARN_MAIN_CLASS):
            words = {host: (main_class, application_id, host) for host in self.agents.hosts}
            if any(self.agents.admit_matching(self.group, words).values()):
                break
        return super().find(application_id)

    def _part(self, load: Load) -> str:
        return load.host
