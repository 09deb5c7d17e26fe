"""What a run teaches about an application: its plan, merging it into the profile, the JSON form.

Pure; reading and writing files is `adapters.profile_store`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from itertools import pairwise
from math import log, sqrt
from typing import Any

from airflow_mlscale.spark import ledger as ledgers
from airflow_mlscale.spark.ledger import Ledger
from airflow_mlscale.spark.model import UNKNOWN_SURPRISE, Plan, Profile, Progress, Stage, StageProfile, Tally, keyed

VERSION = 2
_READABLE = (1, VERSION)
PLANS_KEPT = 8
FORGOTTEN_AFTER = 16
_SAME_COURSE = 0.9
_NEGLIGIBLE_CORE_S = 0.01
_TELLING_PART = 0.02
"""Stages of less of the work do not tell how tasks straggle."""
_LEAST_SURPRISE = 0.5
_REMEMBERED = 0.5
_SAME_MOMENT_S = 0.005
_READING_S = 0.5
"""Between two readings, mostly."""
_LEAST_BOOKED = 0.5
_MOST_BOOKED = 4.0
"""A stage cost at least, and at most, so many times what its part of all run time would cost."""
_LEAST_BUSY = 0.2
_TELLING_RATIO = 1.2
"""Inputs must differ by so much before they say how the work grows with them."""
_ELASTICITY_RANGE = (0.0, 2.0)
_MOST = 1e12
"""No cost and no time in a profile is larger: squares and sums of such numbers are still exact enough to plan with."""
_MOST_BYTES = 1e18
"""Nor is a count."""
SCALE_BYTES = 1 << 20
"""Below this much input a ratio of sizes says nothing about the work."""


def observed(ledger: Ledger, progress: Progress, *, submitted_at: float, ended_at: float) -> Plan:
    """The plan of a run that succeeded."""
    # One that was never submitted in the last reading was about to be skipped.
    stages = {key: stage for key, stage in keyed(progress.stages).items() if stage.submitted_at is not None}
    # The driver answers until its context is stopped: what still ran in the last reading ended soon after it.
    stopped_at = min(ended_at, max(submitted_at, progress.at) + _READING_S) if progress.at else ended_at
    gaps, lead_s, tail_s = _gaps(
        list(stages.values()), submitted_at=submitted_at, stopped_at=stopped_at, ended_at=ended_at
    )
    costs = _costs(stages, ledger)
    order = _order(stages)
    profiles = tuple(
        StageProfile(
            key=key,
            core_s=costs[key],
            tasks=stage.tasks,
            gap_s=gaps.get(stage.stage_id, 0.0),
            input_bytes=stage.input_bytes,
            records=stage.records,
            kind=stage.kind,
            after=order[key],
            longest_core_s=costs[key] * _longest_part(stage),
            curve=ledgers.curve(_tally(stage, ledger)),
            busy=max(_LEAST_BUSY, _tally(stage, ledger).busy(stage)) if stage.over else 1.0,
        )
        for key, stage in stages.items()
    )
    return Plan(stages=profiles, startup_core_s=ledger.startup_core_s, lead_s=lead_s, tail_s=tail_s)


def _costs(stages: Mapping[str, Stage], ledger: Ledger) -> Mapping[str, float]:
    """Core-seconds of each stage as booked, as far as its run time bears it out, if that is known: a stage that ends
    with the application may not have told it.

    Readings are older than the meter, on a busy host by seconds: what a stage used may have been booked to the one
    before it. What no run time bears out goes to all of them, by their run times.
    """
    booked = {key: _tally(stage, ledger).core_s for key, stage in stages.items()}
    if sum(booked.values()) <= 0:
        return {key: stage.run_time_s for key, stage in stages.items()}
    over = {key: stage.run_time_s for key, stage in stages.items() if stage.over}
    if (run_time_s := sum(over.values())) <= 0:
        return booked
    mean = sum(booked[key] for key in over) / run_time_s
    kept = {key: min(booked[key], _MOST_BOOKED * mean * seconds) for key, seconds in over.items()}
    more = mean - sum(kept.values()) / run_time_s
    borne_out = {key: max(kept[key] + more * seconds, _LEAST_BOOKED * mean * seconds) for key, seconds in over.items()}
    return {**booked, **borne_out}


def _tally(stage: Stage, ledger: Ledger) -> Tally:
    return ledger.by_stage.get(stage.stage_id, Tally())


def _gaps(
    stages: list[Stage], *, submitted_at: float, stopped_at: float, ended_at: float
) -> tuple[dict[int, float], float, float]:
    """Seconds without any stage: before each one after the first, before the first, after the last."""
    gaps: dict[int, float] = {}
    busy_until = submitted_at
    for stage in sorted(stages, key=lambda stage: stage.submitted_at or submitted_at):
        begun = stage.submitted_at or busy_until
        gaps[stage.stage_id] = max(0.0, begun - busy_until)
        busy_until = max(busy_until, stage.completed_at or stopped_at)
    first = next(iter(gaps), None)
    lead_s = gaps.pop(first) if first is not None else max(0.0, ended_at - submitted_at)
    return gaps, lead_s, max(0.0, ended_at - busy_until) if gaps or first is not None else 0.0


def _order(stages: Mapping[str, Stage]) -> Mapping[str, tuple[str, ...]]:
    """For each stage those whose end it seems to have waited for: the REST API does not tell the graph.

    That is the last one to end before it was submitted, and any that ended in the same moment.
    """
    ends = {key: stage.completed_at for key, stage in stages.items() if stage.completed_at is not None}
    found: dict[str, tuple[str, ...]] = {}
    places = list(stages)
    for place, (key, stage) in enumerate(stages.items()):
        begun = stage.submitted_at or 0.0
        earlier = {name: ends[name] for name in places[:place] if name in ends and ends[name] <= begun + _SAME_MOMENT_S}
        last = max(earlier.values(), default=0.0)
        found[key] = tuple(name for name, end in earlier.items() if end >= last - _SAME_MOMENT_S)
    return found


def _longest_part(stage: Stage) -> float:
    """Part of the stage's work in its longest task, by run time."""
    if not stage.longest_s or stage.run_time_s <= 0:
        return 1.0 / max(1, stage.tasks)
    return min(1.0, stage.longest_s / stage.run_time_s)


def learn(profile: Profile | None, key: str, plan: Plan, *, rate: float) -> Profile:
    """The profile after one more run: its course is merged with the same course of before, and comes first.

    A course that `FORGOTTEN_AFTER` runs in a row did not take is forgotten: the application has changed.
    """
    plans = profile.plans if profile else ()
    same = next((known for known in plans if _same_course(known, plan)), None)
    merged = _merge(same, plan, rate) if same else plan
    others = tuple(
        replace(known, others_since=known.others_since + 1)
        for known in plans
        if known is not same and known.others_since + 1 < FORGOTTEN_AFTER
    )
    return Profile(key=key, plans=(merged, *others)[:PLANS_KEPT])


def _same_course(one: Plan, other: Plan) -> bool:
    """Whether nearly all work of both lies in stages that both have.

    Exact equality would part runs of the same course: the last reading before the driver goes may lack
    its last, short stages.
    """
    common = {stage.key for stage in one.stages} & {stage.key for stage in other.stages}
    return all(
        sum(stage.core_s for stage in plan.stages if stage.key in common) >= _SAME_COURSE * plan.stages_core_s
        for plan in (one, other)
    )


def size_ratio(live_bytes: int, profiled_bytes: int) -> float:
    """How much more input there is than in the profile, between 1/5 and 5; 1 when either is too small to say."""
    if min(live_bytes, profiled_bytes) < SCALE_BYTES:
        return 1.0
    return min(5.0, max(0.2, live_bytes / profiled_bytes))


def _merge(old: Plan, new: Plan, rate: float) -> Plan:
    scale = size_ratio(new.input_bytes, old.input_bytes)

    def mix(before: float, now: float) -> float:
        return (1 - rate) * before + rate * now

    now_by_key = {stage.key: stage for stage in new.stages}
    was_by_key = {stage.key: stage for stage in old.stages}
    mixed = [_mix_stage(was_by_key.get(stage.key), stage, scale, mix) for stage in new.stages]
    # A stage that did not come this time fades; it keeps its place in the order.
    for place, was in enumerate(old.stages):
        if was.key not in now_by_key and (faded := mix(was.core_s, 0.0)) >= _NEGLIGIBLE_CORE_S:
            part = faded / was.core_s
            gone = replace(was, core_s=faded, gap_s=mix(was.gap_s, 0.0), longest_core_s=was.longest_core_s * part)
            mixed.insert(min(place, len(mixed)), gone)
    return Plan(
        stages=tuple(mixed),
        startup_core_s=mix(old.startup_core_s, new.startup_core_s),
        lead_s=mix(old.lead_s, new.lead_s),
        tail_s=mix(old.tail_s, new.tail_s),
        runs=old.runs + 1,
        spread=_spread(old, new, scale, mix),
        surprise=_surprise(old, new, scale),
    )


def _surprise(old: Plan, new: Plan, scale: float) -> float:
    """The worst straggler of this run, or of earlier ones, forgotten by halves."""
    was = {stage.key: stage.longest_core_s * scale**stage.elasticity for stage in old.stages}
    least = _TELLING_PART * new.stages_core_s
    worst = max(
        (
            stage.longest_core_s / was[stage.key] - 1
            for stage in new.stages
            if stage.core_s >= least and was.get(stage.key, 0.0) > 0
        ),
        default=0.0,
    )
    return max(_LEAST_SURPRISE, _REMEMBERED * old.surprise, min(UNKNOWN_SURPRISE, worst))


def _spread(old: Plan, new: Plan, scale: float, mix: Callable[[float, float], float]) -> float:
    """Exponentially weighted standard deviation of runs from what the profile expected of them."""
    expected = sum(stage.core_s * scale**stage.elasticity for stage in old.stages)
    error = new.stages_core_s / expected - 1 if expected > _NEGLIGIBLE_CORE_S else 0.0
    return sqrt(error**2 if old.spread is None else mix(old.spread**2, error**2))


def _mix_stage(
    was: StageProfile | None, now: StageProfile, scale: float, mix: Callable[[float, float], float]
) -> StageProfile:
    if was is None:
        return now
    own = size_ratio(now.input_bytes, was.input_bytes) if was.kind == "scan" else scale
    elasticity = was.elasticity
    if min(was.core_s, now.core_s) > _NEGLIGIBLE_CORE_S and max(own, 1 / own) >= _TELLING_RATIO:
        measured = log(now.core_s / was.core_s) / log(own)
        elasticity = mix(elasticity, min(_ELASTICITY_RANGE[1], max(_ELASTICITY_RANGE[0], measured)))
    factor = own**was.elasticity
    return replace(
        now,
        core_s=mix(was.core_s * factor, now.core_s),
        gap_s=mix(was.gap_s, now.gap_s),
        kind=now.kind or was.kind,
        longest_core_s=mix(was.longest_core_s * factor, now.longest_core_s),
        elasticity=elasticity,
        curve=_mix_curve(was.curve, now.curve, mix),
        busy=mix(was.busy, now.busy),
    )


def _mix_curve(
    was: tuple[float, ...], now: tuple[float, ...], mix: Callable[[float, float], float]
) -> tuple[float, ...]:
    if len(was) != len(now):
        return now or was
    return tuple(round(mix(before, after), 4) for before, after in zip(was, now, strict=True))


def to_json(profile: Profile) -> dict[str, Any]:
    """Plain values, with the version of this form."""
    return {"version": VERSION, **asdict(profile)}


def from_json(value: Any) -> Profile:
    """A profile from plain values.

    Raises:
        ValueError: not a profile of this version, or values that cannot be.
    """
    try:
        if value["version"] not in _READABLE:
            raise ValueError(f"version {value['version']!r} is none of {_READABLE}")
        plans = tuple(_plan_from(plan, value["version"]) for plan in value["plans"])
        return Profile(key=str(value["key"]), plans=plans)
    except (KeyError, TypeError, AttributeError) as exc:
        raise ValueError(f"not a profile: {exc!r}") from exc


def _plan_from(values: Mapping[str, Any], version: int) -> Plan:
    rows = values["stages"]
    if not rows:  # it would promise an end at once
        raise ValueError("a plan has no stages")
    # Version 1 knew no graph: each stage waited for the one before.
    chain = [(), *((row["key"],) for row in rows)]
    stages = tuple(
        _stage_from({**row, "after": row["after"] if version > 1 else chain[place]}) for place, row in enumerate(rows)
    )
    return Plan(**_possible(Plan, {**values, "stages": stages}))


def _stage_from(values: Mapping[str, Any]) -> StageProfile:
    least, most = _ELASTICITY_RANGE
    lists = {"after": tuple(values["after"]), "curve": tuple(values.get("curve", ()))}
    found = StageProfile(**{**_possible(StageProfile, values), **lists})
    if not _LEAST_BUSY <= found.busy <= 1:
        raise ValueError(f"impossible busy {found.busy!r}: it lies between {_LEAST_BUSY:g} and 1")
    if any(before > after for before, after in pairwise((0.0, *found.curve, 1.0))):
        raise ValueError(f"impossible curve {found.curve!r}: parts of the work that grow to 1")
    if not least <= found.elasticity <= most:
        raise ValueError(f"impossible elasticity {found.elasticity!r}: it lies between {least:g} and {most:g}")
    return found


def _possible(kind: type[Plan | StageProfile], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The values, if each can be what its field is declared to be: a file of any origin is read."""
    for each in fields(kind):
        if each.name in values and not _fits(str(each.type), values[each.name]):
            raise ValueError(f"impossible {each.name} {values[each.name]!r}")
    return values


def _fits(declared: str, value: Any) -> bool:
    if declared == "str":
        return isinstance(value, str)
    if declared == "tuple[str, ...]":
        return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
    if declared == "tuple[float, ...]":
        return isinstance(value, list | tuple) and all(_fits("float", each) for each in value)
    if declared.startswith("tuple"):
        return isinstance(value, tuple)
    if value is None:
        return declared == "float | None"
    whole = isinstance(value, int) and not isinstance(value, bool)
    return (whole or (isinstance(value, float) and declared != "int")) and 0 <= value <= (
        _MOST_BYTES if declared == "int" else _MOST
    )
