"""Which share an application gets: the remaining-work policy.

Pure: an observation and a state go in, a decision and the next state come out. Time is in the observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Protocol, TypeVar

from airflow_mlscale.control import deadline, smoothing
from airflow_mlscale.spark.model import (
    Decision,
    Mode,
    Observation,
    Outlook,
    Plan,
    Profile,
    Progress,
    Promise,
    Stage,
    keyed,
)
from airflow_mlscale.spark.profile import size_ratio
from airflow_mlscale.spark.settings import DeadlineSettings

IN_FLIGHT = 0.9
"""Part of a running task that may at most be taken for done before Spark reports its end."""
BETA_RANGE = (0.3, 5.0)
_FIRST_SIGN_CORE_S = 0.01
_DRIVER_AT_REST = 0.25
"""Cores for a driver that only schedules tasks."""
_ANY = 10.0
"""So many times the maximum is as good as any number."""


@dataclass(frozen=True)
class Work:
    """What is done and what is left, by the profile."""

    done_core_s: float
    pieces: tuple[deadline.Piece, ...]
    """Left, in order of execution."""
    gaps_s: float
    """Driver gaps still to come."""

    @property
    def left_core_s(self) -> float:
        return sum(piece.work_core_s for piece in self.pieces)

    @property
    def fraction(self) -> float:
        total = self.done_core_s + self.left_core_s
        return self.done_core_s / total if total > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class State:
    """What the policy remembers from step to step."""

    last: Decision | None = None
    used_core_s: float = 0.0
    startup_core_s: float = 0.0
    """Used before the first stage; says nothing about the cost of tasks."""
    finished_core_s: float = 0.0
    """Profiled work of finished tasks when `beta` was last measured."""
    beta: float = 1.0
    """Live ÷ profiled core-seconds of tasks."""
    rate: smoothing.Ewma
    """Cores used while tasks run."""
    expected: smoothing.Ewma
    """Cores that share and running tasks should have allowed."""
    guaranteed_at: float = -inf
    """When a guarantee was last found necessary."""


StateT = TypeVar("StateT")


class Policy(Protocol[StateT]):
    """Decides an application's share, step by step."""

    def start(self) -> StateT:
        """The state before the first step."""

    def __call__(self, seen: Observation, state: StateT, dt_s: float) -> tuple[Decision, StateT]:
        """One step, ``dt_s`` seconds after the last: what to do, and the next state."""


def make(settings: DeadlineSettings, *, promise: Promise, profile: Profile | None, host_cores: float) -> Policy[Any]:
    """The policy that ``settings.policy`` names."""
    return RemainingWork(promise=promise, profile=profile, settings=settings, host_cores=host_cores)


@dataclass(frozen=True, kw_only=True)
class RemainingWork:
    """Cores = β·W_rem ÷ T_rem, with what a stage can use, driver gaps, and both modes (DESIGN §4)."""

    promise: Promise
    profile: Profile | None
    settings: DeadlineSettings
    host_cores: float
    """Slots are assumed to be this many until executors have registered."""

    def start(self) -> State:
        window = smoothing.Ewma(self.settings.rate_window_s)
        return State(rate=window, expected=window)

    def __call__(self, seen: Observation, state: State, dt_s: float) -> tuple[Decision, State]:
        """One step; ``dt_s`` seconds after the last."""
        high = self.settings.high(self._slots(seen))
        state = self._measured(seen, state, dt_s)
        plan = best_plan(self.profile, seen.progress)
        if plan is None:
            decision = self._cold(high)
        else:
            state = self._calibrated(plan, seen, state)
            work = remaining(plan, seen, beta=state.beta, startup_core_s=state.startup_core_s, high=high)
            decision, state = self._warm(plan, seen, state, work, high)
        decision = replace(self._steady(decision, state.last), driver_cores=self._driver(seen))
        return decision, replace(state, last=decision, used_core_s=seen.used_core_s)

    def _driver(self, seen: Observation) -> float:
        """Gaps are time that no executor can shorten, so the driver is kept from starving in them."""
        tasks = seen.progress.runnable_tasks if seen.progress else 0
        return min(self.settings.driver_cores, _DRIVER_AT_REST if tasks else self.settings.driver_cores)

    def _slots(self, seen: Observation) -> float:
        return (seen.progress.slots if seen.progress else 0) or self.host_cores

    def _measured(self, seen: Observation, state: State, dt_s: float) -> State:
        active = seen.progress.active_tasks if seen.progress else 0
        if dt_s <= 0 or active == 0 or state.last is None:
            return state
        allowed = state.last.ceiling_cores if state.last.ceiling_cores is not None else state.last.guaranteed_cores
        used = max(0.0, seen.used_core_s - state.used_core_s) / dt_s
        return replace(
            state,
            rate=smoothing.ewma(state.rate, used, dt_s=dt_s),
            expected=smoothing.ewma(state.expected, min(allowed, active), dt_s=dt_s),
        )

    def _calibrated(self, plan: Plan, seen: Observation, state: State) -> State:
        """β is measured when tasks finish: in between, use grows and finished work does not."""
        if not _begun(seen):
            return replace(state, startup_core_s=seen.used_core_s)
        finished, _, prior = _accounted(plan, seen.progress)
        used = seen.used_core_s - state.startup_core_s
        if finished == state.finished_core_s or used <= 0:
            return state
        fraction = finished / plan.stages_core_s
        trust = self.settings.trust_core_s * (1 - fraction)  # the profile is believed less as evidence grows
        # Tasks that begin when others end have done nothing yet; those midway make β a little too high: safe.
        beta = (used + trust * prior) / max(1e-9, finished + trust)
        # An overestimated profile saves nothing late in the job, but trusting it can miss the deadline.
        low = BETA_RANGE[0] + (1 - BETA_RANGE[0]) * fraction
        return replace(state, beta=min(BETA_RANGE[1], max(low, beta)), finished_core_s=finished)

    def _cold(self, high: float) -> Decision:
        return Decision(
            guaranteed_cores=high,
            ceiling_cores=high if self.settings.mode is Mode.RESERVE else None,
            needed_cores=high,
            progress=None,
            finish_at=None,
            reason="no profile yet: the full share, and this run is learned from",
        )

    def _warm(self, plan: Plan, seen: Observation, state: State, work: Work, high: float) -> tuple[Decision, State]:
        target_at = self.promise.started_at + self.settings.aim * self.promise.duration_s
        pieces = _scaled(work.pieces, state.beta)
        needed = deadline.cores_within(pieces, target_at - seen.now - work.gaps_s)
        finish_at = seen.now + work.gaps_s + deadline.duration_s(pieces, high)
        amount = f"{needed:.2f} cores" if needed <= _ANY * high else f"more than {high:g} cores"
        base = Decision(
            guaranteed_cores=high,
            ceiling_cores=None,
            needed_cores=min(needed, _ANY * high),  # stays a number in JSON and in charts
            progress=work.fraction,
            finish_at=finish_at,
            finish_low_at=finish_at,
            finish_high_at=finish_at,
            outlook=Outlook.ON_TRACK if finish_at <= self.promise.deadline_at else Outlook.WILL_MISS,
            reason=f"{state.beta * work.left_core_s:.1f} core-s left need {amount}",
        )
        if not _begun(seen):
            return self._starting(plan, seen, base, high), state
        if self._parked(seen) and needed <= self.settings.headroom * high:
            return self._park(state, base, high), state
        if self.settings.mode is Mode.RESERVE:
            return self._reserve(seen, state, base, high), state
        return self._work_conserving(seen, state, base, high)

    def _starting(self, plan: Plan, seen: Observation, base: Decision, high: float) -> Decision:
        """Executors that start need CPU in time, not tasks: what is lost here no later share makes up for.

        They never start under a small ceiling: their JVM would take long to warm up.
        """
        ceiling = high if self.settings.mode is Mode.RESERVE else None
        if seen.used_core_s < _FIRST_SIGN_CORE_S:
            cores, reason = self._least(), "no executor is there yet"
        elif seen.elapsed_s >= plan.lead_s:
            cores, reason = high, "executors start later than profiled"
        else:
            left = max(0.0, plan.startup_core_s - seen.used_core_s)
            cores = max(base.needed_cores, left / max(1.0, plan.lead_s - seen.elapsed_s))
            reason = f"executors are starting; {base.reason}"
        return replace(
            base, guaranteed_cores=min(high, max(self._least(), cores)), ceiling_cores=ceiling, reason=reason
        )

    def _park(self, state: State, base: Decision, high: float) -> Decision:
        """No guarantee while the driver keeps the executors waiting; the ceiling stays for when it does not."""
        ceiling = None
        if self.settings.mode is Mode.RESERVE:
            last = state.last.ceiling_cores if state.last else None
            ceiling = max(self._least(), last or high)
        return replace(
            base, guaranteed_cores=self._least(), ceiling_cores=ceiling, reason="no stage is running: guarantee parked"
        )

    def _least(self) -> float:
        return self.settings.low if self.settings.mode is Mode.RESERVE else self.settings.min_cores or 0.0

    def _reserve(self, seen: Observation, state: State, base: Decision, high: float) -> Decision:
        usable = min(high, max(self._least(), (seen.progress.runnable_tasks if seen.progress else 0) or high))
        cores = min(usable, max(self._least(), base.needed_cores / _delivered(state)))
        return replace(base, guaranteed_cores=cores, ceiling_cores=cores)

    def _work_conserving(self, seen: Observation, state: State, base: Decision, high: float) -> tuple[Decision, State]:
        needed = min(high, max(self._least(), base.needed_cores))
        rate = state.rate.value
        if needed > self.settings.headroom * high:
            decision = replace(base, guaranteed_cores=needed, reason=f"{base.reason}, close to all there are")
            return decision, replace(state, guaranteed_at=seen.now)
        if rate is None or rate < needed:
            why = "idle cycles are not known to suffice" if rate is None else f"idle cycles gave only {rate:.2f}"
            decision = replace(base, guaranteed_cores=needed, reason=f"{base.reason}; {why}")
            return decision, replace(state, guaranteed_at=seen.now if rate is not None else state.guaranteed_at)
        if seen.now - state.guaranteed_at < self.settings.settle_s:
            return replace(base, guaranteed_cores=needed, reason=f"{base.reason}; guaranteed for a while"), state
        reason = f"idle cycles suffice: {rate:.2f} cores for free, {base.needed_cores:.2f} needed"
        return replace(base, guaranteed_cores=self._least(), reason=reason), state

    def _parked(self, seen: Observation) -> bool:
        """Whether the driver has kept the executors waiting for a while."""
        progress = seen.progress
        if progress is None or not progress.stages or progress.runnable_tasks:
            return False
        ended = max((stage.completed_at or 0.0 for stage in progress.stages), default=0.0)
        return ended > 0 and seen.now - ended >= self.settings.park_after_s

    def _steady(self, decision: Decision, last: Decision | None) -> Decision:
        """The last share again, unless the change is worth an action."""
        cores = round(decision.guaranteed_cores, 2)
        ceiling = None if decision.ceiling_cores is None else max(cores, round(decision.ceiling_cores, 2))
        if last and self._near(last.guaranteed_cores, cores) and self._near(last.ceiling_cores, ceiling):
            cores, ceiling = last.guaranteed_cores, last.ceiling_cores
        return replace(decision, guaranteed_cores=cores, ceiling_cores=ceiling)

    def _near(self, last: float | None, proposed: float | None) -> bool:
        if last is None or proposed is None or min(last, proposed) == 0:  # from and to nothing is always worth it
            return last == proposed
        return last == smoothing.deadband(last, proposed, relative=self.settings.deadband, absolute=0.02)


def best_plan(profile: Profile | None, progress: Progress | None) -> Plan | None:
    """The plan that explains most of the stages seen so far; among equals the heaviest."""
    if profile is None or not profile.plans:
        return None
    seen = keyed(progress.stages).keys() if progress else set()
    return max(profile.plans, key=lambda plan: (len(seen & {s.key for s in plan.stages}), plan.core_s))


def remaining(plan: Plan, seen: Observation, *, beta: float, startup_core_s: float, high: float) -> Work:
    """Done and remaining work of a plan's tasks.

    Finished tasks count as done; of running ones as much as the meter allows, never more than `IN_FLIGHT`.
    Profiled stages before the latest one seen that never came are dropped. Stages that no profile knows
    cost per task what the profile's mean task costs, once they are submitted: many of those that only
    wait are skipped in the end. The start of the executors is a gap: tasks wait for it.
    """
    stages = keyed(seen.progress.stages) if seen.progress else {}
    finished, in_flight, _ = _accounted(plan, seen.progress)
    metered = max(0.0, (seen.used_core_s - startup_core_s) / beta - finished)
    extra = min(IN_FLIGHT * in_flight, metered)
    begun = extra / in_flight if in_flight > 0 else 0.0

    pieces: list[deadline.Piece] = []
    gaps_s = plan.tail_s
    if not stages:
        startup_left = max(0.0, plan.startup_core_s - seen.used_core_s)
        gaps_s += max(plan.lead_s - seen.elapsed_s, startup_left / high)
    latest = max((index for index, known in enumerate(plan.stages) if known.key in stages), default=-1)
    for index, known in enumerate(plan.stages):
        stage = stages.get(known.key)
        if stage is not None:
            pieces.append(_piece(stage, known.core_s, begun))
        elif index > latest:
            pieces.append(deadline.Piece(work_core_s=known.core_s, parallelism=known.tasks))
            gaps_s += known.gap_s
    names = {known.key for known in plan.stages}
    new = [stage for key, stage in stages.items() if key not in names and stage.submitted_at is not None]
    pieces += [_piece(stage, _mean_task(plan) * stage.tasks, 0.0) for stage in new]
    return Work(finished + extra, tuple(piece for piece in pieces if piece.work_core_s > 0), gaps_s)


def _begun(seen: Observation) -> bool:
    """Whether the first stage has come."""
    return seen.progress is not None and bool(seen.progress.stages)


def _piece(stage: Stage, core_s: float, begun: float) -> deadline.Piece:
    if not stage.running and stage.completed_at is not None:
        return deadline.Piece(work_core_s=0.0, parallelism=1.0)
    tasks = max(1, stage.tasks)
    left = max(0.0, tasks - stage.complete - begun * stage.active)
    return deadline.Piece(work_core_s=core_s * left / tasks, parallelism=max(1, stage.tasks - stage.complete))


def _accounted(plan: Plan, progress: Progress | None) -> tuple[float, float, float]:
    """Profiled core-seconds of finished tasks and of running ones, and the live ÷ profiled input size."""
    stages = keyed(progress.stages) if progress else {}
    finished = in_flight = 0.0
    live_bytes = known_bytes = 0
    for known in plan.stages:
        stage = stages.get(known.key)
        if stage is None:
            continue
        over = not stage.running and stage.completed_at is not None
        tasks = max(1, stage.tasks)
        finished += known.core_s * (1.0 if over else stage.complete / tasks)
        in_flight += known.core_s * stage.active / tasks if stage.running else 0.0
        if over:
            live_bytes += stage.input_bytes
            known_bytes += known.input_bytes
    return finished, in_flight, size_ratio(live_bytes, known_bytes)


def _mean_task(plan: Plan) -> float:
    tasks = sum(stage.tasks for stage in plan.stages)
    return plan.stages_core_s / tasks if tasks else 0.0


def _scaled(pieces: Sequence[deadline.Piece], beta: float) -> tuple[deadline.Piece, ...]:
    return tuple(replace(piece, work_core_s=beta * piece.work_core_s) for piece in pieces)


def _delivered(state: State) -> float:
    """Part of the allowed cores that the application really used, so that a share can make up for the rest."""
    if not state.rate.value or not state.expected.value:
        return 1.0
    return min(1.0, max(0.6, state.rate.value / state.expected.value))
