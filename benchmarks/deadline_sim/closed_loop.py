"""A simulated run under a policy, step by step as the product's controller does it; and what is learned from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from airflow_mlscale.spark import ledger as ledgers
from airflow_mlscale.spark import policy as policies
from airflow_mlscale.spark import profile as profiles
from airflow_mlscale.spark.model import Decision, Observation, Outlook, Plan, Profile, Progress, Promise
from airflow_mlscale.spark.settings import DeadlineSettings
from benchmarks.deadline_sim.draws import Draw
from benchmarks.deadline_sim.engine import START, Run

Free = Callable[[float], float]
"""Cores that the rest of the host leaves idle, by seconds since submission."""

_GIVE_UP = 5.0
"""So many times the deadline: whoever is not done by then never will be."""
_METER_SD = 0.004
_MISSED_READING = 0.2


@dataclass(frozen=True, kw_only=True)
class Step:
    """One control step, for pictures and for people who tune."""

    t_s: float
    decision: Decision
    delivered_cores: float
    used_core_s: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    finish_s: float
    granted_core_s: float
    """Integral of the guarantee; of the quota where that is all there is."""
    cap_core_s: float
    """Integral of the ceiling."""
    used_core_s: float
    peak_cores: float
    """Highest guarantee."""
    plan: Plan | None
    """What a profile would learn from it."""
    first_outlook: Outlook | None = None
    steps: tuple[Step, ...] = ()


@dataclass
class _Meter:
    """What the controller knows, and when it gets to know it."""

    run: Run
    rng: Random
    ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger)
    latest: Progress | None = None
    _booked: Progress | None = None
    _booked_at: float = START
    used_core_s: float = 0.0

    def read(self) -> None:
        self.latest = self.run.progress() or self.latest

    def book(self) -> None:
        used = self.run.used_core_s
        used = max(self.used_core_s, self.used_core_s + (used - self.used_core_s) * self.rng.gauss(1.0, _METER_SD))
        dt_s = self.run.now - self._booked_at
        self.ledger = ledgers.book(self.ledger, used - self.used_core_s, self._booked, self.latest, dt_s=dt_s)
        self._booked, self._booked_at, self.used_core_s = self.latest, self.run.now, used

    def observation(self) -> Observation:
        return Observation(
            now=self.run.now,
            progress=self.latest,
            used_core_s=self.used_core_s,
            elapsed_s=self.run.elapsed_s,
            by_stage=self.ledger.by_stage,
            driver_used_core_s=0.2 * self.run.elapsed_s,
        )

    def plan(self) -> Plan | None:
        if self.latest is None or not self.latest.stages:
            return None
        return profiles.observed(self.ledger, self.latest, submitted_at=START, ended_at=self.run.now)


def controlled(
    draw: Draw,
    *,
    settings: DeadlineSettings,
    profile: Profile | None,
    deadline_s: float,
    free: Free | None = None,
    trace: bool = False,
) -> Outcome:
    """One run under the policy that ``settings`` name.

    Args:
        draw: the run.
        settings: of the policy.
        profile: None on a first run.
        deadline_s: from submission.
        free: cores that others leave; the whole host when None.
        trace: keep every step.
    """
    slots = float(draw.application.slots)
    promise = Promise(started_at=START, deadline_at=START + deadline_s)
    policy: policies.Policy[Any] = policies.make(settings, promise=promise, profile=profile, host_cores=slots)
    state = policy.start()

    def decide(seen: Observation, dt_s: float) -> Decision:
        nonlocal state
        decision, state = policy(seen, state, dt_s)
        return decision

    return _run(draw, decide, period_s=settings.period_s, give_up_s=_GIVE_UP * deadline_s, free=free, trace=trace)


def fixed(draw: Draw, cores: float, *, deadline_s: float, free: Free | None = None) -> Outcome:
    """One run under a quota that is written once."""
    decision = Decision(
        guaranteed_cores=cores,
        ceiling_cores=cores,
        needed_cores=cores,
        progress=None,
        finish_at=None,
        reason="fixed",
    )
    return _run(draw, lambda seen, dt_s: decision, period_s=1.0, give_up_s=_GIVE_UP * deadline_s, free=free)


def uncontrolled(draw: Draw) -> Outcome:
    """One run that has the host for itself."""
    return fixed(draw, float(draw.application.slots), deadline_s=1e4)


def _run(
    draw: Draw,
    decide: Callable[[Observation, float], Decision],
    *,
    period_s: float,
    give_up_s: float,
    free: Free | None,
    trace: bool = False,
) -> Outcome:
    run, rng = Run(draw), Random(draw.seed + 1)
    meter = _Meter(run, rng)
    host = float(draw.application.slots)
    granted = cap = peak = dt_s = 0.0
    first: Outlook | None = None
    steps: list[Step] = []
    while run.finished_at is None and run.elapsed_s < give_up_s:
        decision = decide(meter.observation(), dt_s)
        first = first or decision.outlook
        ceiling = host if decision.ceiling_cores is None else min(host, decision.ceiling_cores)
        idle = host if free is None else free(run.elapsed_s)
        delivered = min(ceiling, max(min(host, decision.guaranteed_cores), idle)) * draw.derating_at(run.elapsed_s)
        begun, end = run.now, run.now + period_s
        # The reading that the next step sees was taken a while before it; now and then there is none.
        if rng.random() >= _MISSED_READING:
            run.advance(end - rng.uniform(0.5, 1.0) * period_s, delivered)
            meter.read()
        run.advance(end, delivered)
        meter.book()
        dt_s = run.now - begun
        granted += decision.guaranteed_cores * dt_s
        cap += ceiling * dt_s
        peak = max(peak, decision.guaranteed_cores)
        if trace:
            steps.append(
                Step(t_s=begun - START, decision=decision, delivered_cores=delivered, used_core_s=meter.used_core_s)
            )
    return Outcome(
        finish_s=run.elapsed_s,
        granted_core_s=granted,
        cap_core_s=cap,
        used_core_s=run.used_core_s,
        peak_cores=peak,
        plan=meter.plan(),
        first_outlook=first,
        steps=tuple(steps),
    )


def learned(plans: list[Plan], *, rate: float = DeadlineSettings.learning_rate) -> Profile | None:
    """A profile from runs, the oldest first."""
    profile: Profile | None = None
    for plan in plans:
        profile = profiles.learn(profile, "job", plan, rate=rate)
    return profile
