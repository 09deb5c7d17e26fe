"""What is left of an application, and what that will cost: its profile corrected by what was seen so far.

Pure. Belongs here: choosing the plan, scaling it to the live input, measuring β, building the graph of what
is left. Does not belong here: what share follows from it (policy), how a profile is learned (profile).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log, sqrt

from airflow_mlscale.control import schedule
from airflow_mlscale.spark.model import (
    Observation,
    Plan,
    Profile,
    Progress,
    Stage,
    StageProfile,
    StageStatus,
    Tally,
    numbered,
)
from airflow_mlscale.spark.profile import SCALE_BYTES, size_ratio

IN_FLIGHT = 0.8
"""Part of a running task that may at most be taken for done before Spark reports its end."""
OVERDUE = 0.25
"""Part of what a task has got that it is still thought to need, once it has got more than was expected."""
BETA_RANGE = (0.2, 8.0)
_TELLING_PART = 0.25
"""Part of a stage's tasks whose input tells that of all."""
_KIND_TRUST = 0.5
_STAGE_TRUST = 1.0
"""Weight of the more general β in a kind's, as a part of the profile's; in a stage's, of its work to come."""
_CAUTION = 0.7
"""How far a β below 1 is drawn to 1 as work is done."""
_LEAST_TASK_SPREAD = 0.15
_UNKNOWN_SPREAD = 0.12
_LEAST_SPREAD = 0.02
"""Relative standard deviation of the work after one run, and at least."""
_STRAIGHT = StageProfile(key="", core_s=0.0, tasks=1)
"""All tasks cost the same."""


@dataclass(frozen=True)
class Beta:
    """Live ÷ expected cost of tasks; the special ones lean on the general ones as far as they lack evidence."""

    overall: float = 1.0
    by_kind: Mapping[str, float] = field(default_factory=dict)
    by_key: Mapping[str, float] = field(default_factory=dict)

    def of(self, known: StageProfile) -> float:
        return self.by_key.get(known.key) or self.by_kind.get(known.kind) or self.overall


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is done and what is left."""

    nodes: tuple[schedule.Node, ...]
    """Stages that are left, in the order of the plan, at their expected cost (β included)."""
    done_core_s: float
    """Expected cost of what is done."""
    start_s: float
    """Seconds before anything runs: executors that still have to start."""
    tail_s: float
    """Seconds from the last stage to the end of the application."""
    longest_core_s: float
    """The longest task that is left: what one that fails, or a straggler, would take once more."""
    uncertainty: float
    """Relative standard deviation of the cost of what is left."""

    @property
    def core_s(self) -> float:
        return sum(node.work_core_s for node in self.nodes)

    @property
    def fraction(self) -> float:
        total = self.done_core_s + self.core_s
        return self.done_core_s / total if total > 0 else 0.0

    @property
    def idle_s(self) -> float:
        """Seconds at the two ends that no core shortens."""
        return self.start_s + self.tail_s

    def scaled(self, factor: float, *, more_core_s: float = 0.0) -> tuple[schedule.Node, ...]:
        """The nodes, if all work cost so many times as much, and so much more came at the end: now, if none is left."""
        nodes = tuple(
            replace(
                node,
                phases=tuple(schedule.Phase(phase.work_core_s * factor, phase.parallelism) for phase in node.phases),
            )
            for node in self.nodes
        )
        if more_core_s <= 0:
            return nodes
        parallelism = max((phase.parallelism for node in nodes for phase in node.phases), default=1.0)
        more = schedule.Phase(more_core_s, parallelism)
        return (*nodes, schedule.Node(phases=(more,), after=tuple(range(len(nodes)))))


def best_plan(profile: Profile | None, progress: Progress | None) -> Plan | None:
    """The plan that explains most of the stages seen so far; among equals the heaviest.

    The paper's symbolic plans, learned instead of generated: after each stage those that no longer match
    drop out, and of the others the worst is assumed. None when stages have come and none of them is known,
    as after a change of the application.
    """
    if profile is None or not profile.plans:
        return None
    seen = {key for key, stage in numbered(progress.stages).items() if stage.submitted_at} if progress else set()
    explained, plan = max(
        ((len(seen & {stage.key for stage in plan.stages}), plan) for plan in profile.plans),
        key=lambda each: (each[0], each[1].core_s),
    )
    return plan if explained or not seen else None


def expected(plan: Plan, progress: Progress | None) -> Plan:
    """The plan scaled to the live input: W·(input ÷ profiled input)^elasticity, stage by stage.

    A stage that has begun is scaled by its own input, the others by that of all storage read so far.
    """
    live = numbered(progress.stages) if progress else {}
    pairs = [(known, live[known.key]) for known in plan.stages if known.key in live]
    scans = [(known, stage) for known, stage in pairs if known.kind == "scan" and known.input_bytes >= SCALE_BYTES]
    overall = size_ratio(
        int(sum(known.input_bytes * _own_ratio(known, stage) for known, stage in scans)),
        sum(known.input_bytes for known, _ in scans),
    )
    stages = []
    for known in plan.stages:
        stage = live.get(known.key)
        ratio = _own_ratio(known, stage) if stage is not None and stage.complete else overall
        factor = ratio**known.elasticity
        stages.append(
            replace(known, core_s=known.core_s * factor, longest_core_s=known.longest_core_s * min(factor, ratio))
        )
    return replace(plan, stages=tuple(stages))


def beta(plan: Plan, seen: Observation, *, trust: float) -> Beta:
    """β overall, by kind of stage and by stage: (used + trust·prior) ÷ (expected + trust).

    Args:
        plan: as `expected`.
        seen: the stages as they are now, and what they have cost.
        trust: weight of the profile as evidence, as a part of its own work; fades as work is done.
    """
    live = numbered(seen.progress.stages) if seen.progress else {}
    rows = [row for known in plan.stages if known.key in live and (row := _evidence(known, live[known.key], seen))]
    done = sum(row.expected_core_s for row in rows)
    fraction = min(1.0, done / plan.stages_core_s) if plan.stages_core_s > 0 else 0.0
    weight = trust * plan.stages_core_s * (1 - fraction)
    overall = _ratio(rows, weight, prior=1.0)
    if overall < 1:  # an overestimated profile saves nothing late, but trusting that all of it is can miss
        overall = max(overall, BETA_RANGE[0] + (1 - BETA_RANGE[0]) * fraction * _CAUTION)
    by_kind = {
        kind: _ratio([row for row in rows if row.known.kind == kind], weight * _KIND_TRUST, prior=overall)
        for kind in {row.known.kind for row in rows}
    }
    by_key = {
        row.known.key: _ratio([row], _STAGE_TRUST * (row.known.core_s - row.expected_core_s), by_kind[row.known.kind])
        for row in rows
    }
    return Beta(overall, by_kind, by_key)


@dataclass(frozen=True)
class _Evidence:
    known: StageProfile
    expected_core_s: float
    """Of its finished tasks."""
    used_core_s: float


def _evidence(known: StageProfile, stage: Stage, seen: Observation) -> _Evidence | None:
    tally = seen.by_stage.get(stage.stage_id)
    if tally is None or not stage.complete or tally.core_s <= 0:
        return None
    return _Evidence(
        known, known.core_s * known.part_done(stage.complete, stage.tasks), tally.finished_core_s(stage, known)
    )


def left(plan: Plan, seen: Observation, costs: Beta, *, slots: float, lead_left_s: float) -> Left:
    """What is left of the plan.

    Finished tasks are done; running ones as far as the meter says, at most `IN_FLIGHT`. Stages that were
    skipped, or that never came although later ones did and nothing holds them up, are dropped. Stages that the
    plan does not know cost per task what its mean task costs, once they are submitted: many that only wait are
    skipped.

    Args:
        plan: as `expected`.
        seen: now.
        costs: from `beta`.
        slots: tasks that can run at once.
        lead_left_s: seconds until the first stage can run, if none has come.
    """
    live = numbered(seen.progress.stages) if seen.progress else {}
    latest = max((index for index, known in enumerate(plan.stages) if known.key in live), default=-1)
    nodes: list[schedule.Node] = []
    position: dict[str, int] = {}
    done = variance = longest_left = 0.0
    idle = idle_now_s(seen)
    for stranger, cost in _unplanned(plan, live, costs):
        remaining, finished = _remaining(stranger, cost, seen)
        done += finished
        if remaining > 0:
            nodes.append(_node(stranger.tasks - stranger.complete, remaining, slots, 0.0, (), 0.0))
    strangers = tuple(range(len(nodes)))
    for index, known in enumerate(plan.stages):
        stage = live.get(known.key)
        if stage is None and index <= latest and not any(key in position for key in known.after):
            continue
        remaining, tasks = known.core_s * costs.of(known), known.tasks
        if stage is not None:
            remaining, finished = _remaining(stage, remaining, seen, known)
            tasks = stage.tasks - stage.complete
            done += finished
        if remaining <= 0:
            continue
        longest = known.longest_core_s * costs.of(known)
        after, gap_s = tuple(position[key] for key in known.after if key in position), known.gap_s
        if stage is not None and stage.submitted_at is not None:
            after, gap_s = (), 0.0
            # Long tasks linger: what is left of a stage may be longer than the mean says, and the longer they
            # have run beyond what was expected of them, the more they may still have to do.
            got = seen.by_stage.get(stage.stage_id, Tally()).last_wave_core_s
            longest = max((1 - IN_FLIGHT) * longest, longest - got, OVERDUE * got if got > longest else 0.0)
            remaining = max(remaining, longest)
        elif not after:
            after, gap_s = strangers, max(0.0, gap_s - idle)
        position[known.key] = len(nodes)
        nodes.append(_node(tasks, remaining, slots, longest, after, gap_s))
        variance += _variance(known, remaining, tasks)
        longest_left = max(
            longest_left, max(known.longest_core_s, known.core_s / max(1, known.tasks)) * costs.of(known)
        )
    ahead = sum(node.work_core_s for node in nodes)
    return Left(
        nodes=tuple(nodes),
        done_core_s=done,
        start_s=0.0 if live else lead_left_s,
        tail_s=plan.tail_s if nodes else max(0.0, plan.tail_s - idle),
        longest_core_s=longest_left,
        uncertainty=_uncertainty(plan, costs, done, ahead, variance),
    )


def idle_now_s(seen: Observation) -> float:
    """Seconds since the last stage ended, if none runs."""
    stages = seen.progress.stages if seen.progress else ()
    if not stages or any(stage.running for stage in stages):
        return 0.0
    return max(0.0, seen.now - max((stage.completed_at or 0.0 for stage in stages), default=seen.now))


def _own_ratio(known: StageProfile, stage: Stage) -> float:
    """How much more input the stage has than profiled, extrapolated from its finished tasks.

    The tasks of a scan are counted before any has finished: of twice the data, in splits of the same size,
    there are twice as many. Short tasks finish first, so less input than that is believed when all are done.
    """
    counted = min(5.0, max(0.2, max(1, stage.tasks) / max(1, known.tasks))) if known.kind == "scan" else 1.0
    if not stage.complete:
        return counted
    measured = size_ratio(int(stage.input_bytes * stage.tasks / stage.complete), known.input_bytes)
    if stage.complete >= stage.tasks:
        return measured
    weight = min(1.0, stage.complete / (_TELLING_PART * stage.tasks))
    return max(counted, float(counted ** (1 - weight) * measured**weight))


def _ratio(rows: Sequence[_Evidence], weight: float, prior: float) -> float:
    done = sum(row.expected_core_s for row in rows)
    used = sum(row.used_core_s for row in rows)
    if done + weight <= 0:
        return prior
    return min(BETA_RANGE[1], max(BETA_RANGE[0], (used + weight * prior) / (done + weight)))


def _unplanned(plan: Plan, live: Mapping[str, Stage], costs: Beta) -> list[tuple[Stage, float]]:
    names = {known.key for known in plan.stages if known.core_s > 0}
    tasks = sum(known.tasks for known in plan.stages)
    mean = costs.overall * plan.stages_core_s / tasks if tasks else 0.0
    return [
        (stage, mean * stage.tasks)
        for key, stage in live.items()
        if key not in names and stage.submitted_at is not None
    ]


def _remaining(stage: Stage, cost: float, seen: Observation, known: StageProfile | None = None) -> tuple[float, float]:
    """Core-seconds left and done of a stage that will cost ``cost``, on the course of the ``known`` one."""
    if stage.status is StageStatus.SKIPPED:
        return 0.0, 0.0
    if stage.over:
        return 0.0, cost
    course = known or _STRAIGHT
    finished = course.part_done(stage.complete, stage.tasks)
    running = course.part_done(stage.complete + stage.active, stage.tasks) - finished
    tally = seen.by_stage.get(stage.stage_id, Tally())
    metered = max(0.0, tally.core_s - tally.finished_core_s(stage, course))
    begun = min(IN_FLIGHT * running * cost, metered)
    remaining = max(0.0, cost - finished * cost - begun)
    return remaining, cost - remaining


def _node(
    tasks: int, work_core_s: float, slots: float, longest_core_s: float, after: tuple[int, ...], gap_s: float
) -> schedule.Node:
    parts = schedule.phases(work_core_s, tasks=max(1, tasks), slots=slots, longest_core_s=longest_core_s)
    return schedule.Node(phases=parts, after=after, gap_s=gap_s)


def _variance(known: StageProfile, remaining_core_s: float, tasks: int) -> float:
    """Of what is left of a stage, as far as its tasks differ: the longest is taken for three deviations off."""
    mean = known.core_s / max(1, known.tasks)
    spread = min(1.0, max(_LEAST_TASK_SPREAD, (known.longest_core_s / mean - 1) / 3)) if mean > 0 else 0.0
    return (spread * remaining_core_s) ** 2 / max(1, tasks)


def _uncertainty(plan: Plan, costs: Beta, done: float, ahead: float, variance: float) -> float:
    """The profile's own spread and how far it has proved wrong, which count less the more is done; and the tasks'."""
    if ahead <= 0:
        return 0.0
    spread = _UNKNOWN_SPREAD if plan.spread is None else max(_LEAST_SPREAD, plan.spread)
    wrong = abs(log(costs.overall))
    return sqrt((spread**2 + (wrong / 2) ** 2) * ahead / (done + ahead) + variance / ahead**2)
