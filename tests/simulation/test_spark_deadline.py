"""The remaining-work policy in a closed loop with a simulated application: every second, no clock, no Spark."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from airflow_mlscale.spark import ledger as ledgers
from airflow_mlscale.spark.model import Mode, Observation, Plan, Profile, Promise
from airflow_mlscale.spark.policy import RemainingWork
from airflow_mlscale.spark.settings import DeadlineSettings
from tests.fakes.spark import Part, SimulatedApplication

FREE = 2.0
"""Cores of the host."""

SHAPES = {
    "equal stages": [Part(6, 8, 0.3)] * 10,
    "one long stage": [Part(2, 4), Part(50, 24), Part(4, 4)],
    "serial end": [Part(40, 16), Part(10, 1)],
    "driver gaps": [Part(12, 6, 6.0)] * 5,
    "many short stages": [Part(1.5, 2, 0.2)] * 40,
}


@dataclass(frozen=True)
class Outcome:
    finish_s: float
    granted_core_s: float
    ceiling_core_s: float
    peak_cores: float


def run(
    application: SimulatedApplication,
    plan: Plan | None,
    deadline_s: float,
    *,
    mode: str,
    free: Callable[[float], float] = lambda _: FREE,
    **settings: float,
) -> Outcome:
    """``free(t)``: cores that the rest of the host leaves idle; a guarantee is delivered whatever they do."""
    profile = None if plan is None else Profile(key="job", plans=(plan,))
    policy = RemainingWork(
        promise=Promise(started_at=0.0, deadline_at=deadline_s),
        profile=profile,
        settings=DeadlineSettings(mode=Mode(mode), **settings),
        host_cores=FREE,
    )
    state = policy.start()
    granted = ceiling = peak = 0.0
    ledger, booked, used = ledgers.Ledger(), None, 0.0
    while application.finished_at is None and application.now < 5 * deadline_s:
        progress = application.progress()
        ledger = ledgers.book(ledger, application.used_core_s - used, booked, progress, dt_s=1.0)
        booked, used = progress, application.used_core_s
        seen = Observation(
            now=application.now,
            progress=progress,
            used_core_s=used,
            elapsed_s=application.now,
            by_stage=ledger.by_stage,
        )
        decision, state = policy(seen, state, 1.0 if application.now else 0.0)
        limit = FREE if decision.ceiling_cores is None else decision.ceiling_cores
        delivered = min(limit, max(decision.guaranteed_cores, free(application.now)))
        application.advance(1.0, delivered)
        granted += decision.guaranteed_cores
        ceiling += limit
        peak = max(peak, decision.guaranteed_cores)
    assert application.finished_at is not None
    return Outcome(application.finished_at, granted, ceiling, peak)


def fastest_s(shape: str) -> float:
    return run(SimulatedApplication(SHAPES[shape]), None, 1000.0, mode="work_conserving").finish_s


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slack", [1.3, 2.0, 4.0])
def test_a_reserved_job_ends_in_time_and_not_much_before(shape: str, slack: float) -> None:
    deadline_s = slack * fastest_s(shape)
    application = SimulatedApplication(SHAPES[shape])
    outcome = run(application, application.plan(), deadline_s, mode="reserve")
    assert outcome.finish_s <= deadline_s
    floor_s = application.work_core_s / DeadlineSettings().floor_cores
    assert outcome.finish_s >= min(0.75 * deadline_s, 0.5 * floor_s)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("error", [0.5, 0.8, 1.25, 1.6, 2.0])
def test_a_wrong_profile_is_corrected_in_time(shape: str, error: float) -> None:
    deadline_s = 2.0 * fastest_s(shape)
    application = SimulatedApplication(SHAPES[shape])
    outcome = run(application, application.plan(error), deadline_s, mode="reserve")
    assert outcome.finish_s <= deadline_s


@pytest.mark.parametrize("shape", SHAPES)
def test_an_idle_host_is_used_for_free(shape: str) -> None:
    fastest = fastest_s(shape)
    application = SimulatedApplication(SHAPES[shape])
    outcome = run(application, application.plan(), 3 * fastest, mode="work_conserving")
    assert outcome.finish_s == pytest.approx(fastest, abs=1.0)
    assert outcome.granted_core_s < 0.25 * application.work_core_s


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("busy_from_s", [0.0, 10.0, 20.0])
def test_a_busy_host_costs_a_guarantee_but_not_the_deadline(shape: str, busy_from_s: float) -> None:
    deadline_s = 2.0 * fastest_s(shape)
    application = SimulatedApplication(SHAPES[shape])
    outcome = run(
        application,
        application.plan(),
        deadline_s,
        mode="work_conserving",
        free=lambda t: FREE if t < busy_from_s else 0.02,
    )
    assert outcome.finish_s <= deadline_s
    # A guarantee is paid for while it is unused, too: in waits for the next stage and before it is parked.
    assert outcome.granted_core_s < 1.6 * application.work_core_s


@pytest.mark.parametrize("shape", SHAPES)
def test_a_start_that_the_profile_did_not_know_is_made_up_for(shape: str) -> None:
    deadline_s = 2.0 * fastest_s(shape)
    application = SimulatedApplication(SHAPES[shape], startup_core_s=8.0)
    plan = replace(application.plan(), startup_core_s=0.0, lead_s=5.0)
    outcome = run(application, plan, deadline_s, mode="work_conserving", free=lambda _: 0.02)
    assert outcome.finish_s <= deadline_s


@pytest.mark.parametrize("shape", SHAPES)
def test_idle_cycles_that_come_and_go_do_not_cost_the_deadline(shape: str) -> None:
    deadline_s = 1.7 * fastest_s(shape)
    application = SimulatedApplication(SHAPES[shape])
    outcome = run(
        application,
        application.plan(),
        deadline_s,
        mode="work_conserving",
        free=lambda t: FREE if int(t / 12) % 2 else 0.02,
    )
    assert outcome.finish_s <= deadline_s


@pytest.mark.parametrize("mode", Mode)
def test_without_a_profile_the_job_gets_everything(mode: Mode) -> None:
    application = SimulatedApplication(SHAPES["equal stages"])
    outcome = run(application, None, 300.0, mode=mode, free=lambda _: 0.0)
    assert outcome.finish_s == fastest_s("equal stages")


def test_a_job_that_is_late_gets_everything_there_is() -> None:
    application = SimulatedApplication(SHAPES["equal stages"])
    outcome = run(application, application.plan(), 20.0, mode="reserve")
    assert outcome.finish_s == pytest.approx(fastest_s("equal stages"), abs=2.0)


def test_the_maximum_is_never_exceeded() -> None:
    application = SimulatedApplication(SHAPES["equal stages"])
    outcome = run(application, application.plan(), 20.0, mode="reserve", max_cores=1.25)
    assert outcome.peak_cores == 1.25
