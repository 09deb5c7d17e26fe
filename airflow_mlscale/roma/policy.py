"""The choices of ROMA: how many requests to join, and how many cores each model is guaranteed.

Pure. The queueing order is `queueing`; moving what was decided is the `controller`'s work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from airflow_mlscale.control import arbitration, latency, smoothing
from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import model, settings

AT_RISK_PART = 0.9
"""Part of the objective above which a model counts as at risk."""


@dataclass
class ServiceTimes:
    """Learned seconds of one execution by batch size; sizes are powers of two."""

    weight: float = 0.2
    """Of the newest sample."""
    means: dict[int, float] = field(default_factory=dict)

    def learn(self, size: int, seconds: float) -> None:
        """Blend in one execution of ``size`` requests, as if of the next smaller power of two."""
        size = 1 << (size.bit_length() - 1)
        last = self.means.get(size)
        self.means[size] = seconds if last is None else last + self.weight * (seconds - last)

    def of(self, size: int) -> float:
        """Expected seconds for a known size; 0 when nothing is known yet, so that nothing is refused."""
        if size in self.means:
            return self.means[size]
        below = [known for known in self.means if known < size]
        return self.means[max(below)] * size / max(below) if below else 0.0


def batch_size(times: ServiceTimes, *, waiting: int, slack_s: float, max_batch: int, min_gain: float) -> int:
    """How many of the waiting requests to run together.

    A size is worth it if it saves ``min_gain`` of the service time per request against the best smaller one,
    and allowed while the most urgent request still makes it. A size never tried is tried once.
    """
    best, best_each = 1, times.of(1)
    size = 2
    while size <= min(waiting, max_batch):
        known = size in times.means
        if times.of(size) > slack_s:
            break
        each = times.of(size) / size
        if not known:
            return min(2 * size - 1, waiting, max_batch)
        if each < best_each * (1 - min_gain):
            best, best_each = size, each
        size *= 2
    # Sizes between two powers cost about what the lower one does for each request.
    return min(2 * best - 1, waiting, max_batch) if best > 1 else 1


@dataclass(frozen=True, kw_only=True)
class ModelSeen:
    """One model as measured at a control step."""

    name: str
    group: str
    """Its group of processes at the CPU port."""
    spec: model.ModelSpec
    arrivals_per_s: float
    cpu_s_per_request: float | None
    """CPU seconds that one request costs; None before the first."""
    percentile_s: float | None
    """Measured over the control window; None without requests."""
    requests: int
    """In the control window."""
    waiting: int
    """Requests in the line."""
    used_cores: float
    """Mean since the last step."""


@dataclass(frozen=True)
class ModelMemory:
    """What control remembers of a model between two steps."""

    trim: float = 1.0
    """Slow correction of the feed-forward."""
    cores: float | None = None
    """Last base asked for."""


@dataclass(frozen=True, kw_only=True)
class SetShare:
    """Give a model this share."""

    seen: ModelSeen
    share: cpu.CpuShare
    terms: cpu.Terms
    verdict: model.Verdict
    trim: float
    reason: str
    changed: bool


Memory = Mapping[str, ModelMemory]


def decide(
    seen: Sequence[ModelSeen], memory: Memory, *, host_cores: float, control: settings.ControlSettings
) -> tuple[tuple[SetShare, ...], Memory]:
    """One step: every model's base = λ·s/utilisation · trim, kept within its limits and the host (DESIGN §6)."""
    wished = {one.group: _wish(one, memory.get(one.group, ModelMemory()), host_cores, control) for one in seen}
    claims = [
        arbitration.Claim(
            name=one.group,
            wanted=wished[one.group].cores or 0.0,
            minimum=min(one.spec.min_cores, wished[one.group].cores or 0.0),
            priority=one.spec.priority,
        )
        for one in seen
    ]
    grants = arbitration.priority(claims, host_cores)
    plan = tuple(
        _share(one, memory.get(one.group, ModelMemory()), wished[one.group], grants[one.group], control) for one in seen
    )
    return plan, wished


def judge(measured_s: float | None, objective_s: float, *, short_of_cores: bool = False) -> model.Verdict:
    """How a measured percentile compares with the objective."""
    if measured_s is None:
        return model.Verdict.NO_DATA
    if measured_s > objective_s:
        return model.Verdict.VIOLATING
    if measured_s > AT_RISK_PART * objective_s or short_of_cores:
        return model.Verdict.AT_RISK
    return model.Verdict.ON_TARGET


def _wish(seen: ModelSeen, last: ModelMemory, host_cores: float, control: settings.ControlSettings) -> ModelMemory:
    trim = latency.trim(
        last.trim,
        measured_s=seen.percentile_s,
        objective_s=seen.spec.objective.seconds,
        rate=control.trim_rate,
        low=control.trim_low,
        high=control.trim_high,
    )
    low, high = _limits(seen, host_cores)
    base = latency.base_cores(
        arrivals_per_s=seen.arrivals_per_s * trim,
        cpu_s_per_request=seen.cpu_s_per_request or 0.0,
        utilisation=control.utilisation,
        low=low,
        high=high,
    )
    cores = base if last.cores is None else smoothing.deadband(last.cores, base, relative=control.deadband)
    return ModelMemory(trim, min(high, max(low, cores)))


def _limits(seen: ModelSeen, host_cores: float) -> tuple[float, float]:
    high = min(host_cores, seen.spec.max_cores or inf)
    return min(seen.spec.min_cores, high), high


def _share(
    seen: ModelSeen, last: ModelMemory, wished: ModelMemory, cores: float, control: settings.ControlSettings
) -> SetShare:
    at_limit = (wished.cores or 0.0) >= _limits(seen, inf)[1] or cores < (wished.cores or 0.0) - 1e-9
    return SetShare(
        seen=seen,
        share=cpu.CpuShare.strict(max(cores, 0.01))
        if control.mode == "reserve"
        else cpu.CpuShare(guaranteed_cores=cores),
        terms=cpu.Terms(
            minimum_cores=min(seen.spec.min_cores, cores),
            priority=cpu.SERVING_PRIORITY + seen.spec.priority,
            ttl_s=control.lease_ttl_s,
        ),
        verdict=judge(seen.percentile_s, seen.spec.objective.seconds, short_of_cores=at_limit and seen.waiting > 0),
        trim=wished.trim,
        reason=_reason(seen, wished, cores),
        changed=last.cores is None or wished.cores != last.cores,
    )


def _reason(seen: ModelSeen, wished: ModelMemory, cores: float) -> str:
    load = (
        f"{seen.arrivals_per_s:.1f} requests/s × {1000 * (seen.cpu_s_per_request or 0):.1f} ms CPU × {wished.trim:.2f}"
    )
    if cores < (wished.cores or 0.0) - 1e-9:
        return f"{load} asks for {wished.cores:.2f} cores; the host is contended"
    if seen.percentile_s is None:
        return f"{load}; no requests in the window"
    return (
        f"{load}; p{seen.spec.objective.percentile:g} {1000 * seen.percentile_s:.1f} ms"
        f" against {seen.spec.objective.milliseconds:g} ms"
    )
