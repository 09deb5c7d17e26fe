"""Core-seconds of a run, booked to its stages as they are metered.

Pure. Belongs here: whose the work of a step was, and how it grew as tasks finished. Does not belong here:
what that says of the rest (estimate), or of the next run (profile).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from airflow_mlscale.spark.model import Progress, Stage, Tally

CURVE_POINTS = 8
"""A stage's course is noted each time another of so many equal parts of its tasks has finished."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Ledger:
    """What a run has cost so far."""

    startup_core_s: float = 0.0
    by_stage: Mapping[int, Tally] = field(default_factory=dict)


def book(ledger: Ledger, core_s: float, before: Progress | None, now: Progress | None, *, dt_s: float) -> Ledger:
    """Book core-seconds used between two readings to the stages that ran between them.

    A stage's part follows its running tasks and the run time of those that just finished; what was used
    while none ran belongs to the last stage (clean-up), or to the start when there was none yet. A stage that was
    submitted at another time than before is one of another driver, started in place of the first: it begins anew.

    Args:
        ledger: until now.
        core_s: used since the last booking.
        before: the reading of then.
        now: the present one.
        dt_s: seconds since the last booking.
    """
    stages = now.stages if now else ()
    if not stages:
        return replace(ledger, startup_core_s=ledger.startup_core_s + max(0.0, core_s))
    parts = _parts(before, stages) if core_s > 0 else {}
    submitted = {stage.stage_id: stage.submitted_at for stage in (before.stages if before else ())}
    return replace(
        ledger,
        by_stage={
            stage.stage_id: _tallied(
                Tally()
                if submitted.get(stage.stage_id) not in (None, stage.submitted_at)
                else ledger.by_stage.get(stage.stage_id, Tally()),
                stage,
                core_s * parts.get(stage.stage_id, 0.0),
                dt_s,
            )
            for stage in stages
        },
    )


def curve(tally: Tally) -> tuple[float, ...]:
    """Part of a stage's work that was done at each of `CURVE_POINTS` parts of its tasks; empty if nobody saw it."""
    if len(tally.marks) < CURVE_POINTS or tally.marks[-1] <= 0:
        return ()
    return tuple(round(mark / tally.marks[-1], 4) for mark in tally.marks)


def _parts(before: Progress | None, stages: tuple[Stage, ...]) -> Mapping[int, float]:
    run_before = {stage.stage_id: stage.run_time_s for stage in (before.stages if before else ())}
    weights = {
        stage.stage_id: (stage.active if stage.running else 0)
        + max(0.0, stage.run_time_s - run_before.get(stage.stage_id, 0.0))
        for stage in stages
    }
    total = sum(weights.values())
    if total <= 0:
        return {stages[-1].stage_id: 1.0}
    return {stage_id: weight / total for stage_id, weight in weights.items()}


def _tallied(was: Tally, stage: Stage, core_s: float, dt_s: float) -> Tally:
    active = stage.active if stage.running else 0
    waiting = stage.tasks - stage.complete - active
    got = core_s / max(1, active)
    tally = replace(
        was,
        core_s=was.core_s + core_s,
        task_s=was.task_s + active * dt_s,
        last_wave_core_s=was.last_wave_core_s + got if active and waiting <= 0 else 0.0,
    )
    return _marked(tally, stage)


def _marked(tally: Tally, stage: Stage) -> Tally:
    """Notes what finished tasks have cost, at each point that their number has passed since the last note."""
    part = min(1.0, stage.complete / max(1, stage.tasks))
    if part <= tally.noted_part:
        return tally
    cost = max(tally.noted_core_s, tally.while_told(stage))
    slope = (cost - tally.noted_core_s) / (part - tally.noted_part)
    passed = int(part * CURVE_POINTS + _ROUNDING)
    marks = [
        tally.noted_core_s + slope * (point / CURVE_POINTS - tally.noted_part)
        for point in range(len(tally.marks) + 1, passed + 1)
    ]
    return replace(tally, marks=(*tally.marks, *marks), noted_part=part, noted_core_s=cost)
