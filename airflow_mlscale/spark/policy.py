"""Which share an application gets: the interface of policies, and ours, the remaining-work policy.

Pure: an observation and a state go in, a decision and the next state come out. Time is in the observation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Protocol, TypeVar

from airflow_mlscale.control import schedule, smoothing
from airflow_mlscale.spark import estimate, outlook, paper
from airflow_mlscale.spark.model import Decision, Mode, Observation, Plan, Profile, Promise
from airflow_mlscale.spark.settings import DeadlineSettings

_FIRST_SIGN_CORE_S = 0.01
_DRIVER_AT_REST = 0.25
"""Most cores for a driver that only schedules tasks."""
_DRIVER_LEAST = 0.05
_DRIVER_SPARE = 1.25
"""So many times what it used lately."""
_SOON_S = 1.5
"""A guarantee is back so long before it is expected to be used."""
_LEAST_REACHABLE = 0.05
"""Cores that even a group without any guarantee gets now and then."""
_RATE_KEPT_S = 3.0
"""What idle cycles gave so long ago says nothing of now."""
_MOST_SPARE = 0.1
"""Part of the time at most that is kept for stragglers."""
_ANY = 10.0
"""So many times the maximum is as good as any number."""

StateT = TypeVar("StateT")


class Policy(Protocol[StateT]):
    """Decides an application's share, step by step."""

    def start(self) -> StateT:
        """The state before the first step."""

    def __call__(self, seen: Observation, state: StateT, dt_s: float) -> tuple[Decision, StateT]:
        """One step, ``dt_s`` seconds after the last: what to do, and the next state."""


def make(settings: DeadlineSettings, *, promise: Promise, profile: Profile | None, host_cores: float) -> Policy[Any]:
    """The policy that ``settings.policy`` names.

    Args:
        settings: how the application is brought to its deadline.
        promise: the deadline.
        profile: of earlier runs, if there were any.
        host_cores: slots are assumed to be this many until executors have registered.
    """
    if settings.policy == "paper":
        return paper.PaperPolicy(promise=promise, profile=profile, settings=settings, host_cores=host_cores)
    return RemainingWork(promise=promise, profile=profile, settings=settings, host_cores=host_cores)


@dataclass(frozen=True, kw_only=True)
class State:
    """What the policy remembers from step to step."""

    last: Decision | None = None
    used_core_s: float = 0.0
    driver_used_core_s: float = 0.0
    told: outlook.Told = field(default_factory=outlook.Told)
    rate: smoothing.Ewma
    """Cores used while tasks run."""
    expected: smoothing.Ewma
    """Cores that share and running tasks should have allowed."""
    driver_rate: smoothing.Ewma
    """Cores the driver uses."""
    rate_at: float = -inf
    """When `rate` was last measured."""
    active: bool = False
    """Whether tasks ran at the last step."""
    guaranteed_at: float = -inf
    """When a guarantee was last found necessary."""


@dataclass(frozen=True, kw_only=True)
class RemainingWork:
    """Cores with which what is left ends just before the deadline, in both modes (DESIGN §4).

    The remaining work is the profile's, times β, a little more while it is uncertain; the time is what is
    left to `aim`, less gaps; `control.schedule` says how many cores bring the one into the other.
    """

    promise: Promise
    profile: Profile | None
    settings: DeadlineSettings
    host_cores: float

    def start(self) -> State:
        window = smoothing.Ewma(self.settings.rate_window_s)
        return State(rate=window, expected=window, driver_rate=window)

    def __call__(self, seen: Observation, state: State, dt_s: float) -> tuple[Decision, State]:
        """One step; ``dt_s`` seconds after the last."""
        slots = (seen.progress.slots if seen.progress else 0) or self.host_cores
        high = self.settings.high(slots)
        state = self._measured(seen, state, dt_s)
        plan = estimate.best_plan(self.profile, seen.progress)
        if plan is None:
            decision, state = self._cold(seen, state, high)
        else:
            decision, state = self._warm(plan, seen, state, slots, high)
        decision = replace(self._steady(decision, state.last), driver_cores=self._driver(seen, state))
        return decision, replace(
            state, last=decision, used_core_s=seen.used_core_s, driver_used_core_s=seen.driver_used_core_s
        )

    def _driver(self, seen: Observation, state: State) -> float:
        """Gaps are time that no executor can shorten, so the driver is kept from starving in them."""
        if not (seen.progress and seen.progress.runnable_tasks):
            return self.settings.driver_cores
        metered = seen.driver_used_core_s > 0 and state.driver_rate.value is not None
        lately = max(_DRIVER_LEAST, _DRIVER_SPARE * (state.driver_rate.value or 0.0)) if metered else _DRIVER_AT_REST
        return round(min(self.settings.driver_cores, _DRIVER_AT_REST, lately), 2)

    def _measured(self, seen: Observation, state: State, dt_s: float) -> State:
        if dt_s <= 0:
            return state
        driver = max(0.0, seen.driver_used_core_s - state.driver_used_core_s) / dt_s
        state = replace(state, driver_rate=smoothing.ewma(state.driver_rate, driver, dt_s=dt_s))
        active = seen.progress.active_tasks if seen.progress else 0
        if active == 0 or state.last is None or not state.active:
            # A step that began without tasks says nothing of what they get.
            return replace(state, active=active > 0)
        allowed = state.last.ceiling_cores if state.last.ceiling_cores is not None else state.last.guaranteed_cores
        if seen.granted_cores is not None:
            allowed = min(allowed, seen.granted_cores)
        used = max(0.0, seen.used_core_s - state.used_core_s) / dt_s
        return replace(
            state,
            rate=smoothing.ewma(state.rate, used, dt_s=dt_s),
            rate_at=seen.now,
            expected=smoothing.ewma(state.expected, min(allowed, active), dt_s=dt_s),
        )

    def _cold(self, seen: Observation, state: State, high: float) -> tuple[Decision, State]:
        told = outlook.tell(state.told, None, over=seen.now > self.promise.deadline_at)
        why = "none of its stages is in the profile" if self.profile and self.profile.plans else "no profile yet"
        decision = Decision(
            guaranteed_cores=high,
            ceiling_cores=high if self.settings.mode is Mode.RESERVE else None,
            needed_cores=high,
            progress=None,
            reason=f"{why}: the full share, and this run is learned from",
            **outlook.fields(None, told, seen.now),
        )
        return decision, replace(state, told=told)

    def _warm(self, plan: Plan, seen: Observation, state: State, slots: float, high: float) -> tuple[Decision, State]:
        settings = self.settings
        scaled = estimate.expected(plan, seen.progress)
        costs = estimate.beta(scaled, seen, trust=settings.trust)
        lead_s = max(plan.lead_s - seen.elapsed_s, max(0.0, plan.startup_core_s - seen.used_core_s) / high)
        left = estimate.left(scaled, seen, costs, slots=slots, lead_left_s=max(0.0, lead_s))
        base, state = self._base(plan, left, seen, state, high)
        if seen.progress is None or not seen.progress.stages:
            return self._starting(plan, seen, base, high), state
        relaxed = settings.mode is Mode.RESERVE and base.needed_cores <= settings.headroom * high
        if self._parked(seen, left, relaxed):
            return self._park(state, base, high), state
        if settings.mode is Mode.RESERVE:
            return self._reserve(left, seen, state, base, high), state
        return self._work_conserving(seen, state, base, high)

    def _base(
        self, plan: Plan, left: estimate.Left, seen: Observation, state: State, high: float
    ) -> tuple[Decision, State]:
        """What both modes start from: cores needed, and the outlook."""
        settings, promise = self.settings, self.promise
        spare_s = min(settings.spare * plan.surprise * left.longest_core_s, _MOST_SPARE * promise.duration_s)
        target_at = promise.started_at + settings.aim * promise.duration_s - spare_s
        # What was kept for a straggler is used up by halves, not all at once.
        free_at = seen.now + left.idle_s
        time_s = max(target_at - free_at, (promise.deadline_at - free_at) / 2)
        # Where no profile knows of any work, running tasks are work all the same; a driver that tidies up is not.
        more = bool(left.nodes) or bool(seen.progress and seen.progress.runnable_tasks)
        unknown = settings.unknown * (left.done_core_s + left.core_s) if more else 0.0
        careful = left.scaled(1 + settings.caution * left.uncertainty, more_core_s=unknown)
        needed = schedule.cores_within(careful, time_s)
        amount = f"{needed:.2f} cores" if needed <= _ANY * high else f"more than {high:g} cores"
        prediction = outlook.predict(left, cores=_reachable(seen, state, high), confidence=settings.confidence)
        found = outlook.verdict(prediction, time_s=promise.deadline_at - seen.now)
        told = outlook.tell(state.told, found, over=seen.now > promise.deadline_at)
        decision = Decision(
            guaranteed_cores=high,
            ceiling_cores=None,
            needed_cores=min(needed, _ANY * high),  # stays a number in JSON and in charts
            progress=left.fraction,
            reason=f"{left.core_s:.1f} core-s left need {amount}",
            **outlook.fields(prediction, told, seen.now),
        )
        return decision, replace(state, told=told)

    def _starting(self, plan: Plan, seen: Observation, base: Decision, high: float) -> Decision:
        """Executors that start need CPU in time, not tasks: what is lost here no later share makes up for.

        They never start under a small ceiling: their JVM would take long to warm up.
        """
        ceiling = high if self.settings.mode is Mode.RESERVE else None
        if seen.used_core_s < _FIRST_SIGN_CORE_S:
            cores, reason = self._least(), "no executor is there yet"
        else:
            late = seen.elapsed_s >= plan.lead_s
            left = max(0.0, plan.startup_core_s - seen.used_core_s)
            cores = max(base.needed_cores, 1.0 if late else left / max(1.0, plan.lead_s - seen.elapsed_s))
            reason = "executors start later than profiled" if late else f"executors are starting; {base.reason}"
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

    def _reserve(self, left: estimate.Left, seen: Observation, state: State, base: Decision, high: float) -> Decision:
        tasks = seen.progress.runnable_tasks if seen.progress else 0
        # A late job cannot wait for the reading that shows the tasks of its next stage.
        late = base.needed_cores > high and any(node.after for node in left.nodes)
        usable = high if late else min(high, max(self._least(), tasks or high))
        cores = min(usable, max(self._least(), base.needed_cores / _delivered(state)))
        return replace(base, guaranteed_cores=cores, ceiling_cores=cores)

    def _work_conserving(self, seen: Observation, state: State, base: Decision, high: float) -> tuple[Decision, State]:
        needed = min(high, max(self._least(), base.needed_cores))
        # Executors that starve cannot even answer their driver: then no task runs, and nothing is measured.
        rate = state.rate.value if seen.now - state.rate_at <= _RATE_KEPT_S else None
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

    def _parked(self, seen: Observation, left: estimate.Left, relaxed: bool) -> bool:
        """Whether the driver keeps the executors waiting, and not only for another moment.

        A gap that the profile knows ends when it said; in one that it does not, a guarantee is only given
        away by those who are ``relaxed``: who have time, and are left the least ceiling. Without any guarantee
        beside a greedy neighbour the gap might be the executors' own: they do not get to answer the driver.
        """
        progress = seen.progress
        if progress is None or not progress.stages or progress.runnable_tasks or not left.nodes:
            return False
        idle_s = estimate.idle_now_s(seen)
        if idle_s < self.settings.park_after_s:
            return False
        due_s = min(node.gap_s for node in left.nodes if not node.after)
        return due_s > _SOON_S or (relaxed and idle_s > 2 * self.settings.park_after_s and due_s <= 0)

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


def _reachable(seen: Observation, state: State, high: float) -> float:
    """Cores to predict with: all of them, unless others have been promised some; then what it really has."""
    if seen.granted_cores is None:
        return high
    return min(high, max(_LEAST_REACHABLE, seen.granted_cores, state.rate.value or 0.0))


def _delivered(state: State) -> float:
    """Part of the allowed cores that the application really used, so that a share can make up for the rest."""
    if not state.rate.value or not state.expected.value:
        return 1.0
    return min(1.0, max(0.6, state.rate.value / state.expected.value))
