"""One application under one rival, from submission to the end of spark-submit, and what was measured."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.runtime import processes
from airflow_mlscale.runtime.journal import Record
from airflow_mlscale.spark import run as runs
from airflow_mlscale.spark.adapters.profile_store import ProfileFiles
from airflow_mlscale.spark.model import Profile, Promise
from benchmarks.deadline import apps, machine
from benchmarks.deadline.rivals import Hands, Rival, Share, distorted, hands

HOPELESS = 4.0
"""A run that takes so many times its deadline has failed."""
LEAST_PATIENCE_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where trials run."""

    master_url: str
    web_url: str
    cores: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What to run."""

    app: str
    rival: Rival
    seed: int
    deadline_s: float
    half_way_s: float
    """When a neighbour comes."""
    scale: float
    profile: Profile | None
    """The warm one, as learned."""

    @property
    def known(self) -> Profile | None:
        """The profile that this run starts with."""
        if self.rival.profile is None or self.profile is None:
            return None
        return distorted(self.profile, self.rival.profile)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was measured; grants and use are those of the executors, the driver has its own."""

    finish_s: float
    granted_core_s: float
    """Integral of guarantees; of the quota or of allocated slots where that is all there is."""
    cap_core_s: float
    """Integral of the ceiling; of the allocated slots where there is none."""
    used_core_s: float
    peak_cores: float
    mean_cores: float
    """The grant's, from submission to the end."""
    driver_granted_core_s: float
    driver_used_core_s: float
    rest_cores: float
    """Mean use of the host by everything else, the daemons of Spark and the controller included."""
    stolen_cores: float
    """Mean of what the hypervisor took."""
    outlook: str | None = None
    """The last one told."""
    series: Sequence[Mapping[str, object]] = field(default=(), repr=False)
    """Points of a burn-down."""
    learned: Profile | None = field(default=None, repr=False)
    """The profile after this run."""


def run(trial: Trial, cluster: Cluster, *, log_path: Path, allocator: str = "auto") -> Outcome:
    """Run one trial; nothing of it is left afterwards.

    Raises:
        SparkJobFailedError: the application failed, or took `HOPELESS` times its deadline.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_scratch(trial))
        began_at = time.time()
        engine = runs.DeadlineRun(_request(trial, cluster, folder, began_at, allocator))
        held = _tie(trial, engine, cluster)
        neighbour = machine.Neighbour(held.cpu, after_s=trial.half_way_s)
        if trial.rival.neighbour:
            stack.enter_context(neighbour)
        allocation = stack.enter_context(machine.Allocation(cluster.web_url))
        before, ended = machine.busy(), []

        def start(properties: Mapping[str, str], env: Mapping[str, str], started: Callable[[int], None]) -> None:
            command = _command(trial, cluster, engine.install.command("spark-submit"), properties)
            _submit(trial, command, env, started, log_path)
            ended.append((time.time(), machine.busy()))

        engine.submit(start)
        learned = ProfileFiles(str(folder)).load(trial.app)
    ((finish_at, after),) = ended
    records = [record for record in engine.journal.records() if record.at < finish_at]
    seconds = finish_at - began_at
    driver_core_s, executors_core_s = held.used()
    known_core_s = driver_core_s + executors_core_s + neighbour.used_core_s
    return Outcome(
        finish_s=round(seconds, 2),
        used_core_s=round(executors_core_s, 2),
        driver_used_core_s=round(driver_core_s, 2),
        rest_cores=round(max(0.0, after.used_core_s - before.used_core_s - known_core_s) / seconds, 3),
        stolen_cores=round((after.stolen_core_s - before.stolen_core_s) / seconds, 3),
        **_grant(trial, records, allocation, finish_at=finish_at, seconds=seconds, slots=cluster.cores),
        outlook=str(records[-1].decided.get("outlook")) if records and trial.rival.ours else None,
        series=burn_down(records) if trial.rival.share is Share.CONTROLLED else (),
        learned=learned,
    )


def burn_down(records: Sequence[Record]) -> list[dict[str, object]]:
    """One point for each step: time, progress, share, predicted finish, and why."""
    return [
        {
            "t_s": record.seen["t_s"],
            "progress": record.seen["progress"],
            "guaranteed_cores": record.decided["guaranteed_cores"],
            "ceiling_cores": record.decided["ceiling_cores"],
            "needed_cores": record.decided["needed_cores"],
            "used_core_s": record.seen["used_core_s"],
            "finish_s": record.decided["finish_s"],
            "reason": record.reason,
        }
        for record in records
    ]


def integral(records: Sequence[Record], name: str, *, until: float, instead_of_none: float = 0.0) -> float:
    """A decided value, integrated from the first record to ``until``; each holds until the next."""
    total = 0.0
    for record, end_at in zip(records, [*(later.at for later in records[1:]), until], strict=True):
        value = record.decided[name]
        total += (instead_of_none if value is None else float(value)) * (end_at - record.at)
    return total


def _grant(
    trial: Trial,
    records: Sequence[Record],
    allocation: machine.Allocation,
    *,
    finish_at: float,
    seconds: float,
    slots: int,
) -> dict[str, float]:
    """Guarantee and ceiling; without a controller the slots that the master gave are both."""
    if trial.rival.share is Share.UNMANAGED:
        granted = cap = allocation.core_s
        driver, peak = 0.0, float(allocation.peak_cores)
    else:
        granted = integral(records, "guaranteed_cores", until=finish_at)
        cap = integral(records, "ceiling_cores", until=finish_at, instead_of_none=slots)
        # A quota has nobody who guarantees anything to the driver.
        held = trial.rival.share is Share.CONTROLLED
        driver = integral(records, "driver_cores", until=finish_at) if held else 0.0
        peak = max((float(record.decided["guaranteed_cores"] or 0) for record in records), default=0.0)
    return {
        "granted_core_s": round(granted, 2),
        "cap_core_s": round(cap, 2),
        "driver_granted_core_s": round(driver, 2),
        "peak_cores": round(peak, 3),
        "mean_cores": round(granted / seconds, 4),
    }


def _request(trial: Trial, cluster: Cluster, folder: Path, began_at: float, allocator: str) -> runs.Request:
    return runs.Request(
        name=trial.app,
        master_url=cluster.master_url,
        web_url=cluster.web_url,
        promise=Promise(started_at=began_at, deadline_at=began_at + trial.deadline_s),
        settings=trial.rival.settings(),
        properties={**apps.PROPERTIES, **trial.rival.properties},
        profile_folder=str(folder),
        allocator=allocator,
    )


def _tie(trial: Trial, engine: runs.DeadlineRun, cluster: Cluster) -> Hands:
    """Put the rival's hands between the engine and the machine."""
    cpu = engine.cpu
    if cpu is None or not cpu.enforces:
        name = cpu.name if cpu else None
        raise errors.InvalidInputError("cpu", name, "shares must be enforced to be compared; run as root on Linux")
    held = hands(trial.rival, cpu, trial.profile, deadline_s=trial.deadline_s, slots=cluster.cores)
    engine.cpu = held
    return held


@contextlib.contextmanager
def _scratch(trial: Trial) -> Iterator[Path]:
    """A profile store of this run alone, with a copy of what it may know: no run learns from another unasked."""
    folder = Path(tempfile.mkdtemp(prefix="mlscale-bench-"))
    try:
        if trial.known is not None:
            ProfileFiles(str(folder)).save(trial.known)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _command(trial: Trial, cluster: Cluster, spark_submit: str, properties: Mapping[str, str]) -> list[str]:
    command = [spark_submit, "--master", cluster.master_url, "--name", trial.app]
    for name, value in properties.items():
        command += ["--conf", f"{name}={value}"]
    return [*command, str(apps.path(trial.app)), str(trial.seed), str(trial.scale)]


def _submit(
    trial: Trial,
    command: Sequence[str],
    env: Mapping[str, str],
    started: Callable[[int], None],
    log_path: Path,
) -> None:
    log_path.unlink(missing_ok=True)
    child = processes.spawn(f"bench-{trial.app}", command, env={**os.environ, **env}, log_path=log_path, grace_s=3)
    try:
        started(child.pid)
        patience_s = max(LEAST_PATIENCE_S, HOPELESS * trial.deadline_s)
        code = child.wait(patience_s)
    except subprocess.TimeoutExpired as exc:
        raise errors.SparkJobFailedError(f"{trial.app} did not end within {patience_s:.0f} s") from exc
    finally:
        child.end()
    if code:
        tail = log_path.read_text(errors="replace").splitlines()[-5:]
        raise errors.SparkJobFailedError(f"{trial.app} ended with {code}: " + " | ".join(tail))
