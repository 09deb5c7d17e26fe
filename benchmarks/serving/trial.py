"""One run: a system with its models, load from another process, what became of the requests and what it cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from airflow_mlscale import errors
from airflow_mlscale.control import smoothing
from benchmarks.serving import meter, models, systems

SHED = (429, 503)
"""Statuses by which a system says that it did not even try."""
PATIENCE_FACTOR = 12.0
"""The source waits so many times the longest objective for its last answers."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one run came to; requests are those scheduled after the lead."""

    requests: int
    violations_pct: float
    """Answered after the objective, shed or failed."""
    late_pct: float
    shed_pct: float
    failed_pct: float
    goodput_per_s: float
    """Answers in time."""
    granted_core_s: float
    cap_core_s: float
    used_core_s: float
    gateway_core_s: float | None
    """Part of that which the answering process used; None where there is no single one."""
    load_core_s: float
    """Of the source; in none of the others."""
    sent_late_ms: float
    """99th percentile of how late the source itself was; it counts in every latency."""
    length_s: float
    models: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """By model: requests, violations_pct, shed_pct, failed_pct, objective_ms, and p50, p95 and p99 of the answers."""


def run(
    system: systems.System,
    served: Sequence[models.Served],
    arrivals: Sequence[tuple[float, int]],
    folder: Path,
    *,
    lead_s: float,
    length_s: float,
) -> Outcome:
    """Offer these arrivals to one system; measured are the ``length_s`` after the lead.

    Raises:
        TransientError: the system did not start, or the source failed.
    """
    patience_s = PATIENCE_FACTOR * max(one.objective_ms for one in served) / 1000
    with systems.running(system, served, folder) as found:
        plan = {"arrivals": list(arrivals), "patience_s": patience_s}
        with Source(found.port, found.targets, plan, folder) as source:
            begin = source.begin()
            _sleep_until(begin + lead_s)
            before = meter.spent(found.root, found.gateway)
            _sleep_until(begin + lead_s + length_s)
            after = meter.spent(found.root, found.gateway)
            report = source.report(timeout_s=patience_s + 30)
    shares = meter.withheld(
        meter.events(found.shares),
        begin=begin + lead_s,
        end=begin + lead_s + length_s,
        host_cores=float(psutil.cpu_count() or 1),
    )
    gateway_s = after.gateway_s - before.gateway_s if found.gateway else None
    return Outcome(
        granted_core_s=round(shares.granted_core_s, 2),
        cap_core_s=round(shares.cap_core_s, 2),
        used_core_s=round(after.system_s - before.system_s, 2),
        gateway_core_s=None if gateway_s is None else round(gateway_s, 2),
        load_core_s=round(report["cpu_s"], 2),
        length_s=length_s,
        **judged(report, served, lead_s=lead_s, length_s=length_s),
    )


def judged(
    report: dict[str, Any], served: Sequence[models.Served], *, lead_s: float, length_s: float
) -> dict[str, Any]:
    """The part of an `Outcome` that follows from the source's report."""
    by_model: dict[int, list[tuple[int, float | None]]] = {index: [] for index in range(len(served))}
    lags = []
    every = zip(report["targets"], report["at_s"], report["status"], report["late_s"], report["latency_s"], strict=True)
    for target, at_s, status, sent_late_s, latency_s in every:
        if at_s >= lead_s:
            by_model[target].append((status, latency_s))
            lags.append(patient(sent_late_s, length_s))
    counts = dict.fromkeys(("late", "shed", "failed"), 0)
    shown: dict[str, dict[str, float | None]] = {}
    for index, one in enumerate(served):
        found = by_model[index]
        answered = [latency for status, latency in found if status == 200 and latency is not None]
        mine = {
            "late": sum(latency > one.objective_ms / 1000 for latency in answered),
            "shed": sum(status in SHED for status, _ in found),
        }
        mine["failed"] = len(found) - len(answered) - mine["shed"]
        for name, count in mine.items():
            counts[name] += count
        shown[one.model.name] = {
            "objective_ms": one.objective_ms,
            "requests": len(found),
            "violations_pct": _percent(sum(mine.values()), len(found)),
            "shed_pct": _percent(mine["shed"], len(found)),
            "failed_pct": _percent(mine["failed"], len(found)),
            **{f"p{rank}_ms": _milliseconds(answered, rank) for rank in (50, 95, 99)},
        }
    requests = sum(map(len, by_model.values()))
    return {
        "requests": requests,
        "violations_pct": _percent(sum(counts.values()), requests),
        **{f"{name}_pct": _percent(count, requests) for name, count in counts.items()},
        "goodput_per_s": round((requests - sum(counts.values())) / length_s, 3),
        "sent_late_ms": _milliseconds(lags, 99) or 0.0,
        "models": shown,
    }


def patient(sent_late_s: float | None, length_s: float) -> float:
    """How late a request was sent; one that never was, for want of connections, counts as the whole run."""
    return length_s if sent_late_s is None else sent_late_s


class Source:
    """The process of `load`, carrying out one plan; use as a context manager."""

    def __init__(self, port: int, targets: Sequence[dict[str, Any]], plan: dict[str, Any], folder: Path) -> None:
        self._plan = folder / "plan.json"
        self._result = folder / "result.json"
        self._plan.write_text(json.dumps({"host": "127.0.0.1", "port": port, "targets": list(targets), **plan}))

    def __enter__(self) -> Source:
        command = [sys.executable, "-m", "benchmarks.serving.load", str(self._plan), str(self._result)]
        self._process = subprocess.Popen(
            command, cwd=systems.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def begin(self) -> float:
        """Wait until it is ready and let it begin; returns the time at which it does (monotonic)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise errors.TransientError("the source of load did not start")
        at = time.monotonic() + 0.2
        self._process.stdin.write(f"{at}\n")
        self._process.stdin.flush()
        return at

    def report(self, *, timeout_s: float) -> dict[str, Any]:
        """Wait for its end; what happened to each request."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise errors.TransientError("the source of load did not end") from exc
        if code:
            raise errors.TransientError(f"the source of load ended with {code}")
        found: dict[str, Any] = json.loads(self._result.read_text())
        return found


def closed(
    port: int,
    targets: Sequence[dict[str, Any]],
    folder: Path,
    *,
    clients: int,
    seconds: float,
    weights: Sequence[float] = (1.0,),
) -> dict[str, Any]:
    """Closed loop: the source's report."""
    plan = {"clients": clients, "seconds": seconds, "weights": list(weights)}
    with Source(port, targets, plan, folder) as source:
        source.begin()
        return source.report(timeout_s=seconds + 40)


def answered(report: dict[str, Any], *, after_s: float, before_s: float) -> list[float]:
    """Latencies, in seconds, of the good answers that came between two times since the beginning."""
    every = zip(report["at_s"], report["status"], report["latency_s"], strict=True)
    return [latency for at, status, latency in every if status == 200 and after_s < at + latency <= before_s]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}


def _sleep_until(at: float) -> None:
    time.sleep(max(0.0, at - time.monotonic()))


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 3) if whole else 0.0


def _milliseconds(seconds: Sequence[float], rank: float) -> float | None:
    found = smoothing.percentile(seconds, rank)
    return None if found is None else round(1000 * found, 2)
