"""dynaSpark as published: stage deadlines, feed-forward, and a PI law on the progress of each stage.

Baresi, Denaro, Quattrocchi, *dynaSpark* (IEEE TSE 2019; Baresi and Quattrocchi, ICSOC 2022), with their
constants. The paper's per-executor controllers act on equal parts of a stage; here the executors of a host
share one group, so one controller acts on their sum. Kept for comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil

from airflow_mlscale.control import deadline, pi
from airflow_mlscale.spark import estimate, outlook
from airflow_mlscale.spark.model import Decision, Observation, Plan, Profile, Promise, Stage, StageProfile, numbered
from airflow_mlscale.spark.settings import DeadlineSettings

PROPORTIONAL = 50.0
INTEGRAL_S = 12.0
QUANTUM_CORES = 0.05


@dataclass(frozen=True)
class StageControl:
    """The controller of one running stage."""

    time_s: float
    """D_s, the time it was given."""
    set_point: float = 0.0
    """Progress it should have made, 0–1."""
    law: pi.State = field(default_factory=pi.State)


@dataclass(frozen=True)
class State:
    """What the policy remembers from step to step."""

    stages: Mapping[str, StageControl] = field(default_factory=dict)
    told: outlook.Told = field(default_factory=outlook.Told)


@dataclass(frozen=True, kw_only=True)
class PaperPolicy:
    """The published law; always a reservation: its allocation is the quota."""

    promise: Promise
    profile: Profile | None
    settings: DeadlineSettings
    host_cores: float

    def start(self) -> State:
        return State()

    def __call__(self, seen: Observation, state: State, dt_s: float) -> tuple[Decision, State]:
        """One step; ``dt_s`` seconds after the last."""
        slots = (seen.progress.slots if seen.progress else 0) or self.host_cores
        high = self.settings.high(slots)
        plan = estimate.best_plan(self.profile, seen.progress)
        if plan is None:
            return self._all(high, "no profile yet: the full share"), state
        running = _running(seen)
        controls: dict[str, StageControl] = {}
        cores, why = 0.0, []
        for key, stage in running.items():
            known = next((each for each in plan.stages if each.key == key), None)
            if known is None:
                return self._all(high, f"{key} is in no profile: the full share"), state
            control = state.stages.get(key) or self._begin(plan, known, stage, seen, high)
            controls[key], share = self._step(control, stage, dt_s, high)
            cores += share
            why.append(f"{key} {stage.complete}/{stage.tasks}, {control.set_point:.2f} expected, {share:.2f} cores")
        cores = (
            min(high, max(self.settings.low, cores)) if running else high if not seen.progress else self.settings.low
        )
        base = self._predicted(plan, seen, state, slots, high)
        decision = replace(
            base,
            guaranteed_cores=cores,
            ceiling_cores=cores if running else high,
            needed_cores=cores,
            reason="; ".join(why) or "no stage is running",
        )
        return decision, State(controls, outlook.Told(base.outlook))

    def _begin(self, plan: Plan, known: StageProfile, stage: Stage, seen: Observation, high: float) -> StageControl:
        """The stage's deadline, and the feed-forward that its integral begins with."""
        place = [each.key for each in plan.stages].index(known.key)
        later = plan.stages[place:]
        durations = [each.core_s / min(high, max(1, each.tasks)) + each.gap_s for each in later]
        time_s = deadline.stage_deadline_s(
            deadline_s=self.promise.duration_s,
            elapsed_s=seen.now - self.promise.started_at,
            stages_left=len(later) - 1,
            duration_left_s=sum(durations),
            stage_duration_s=durations[0],
        )
        if time_s <= 0:
            return StageControl(time_s=1.0, law=pi.State(integral=high))
        records = stage.records / max(1, stage.complete) * stage.tasks if stage.complete else known.records
        work = known.core_s * (records / known.records if known.records and records else 1.0)
        feed_forward = min(high, max(self.settings.low, float(ceil(work / time_s))))
        return StageControl(time_s=time_s, law=pi.State(integral=feed_forward))

    def _step(self, control: StageControl, stage: Stage, dt_s: float, high: float) -> tuple[StageControl, float]:
        gains = pi.Gains(proportional=PROPORTIONAL, integral_s=INTEGRAL_S, low=self.settings.low, high=high)
        set_point = min(1.0, control.set_point + dt_s / control.time_s)
        error = set_point - stage.complete / max(1, stage.tasks)
        cores, law = pi.step(gains, control.law, error=error, dt_s=dt_s)
        rounded = min(high, ceil(cores / QUANTUM_CORES - 1e-9) * QUANTUM_CORES)
        return replace(control, set_point=set_point, law=law), rounded

    def _predicted(self, plan: Plan, seen: Observation, state: State, slots: float, high: float) -> Decision:
        """The outlook, which the paper does not have: ours, so that both can be compared."""
        scaled = estimate.expected(plan, seen.progress)
        costs = estimate.beta(scaled, seen, trust=self.settings.trust)
        lead_s = max(0.0, plan.lead_s - seen.elapsed_s)
        left = estimate.left(scaled, seen, costs, slots=slots, lead_left_s=lead_s)
        prediction = outlook.predict(left, cores=high, confidence=self.settings.confidence)
        found = outlook.verdict(prediction, time_s=self.promise.deadline_at - seen.now)
        told = outlook.tell(state.told, found, over=seen.now > self.promise.deadline_at)
        decision = self._all(high, "")
        return replace(decision, progress=left.fraction, **outlook.fields(prediction, told, seen.now))

    def _all(self, high: float, reason: str) -> Decision:
        return Decision(
            guaranteed_cores=high,
            ceiling_cores=high,
            driver_cores=self.settings.driver_cores,
            needed_cores=high,
            progress=None,
            finish_at=None,
            reason=reason,
        )


def _running(seen: Observation) -> Mapping[str, Stage]:
    stages = numbered(seen.progress.stages) if seen.progress else {}
    return {key: stage for key, stage in stages.items() if stage.running}
