"""The choices of ROMA about cores: dividing the host among models' wishes, and judging how each model fares.

Pure. What a model wishes is its law's choice (`laws`); moving what was decided is the `controller`'s work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from airflow_mlscale.control import arbitration, smoothing
from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import laws, model, settings

AT_RISK_PART = 0.9
"""Part of the objective above which a model counts as at risk."""

LEAST_CEILING = 0.05
"""Cores below which a ceiling is not set: a request would wait for periods on end."""

_NOT_YET = smoothing.Hysteresis()
_FRESH = laws.LawMemory()
_SEVERITY = {model.Verdict.NO_DATA: 0, model.Verdict.ON_TARGET: 0, model.Verdict.AT_RISK: 1, model.Verdict.VIOLATING: 2}


@dataclass(frozen=True)
class VerdictMemory:
    """A verdict that does not flutter."""

    verdict: model.Verdict = model.Verdict.NO_DATA
    worse: smoothing.Hysteresis = _NOT_YET
    better: smoothing.Hysteresis = _NOT_YET


@dataclass(frozen=True)
class ModelMemory:
    """What control remembers of a model between two steps."""

    law: laws.LawMemory = _FRESH
    verdict: VerdictMemory = VerdictMemory()
    wish: float | None = None
    """Cores it was to have, if the host could give them."""


@dataclass(frozen=True, kw_only=True)
class SetShare:
    """Give a model this share."""

    seen: laws.ModelSeen
    share: cpu.CpuShare
    terms: cpu.Terms
    earned_cores: float
    """At which it earns credit at the dispatcher."""
    verdict: model.Verdict
    trim: float
    reason: str
    changed: bool


Memory = Mapping[str, ModelMemory]
"""By group."""


def decide(
    seen: Sequence[laws.ModelSeen],
    memory: Memory,
    *,
    host_cores: float,
    control: settings.ControlSettings,
    dt_s: float = 1.0,
) -> tuple[tuple[SetShare, ...], Memory]:
    """One step: what each model's law wishes, kept within the model's limits and the host (DESIGN §6)."""
    scene = laws.Scene(host_cores=host_cores, models=len(seen), dt_s=dt_s, control=control)
    law = laws.LAWS[control.law]
    wished = {one.group: law(one, memory.get(one.group, ModelMemory()).law, scene) for one in seen}
    wishes = {group: cores for group, (cores, _) in wished.items()}
    divide = arbitration.proportional if control.law in laws.INTEGRATING else arbitration.fair
    grants = divide(_claims(seen, wishes), host_cores)
    earned = _earned(seen, wishes, grants, host_cores)
    if control.law == "base":
        wishes = {one.group: _steady(one, wish, memory, scene) for one, wish in laws.prompt(seen, wishes, scene)}
        grants = divide(_claims(seen, wishes), host_cores)
    plan, after = [], {}
    for one in seen:
        wish, remembered = wishes[one.group], wished[one.group][1]
        last = memory.get(one.group, ModelMemory())
        cores = grants[one.group]
        if control.law in laws.INTEGRATING and cores < wish - 1e-9:
            remembered = laws.derived_anew(remembered, cores)
        remembered = replace(remembered, contended=cores < wish - 1e-9)
        raw = judge(one.percentile_s, one.spec.objective.seconds, short_of_cores=_short(one, wish, cores))
        verdict = settled(last.verdict, raw, control)
        after[one.group] = ModelMemory(remembered, verdict, wish)
        plan.append(_share(one, last, after[one.group], wish, cores, earned[one.group], control))
    return tuple(plan), after


def _claims(seen: Sequence[laws.ModelSeen], wishes: Mapping[str, float]) -> list[arbitration.Claim]:
    return [
        arbitration.Claim(
            name=one.group,
            wanted=wishes[one.group],
            minimum=min(one.spec.min_cores, wishes[one.group]),
            priority=one.spec.priority,
        )
        for one in seen
    ]


def _earned(
    seen: Sequence[laws.ModelSeen], asked: Mapping[str, float], granted: Mapping[str, float], host_cores: float
) -> Mapping[str, float]:
    """Cores that each model earns credit for: what its load alone is granted.

    Wishes follow the load, so in a burst they are too low for a while. Nobody who asks for less than an even part
    among those that are asked need wait for that behind those who ask for more.
    """
    even = host_cores / max(1, sum(one.arrivals_per_s > 0 for one in seen))
    return {group: cores if cores < asked[group] - 1e-9 else max(cores, even) for group, cores in granted.items()}


def judge(measured_s: float | None, objective_s: float, *, short_of_cores: bool = False) -> model.Verdict:
    """How a measured percentile compares with the objective."""
    if measured_s is None:
        return model.Verdict.NO_DATA
    if measured_s > objective_s:
        return model.Verdict.VIOLATING
    if measured_s > AT_RISK_PART * objective_s or short_of_cores:
        return model.Verdict.AT_RISK
    return model.Verdict.ON_TARGET


def settled(last: VerdictMemory, raw: model.Verdict, control: settings.ControlSettings) -> VerdictMemory:
    """The verdict after one more look: it gets worse or better only once that has held for some steps."""
    if model.Verdict.NO_DATA in (raw, last.verdict):  # nothing to hold on to
        return VerdictMemory(raw)
    worse, held_worse = smoothing.held_for(
        last.worse, _SEVERITY[raw] > _SEVERITY[last.verdict], periods=control.worse_periods
    )
    better, held_better = smoothing.held_for(
        last.better, _SEVERITY[raw] < _SEVERITY[last.verdict], periods=control.better_periods
    )
    if worse or better:
        return VerdictMemory(raw)
    return VerdictMemory(last.verdict, held_worse, held_better)


def places(spec: model.ModelSpec, share: cpu.CpuShare | None, host_cores: float) -> int:
    """Executions of a model that may run side by side: one for each core it may use, at least one.

    More would only slow each other down: an execution runs in one thread.
    """
    most = spec.threads(host_cores)
    if share is None or share.ceiling_cores is None:
        return most
    return max(1, min(most, ceil(share.ceiling_cores - 1e-9)))


def lent(share: cpu.CpuShare, cores: float) -> cpu.CpuShare:
    """A share with so many cores lent on top; one without a ceiling takes idle cores anyway."""
    if share.ceiling_cores is None:
        return share
    return cpu.CpuShare(guaranteed_cores=share.guaranteed_cores, ceiling_cores=share.ceiling_cores + cores)


def _steady(seen: laws.ModelSeen, wish: float, memory: Memory, scene: laws.Scene) -> float:
    """The last wish, unless this one differs enough to be worth a write."""
    last = memory.get(seen.group, ModelMemory()).wish
    if last is None:
        return wish
    low, high = laws.limits(seen, scene.host_cores)
    return min(high, max(low, smoothing.deadband(last, wish, relative=scene.control.deadband)))


def _short(seen: laws.ModelSeen, wish: float, cores: float) -> bool:
    """Whether work waits for cores that the model will not get."""
    return seen.waiting > 0 and (wish >= laws.limits(seen, inf)[1] or cores < wish - 1e-9)


def _share(
    seen: laws.ModelSeen,
    last: ModelMemory,
    now: ModelMemory,
    wish: float,
    cores: float,
    earned_cores: float,
    control: settings.ControlSettings,
) -> SetShare:
    ceiling = None
    if control.mode == "reserve" and control.law != "sharing":
        ceiling = max(cores, LEAST_CEILING)
    return SetShare(
        seen=seen,
        share=cpu.CpuShare(guaranteed_cores=cores, ceiling_cores=ceiling),
        terms=cpu.Terms(
            minimum_cores=min(seen.spec.min_cores, cores),
            priority=cpu.SERVING_PRIORITY + seen.spec.priority,
            ttl_s=control.lease_ttl_s,
        ),
        earned_cores=earned_cores,
        verdict=now.verdict.verdict,
        trim=now.law.trim,
        reason=_reason(seen, now.law, wish, cores, control),
        changed=last.wish is None or wish != last.wish,
    )


def _reason(
    seen: laws.ModelSeen, remembered: laws.LawMemory, wish: float, cores: float, control: settings.ControlSettings
) -> str:
    load = f"{seen.arrivals_per_s:.1f} requests/s × {1000 * (seen.cpu_s_per_request or 0):.1f} ms CPU"
    load = f"{load} × {remembered.trim:.2f}" if control.law == "base" else f"law {control.law}: {load}"
    if cores < wish - 1e-9:
        return f"{load} asks for {wish:.2f} cores; the host is contended"
    if seen.percentile_s is None:
        return f"{load}; no requests in the window"
    return (
        f"{load}; p{seen.spec.objective.percentile:g} {1000 * seen.percentile_s:.1f} ms"
        f" against {seen.spec.objective.milliseconds:g} ms"
    )
