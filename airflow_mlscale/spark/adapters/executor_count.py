"""The number of executors as a coarse actuator, where shares cannot be enforced: PySpark in client mode.

Only the driver can ask for executors. `launch_env` has it started by `executor_runner`, which listens on a socket
while the user's application runs in it unchanged.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from types import MappingProxyType

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports
from airflow_mlscale.runtime import clock as clocks
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark.adapters import executor_runner, install

log = logging.getLogger(__name__)

DRIVER_PYTHON = "MLSCALE_DRIVER_PYTHON"
PYTHON_PROPERTY = "spark.pyspark.driver.python"
_START = f"""\
#!/bin/sh
exec "${DRIVER_PYTHON}" "{executor_runner.__file__}" "$@"
"""


@dataclass(frozen=True, kw_only=True)
class CountSettings:
    """How shares become a number of executors."""

    executor_cores: int
    """Tasks that one executor runs at once."""
    most: int
    """Most executors."""
    least: int = 1
    settle_s: float = 15.0
    """Least time between two changes: a new executor needs 12 s to its first task and costs 5 to 7 core-seconds."""
    repeat_s: float = 5.0
    """How often an unchanged number is asked for again: executors that were on their way may have come since."""
    spare: float = 0.1
    """Part of an executor by which fewer must suffice before one is given up."""
    timeout_s: float = 5.0
    """For one request to the driver."""

    def __post_init__(self) -> None:
        for name in ("executor_cores", "least"):
            if getattr(self, name) < 1:
                raise errors.InvalidInputError(name, getattr(self, name), "must be at least 1")
        if self.most < self.least:
            raise errors.InvalidInputError("most", self.most, f"must be at least {self.least}")


def wanted(settings: CountSettings, cores: float, now: int) -> int:
    """How many executors a guarantee of so many cores needs, when there are ``now``."""
    exact = cores / settings.executor_cores
    count = ceil(exact - 1e-9)
    if count < now:  # give one up only when it is clearly not needed
        count = min(now, ceil(exact + settings.spare - 1e-9))
    return max(settings.least, min(settings.most, count))


class ExecutorCountPort:
    """`CpuPort` that turns the executors' guarantee into their number.

    Metering is another port's matter, which is also told the guarantee, where it enforces any; ceilings it never is.
    """

    name = "executors"
    enforces = True

    def __init__(
        self, meter: ports.CpuPort, settings: CountSettings, *, group: str, clock: clocks.Clock | None = None
    ) -> None:
        """Prepare; nothing is made before it is needed.

        Args:
            meter: groups are opened and metered there.
            settings: see there.
            group: the executors'; other groups are not counted.
            clock: for the time between changes.
        """
        self.settings = settings
        self.host_cores = float(settings.most * settings.executor_cores)
        self.count = settings.most
        """Executors that the driver was asked for last; at first it takes all that it can get."""
        self._meter = meter
        self._counted = group
        self._clock = clock or clocks.SystemClock()
        self._changed_s: float | None = None
        self._asked_s: float | None = None
        self._failing = False
        log.info(
            "CPU shares become a number of executors, at most %d of %g cores", settings.most, settings.executor_cores
        )
        self._folder: Path | None = None

    @property
    def socket(self) -> Path:
        """Where the driver listens; the folder is made for whoever asks first."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="mlscale-"))  # a socket's path must be short
        return self._folder / "executors"

    def open(self, group: str) -> None:
        self._meter.open(group)

    def apply(self, group: str, share: ports.CpuShare, terms: ports.Terms = ports.Terms()) -> ports.CpuShare:
        granted = ports.granted(group, share, terms, self.host_cores)
        at_least = ports.CpuShare(guaranteed_cores=granted.guaranteed_cores)
        told = self._meter.apply(group, share if share == ports.UNMANAGED else at_least, terms)
        if group != self._counted:
            return told
        if share != ports.UNMANAGED:
            self._bring(wanted(self.settings, granted.guaranteed_cores, self.count))
        return ports.CpuShare.strict(float(self.count * self.settings.executor_cores))

    def usage(self, group: str) -> ports.CpuUsage:
        return self._meter.usage(group)

    def admit(self, group: str, pid: int) -> None:
        self._meter.admit(group, pid)

    def entry_files(self, group: str) -> tuple[Path, ...]:
        return self._meter.entry_files(group)

    def groups(self) -> list[ports.GroupInfo]:
        share = ports.CpuShare.strict(float(self.count * self.settings.executor_cores))
        return [replace(info, share=share) if info.name == self._counted else info for info in self._meter.groups()]

    def close(self, group: str) -> None:
        self._meter.close(group)
        if group == self._counted and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _bring(self, count: int) -> None:
        now_s = self._clock.monotonic()
        if self._changed_s is not None and now_s - self._changed_s < self.settings.settle_s:
            count = self.count
        fresh = self._asked_s is not None and now_s - self._asked_s < self.settings.repeat_s
        if (count == self.count and fresh) or not self.socket.exists():
            return
        answer = self._ask(count)
        if "error" in answer:
            log.log(logging.DEBUG if self._failing else logging.WARNING, "executors: %s", answer["error"])
            self._failing = True
        elif answer.get("executors") is not None:  # the application has its SparkContext
            self._asked_s, self._failing = now_s, False
            if count != self.count:
                log.info("executors: %d asked for, %s run, %s leave", count, answer["executors"], answer.get("leaving"))
                self.count, self._changed_s = count, now_s

    def _ask(self, count: int) -> Mapping[str, object]:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(self.settings.timeout_s)
                connection.connect(str(self.socket))
                with connection.makefile("rw") as lines:
                    print(json.dumps({"executors": count}), file=lines, flush=True)
                    found: Mapping[str, object] = json.loads(lines.readline())
                    return found
        except (OSError, ValueError) as exc:
            return {"error": f"the driver does not answer: {exc}"}


def launch_env(port: ExecutorCountPort, given: Mapping[str, str], env: Mapping[str, str]) -> Mapping[str, str]:
    """Environment of spark-submit by which the driver listens; see `launch_properties`.

    Args:
        port: whose socket it listens on.
        given: the user's Spark properties.
        env: the user's environment.
    """
    python = (
        given.get(PYTHON_PROPERTY)
        or given.get("spark.pyspark.python")
        or env.get("PYSPARK_DRIVER_PYTHON")
        or env.get("PYSPARK_PYTHON")
        or sys.executable
    )
    return {DRIVER_PYTHON: python, executor_runner.SOCKET: str(port.socket)}


def launch_properties(given: Mapping[str, str], settings: CountSettings) -> dict[str, str]:
    """Spark properties by which the driver listens, and executors that leave hand on what others need of them."""
    script = processes.home() / "spark" / "count" / "python"
    install.write_script(script, _START)
    ours = {
        "spark.executor.cores": str(settings.executor_cores),
        "spark.decommission.enabled": "true",
        "spark.storage.decommission.enabled": "true",
        "spark.storage.decommission.shuffleBlocks.enabled": "true",
        "spark.storage.decommission.rddBlocks.enabled": "true",
        "spark.storage.decommission.replicationReattemptInterval": "1s",  # the default keeps who leaves for 30 s
    }
    return {**ours, **given, PYTHON_PROPERTY: str(script)}


def check(
    *,
    application: str = ".py",
    local_mode: bool = False,
    in_cluster: bool = False,
    given: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Refuse what has no number of executors that could be changed.

    Raises:
        InvalidInputError: local mode, a driver in the cluster, an application that is not Python, or Spark's own
            dynamic allocation.
    """
    fix = ""
    if local_mode:
        fix = "a local master has no executors"
    elif in_cluster:
        fix = "the number of executors is changed beside the driver; use deploy_mode='client'"
    elif not application.endswith(".py"):
        fix = "only a PySpark driver can be told to change their number; the application is not a .py file"
    elif given.get("spark.dynamicAllocation.enabled", "").lower() == "true":
        fix = "Spark's dynamic allocation would change their number too; set spark.dynamicAllocation.enabled=false"
    if fix:
        raise errors.InvalidInputError("allocator", "executors", fix)
