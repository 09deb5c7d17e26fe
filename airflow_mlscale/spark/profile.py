"""What a run teaches about an application: metering by stage, merging into the profile, its JSON form.

Pure; reading and writing files is `adapters.profile_store`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from airflow_mlscale.spark.model import Plan, Profile, Progress, Stage, StageProfile, keyed

VERSION = 1
PLANS_KEPT = 8
_SCALE_BYTES = 1 << 20
"""Below this much input a ratio of sizes says nothing about the work."""


@dataclass(frozen=True)
class Ledger:
    """Core-seconds of a run, booked to its stages as they are metered."""

    startup_core_s: float = 0.0
    by_stage: Mapping[int, float] = field(default_factory=dict)


def book(ledger: Ledger, core_s: float, before: Progress | None, now: Progress | None) -> Ledger:
    """Book core-seconds used between two readings to the stages that ran between them.

    A stage's part follows its running tasks and the run time of those that just finished; what was used
    while none ran belongs to the last stage (clean-up), or to the start when there was none yet.
    """
    if core_s <= 0:
        return ledger
    stages = now.stages if now else ()
    if not stages:
        return replace(ledger, startup_core_s=ledger.startup_core_s + core_s)
    run_before = {stage.stage_id: stage.run_time_s for stage in (before.stages if before else ())}
    weights = {
        stage.stage_id: (stage.active if stage.running else 0)
        + max(0.0, stage.run_time_s - run_before.get(stage.stage_id, 0.0))
        for stage in stages
    }
    total = sum(weights.values())
    if total <= 0:
        weights, total = {stages[-1].stage_id: 1.0}, 1.0
    booked = dict(ledger.by_stage)
    for stage_id, weight in weights.items():
        if weight:
            booked[stage_id] = booked.get(stage_id, 0.0) + core_s * weight / total
    return replace(ledger, by_stage=booked)


def observed(ledger: Ledger, progress: Progress, *, submitted_at: float, ended_at: float) -> Plan:
    """The plan of a run that succeeded."""
    stages = keyed(progress.stages)
    order = sorted(stages.values(), key=lambda stage: stage.submitted_at or submitted_at)
    gaps, last_end = _gaps(order, submitted_at=submitted_at)
    metered = sum(ledger.by_stage.values()) > 0
    profiles = tuple(
        StageProfile(
            key=key,
            core_s=ledger.by_stage.get(stage.stage_id, 0.0) if metered else stage.run_time_s,
            tasks=stage.tasks,
            gap_s=gaps.get(stage.stage_id, 0.0),
            input_bytes=stage.input_bytes,
        )
        for key, stage in stages.items()
    )
    first = min((stage.submitted_at or submitted_at for stage in order), default=ended_at)
    return Plan(
        stages=profiles,
        startup_core_s=ledger.startup_core_s,
        lead_s=max(0.0, first - submitted_at),
        tail_s=max(0.0, ended_at - last_end) if order else 0.0,
    )


def _gaps(order: list[Stage], *, submitted_at: float) -> tuple[dict[int, float], float]:
    """Seconds without any stage before each one, and the end of the last."""
    gaps: dict[int, float] = {}
    last_end = _end(order[0], submitted_at) if order else submitted_at
    for before, stage in pairwise(order):
        last_end = max(last_end, _end(before, submitted_at))
        gaps[stage.stage_id] = max(0.0, (stage.submitted_at or last_end) - last_end)
    return gaps, max(last_end, _end(order[-1], submitted_at)) if order else last_end


def _end(stage: Stage, otherwise: float) -> float:
    # A stage still running in the last reading ended with the application: no gap, no tail.
    return stage.completed_at or (float("inf") if stage.running else stage.submitted_at or otherwise)


def learn(profile: Profile | None, key: str, plan: Plan, *, rate: float) -> Profile:
    """The profile after one more run: its course is merged with the same course of before, and comes first."""
    plans = profile.plans if profile else ()
    same = next((known for known in plans if _course(known) == _course(plan)), None)
    merged = _merge(same, plan, rate) if same else plan
    others = tuple(known for known in plans if known is not same)
    return Profile(key=key, plans=(merged, *others)[:PLANS_KEPT])


def _course(plan: Plan) -> tuple[str, ...]:
    return tuple(stage.key for stage in plan.stages)


def size_ratio(live_bytes: int, profiled_bytes: int) -> float:
    """How much more input there is than in the profile, between 1/5 and 5; 1 when either is too small to say."""
    if min(live_bytes, profiled_bytes) < _SCALE_BYTES:
        return 1.0
    return min(5.0, max(0.2, live_bytes / profiled_bytes))


def _merge(old: Plan, new: Plan, rate: float) -> Plan:
    scale = size_ratio(new.input_bytes, old.input_bytes)

    def mix(before: float, now: float) -> float:
        return (1 - rate) * before + rate * now

    stages = tuple(
        replace(now, core_s=mix(was.core_s * scale, now.core_s), gap_s=mix(was.gap_s, now.gap_s))
        for was, now in zip(old.stages, new.stages, strict=True)
    )
    return Plan(
        stages=stages,
        startup_core_s=mix(old.startup_core_s, new.startup_core_s),
        lead_s=mix(old.lead_s, new.lead_s),
        tail_s=mix(old.tail_s, new.tail_s),
        runs=old.runs + 1,
    )


def to_json(profile: Profile) -> dict[str, Any]:
    """Plain values, with the version of this form."""
    return {"version": VERSION, **asdict(profile)}


def from_json(value: Any) -> Profile:
    """A profile from plain values.

    Raises:
        ValueError: not a profile of this version, or numbers that cannot be.
    """
    try:
        if value["version"] != VERSION:
            raise ValueError(f"version {value['version']!r} is not {VERSION}")
        plans = tuple(
            Plan(**{**plan, "stages": tuple(StageProfile(**stage) for stage in plan["stages"])})
            for plan in value["plans"]
        )
        for plan in plans:
            if not 0 <= plan.core_s < float("inf") or not 0 <= plan.gaps_s < float("inf"):
                raise ValueError(f"impossible cost {plan.core_s} core-s or gaps {plan.gaps_s} s")
        return Profile(key=str(value["key"]), plans=plans)
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"not a profile: {exc!r}") from exc
