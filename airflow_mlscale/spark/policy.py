"""Which share an application gets: the remaining-work policy.

Pure: an observation and a state go in, a decision and the next state come out. Time is in the observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf

from airflow_mlscale.control import deadline, smoothing
from airflow_mlscale.spark.model import Decision, Mode, Observation, Plan, Profile, Progress, Promise, Stage, keyed
from airflow_mlscale.spark.profile import size_ratio
from airflow_mlscale.spark.settings import DeadlineSettings

IN_FLIGHT = 0.9
"""Part of a running task that may at most be taken for done before Spark reports its end."""
BETA_RANGE = (0.3, 5.0)
_FIRST_SIGN_CORE_S = 0.01


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
    finished_core_s: float = -1.0
    """Profiled work of finished tasks when `beta` was last measured."""
    beta: float = 1.0
    """Live core-seconds ÷ profiled core-seconds."""
    rate: smoothing.Ewma
    """Cores used while tasks run."""
    expected: smoothing.Ewma
    """Cores that share and running tasks should have allowed."""
    guaranteed_at: float = -inf
    """When a guarantee was last found necessary."""


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
            work = remaining(plan, seen, beta=state.beta)
            decision, state = self._warm(seen, state, work, high)
        decision = self._steady(decision, state.last)
        return decision, replace(state, last=decision, used_core_s=seen.used_core_s)

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
        finished, _, prior = _accounted(plan, seen.progress)
        if finished == state.finished_core_s or seen.used_core_s <= 0:
            return state
        fraction = finished / plan.core_s if plan.core_s > 0 else 1.0
        trust = self.settings.trust_core_s * (1 - fraction)  # the profile is believed less as evidence grows
        # Tasks that begin when others end have done nothing yet; those midway make β a little too high: safe.
        beta = (seen.used_core_s + trust * prior) / max(1e-9, finished + trust)
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
            at_risk=False,
            reason="no profile yet: the full share, and this run is learned from",
        )

    def _warm(self, seen: Observation, state: State, work: Work, high: float) -> tuple[Decision, State]:
        target_at = self.promise.started_at + self.settings.aim * self.promise.duration_s
        pieces = _scaled(work.pieces, state.beta)
        needed = deadline.cores_within(pieces, target_at - seen.now - work.gaps_s)
        finish_at = seen.now + work.gaps_s + deadline.duration_s(pieces, high)
        base = Decision(
            guaranteed_cores=high,
            ceiling_cores=None,
            needed_cores=min(needed, 1e6),  # stays a number in JSON
            progress=work.fraction,
            finish_at=finish_at,
            at_risk=finish_at > self.promise.deadline_at,
            reason=f"{state.beta * work.left_core_s:.1f} core-s left need {min(needed, 1e6):.2f} cores",
        )
        if self.settings.mode is Mode.RESERVE:
            return self._reserve(seen, state, base, high), state
        return self._work_conserving(seen, state, base, high)

    def _reserve(self, seen: Observation, state: State, base: Decision, high: float) -> Decision:
        low = self.settings.low
        if seen.progress is None or not seen.progress.stages:
            # A JVM that starts under a small quota takes long to warm up, and sizes its collector for it.
            cores = low if self._empty(seen) else min(high, max(low, base.needed_cores))
            reason = f"executors are starting, without a ceiling below {high:g} cores"
            return replace(base, guaranteed_cores=cores, ceiling_cores=high, reason=reason)
        if self._parked(seen):
            ceiling = state.last.ceiling_cores if state.last else high
            reason = "no stage is running: guarantee parked"
            return replace(base, guaranteed_cores=low, ceiling_cores=max(low, ceiling or high), reason=reason)
        usable = min(high, max(low, seen.progress.runnable_tasks or high))
        cores = min(usable, max(low, base.needed_cores / _delivered(state)))
        return replace(base, guaranteed_cores=cores, ceiling_cores=cores)

    def _work_conserving(self, seen: Observation, state: State, base: Decision, high: float) -> tuple[Decision, State]:
        least = self.settings.min_cores or 0.0
        if self._empty(seen):
            return replace(base, guaranteed_cores=least, reason="no executor is there yet"), state
        if self._parked(seen):
            return replace(base, guaranteed_cores=least, reason="no stage is running: guarantee parked"), state
        needed = min(high, max(least, base.needed_cores))
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
        return replace(base, guaranteed_cores=least, reason=reason), state

    def _empty(self, seen: Observation) -> bool:
        """Whether there is no executor yet that a guarantee could serve."""
        return seen.used_core_s < _FIRST_SIGN_CORE_S and (seen.progress is None or not seen.progress.stages)

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
        if last and (last.ceiling_cores is None) == (ceiling is None) and min(cores, last.guaranteed_cores) > 0:
            kept = smoothing.deadband(last.guaranteed_cores, cores, relative=self.settings.deadband, absolute=0.02)
            if kept == last.guaranteed_cores:
                cores, ceiling = kept, last.ceiling_cores
        return replace(decision, guaranteed_cores=cores, ceiling_cores=ceiling)


def best_plan(profile: Profile | None, progress: Progress | None) -> Plan | None:
    """The plan that explains most of the stages seen so far; among equals the heaviest."""
    if profile is None or not profile.plans:
        return None
    seen = keyed(progress.stages).keys() if progress else set()
    return max(profile.plans, key=lambda plan: (len(seen & {s.key for s in plan.stages}), plan.core_s))


def remaining(plan: Plan, seen: Observation, *, beta: float) -> Work:
    """Done and remaining work of a plan.

    Finished tasks count as done; of running ones as much as the meter allows, never more than `IN_FLIGHT`.
    Profiled stages before the latest one seen that never came are dropped. Stages that no profile knows
    cost per task what the profile's mean task costs, once they are submitted: many of those that only
    wait are skipped in the end.
    """
    stages = keyed(seen.progress.stages) if seen.progress else {}
    finished, in_flight, _ = _accounted(plan, seen.progress)
    startup = plan.startup_core_s if not stages else 0.0
    ceiling = IN_FLIGHT * (in_flight + startup)
    extra = min(ceiling, max(0.0, seen.used_core_s / beta - finished))
    begun = extra / (in_flight + startup) if in_flight + startup > 0 else 0.0

    pieces = [deadline.Piece(work_core_s=startup * (1 - begun), parallelism=2.0)] if startup else []
    gaps_s = plan.tail_s + (max(0.0, plan.lead_s - seen.elapsed_s) if not stages else 0.0)
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


def _piece(stage: Stage, core_s: float, begun: float) -> deadline.Piece:
    if not stage.running and stage.completed_at is not None:
        return deadline.Piece(work_core_s=0.0, parallelism=1.0)
    tasks = max(1, stage.tasks)
    left = max(0.0, tasks - stage.complete - begun * stage.active)
    return deadline.Piece(work_core_s=core_s * left / tasks, parallelism=max(1, stage.tasks - stage.complete))


def _accounted(plan: Plan, progress: Progress | None) -> tuple[float, float, float]:
    """Profiled core-seconds of finished tasks and of running ones, and the live ÷ profiled input size."""
    stages = keyed(progress.stages) if progress else {}
    finished = plan.startup_core_s if stages else 0.0
    in_flight = 0.0
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
    return sum(stage.core_s for stage in plan.stages) / tasks if tasks else 0.0


def _scaled(pieces: Sequence[deadline.Piece], beta: float) -> tuple[deadline.Piece, ...]:
    return tuple(replace(piece, work_core_s=beta * piece.work_core_s) for piece in pieces)


def _delivered(state: State) -> float:
    """Part of the allowed cores that the application really used, so that a share can make up for the rest."""
    if not state.rate.value or not state.expected.value:
        return 1.0
    return min(1.0, max(0.6, state.rate.value / state.expected.value))
