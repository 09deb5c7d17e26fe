"""The remaining-work policy, step by step, with its arithmetic shown."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale import errors
from airflow_mlscale.control import deadline
from airflow_mlscale.control.deadline import Piece
from airflow_mlscale.cpu.ports import LONGEST_TTL_S
from airflow_mlscale.spark import policy
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
    StageProfile,
    StageStatus,
)
from airflow_mlscale.spark.settings import DeadlineSettings

PLAN = Plan(
    stages=(
        StageProfile(key="read#0", core_s=10.0, tasks=10),
        StageProfile(key="write#0", core_s=20.0, tasks=4, gap_s=3.0),
    ),
    startup_core_s=5.0,
    lead_s=6.0,
    tail_s=1.0,
)


def stage(name: str, stage_id: int, *, tasks: int, complete: int, active: int = 0, **times: Any) -> Stage:
    status = StageStatus.COMPLETE if "completed_at" in times else StageStatus.ACTIVE
    times = {"submitted_at": 6.0, **times}
    return Stage(stage_id=stage_id, name=name, status=status, tasks=tasks, complete=complete, active=active, **times)


def seen(*stages: Stage, now: float = 10.0, used: float = 0.0, slots: int = 2) -> Observation:
    progress = Progress(at=now, application_id="a", stages=stages, slots=slots) if stages else None
    return Observation(now=now, progress=progress, used_core_s=used, elapsed_s=now)


def decide(
    observation: Observation, state: policy.State | None = None, *, deadline_s: float = 100.0, **settings: Any
) -> tuple[Decision, policy.State]:
    law = policy.RemainingWork(
        promise=Promise(started_at=0.0, deadline_at=deadline_s),
        profile=Profile(key="k", plans=(PLAN,)),
        settings=DeadlineSettings(**{"mode": Mode.RESERVE, "aim": 1.0, **settings}),
        host_cores=2.0,
    )
    return law(observation, state or law.start(), 1.0)


def pieces_of(work: policy.Work) -> list[tuple[float, float]]:
    return [(piece.work_core_s, piece.parallelism) for piece in work.pieces]


def left(observation: Observation, beta: float = 1.0) -> policy.Work:
    """With 5 core-s used before the first stage."""
    return policy.remaining(PLAN, observation, beta=beta, startup_core_s=5.0, high=2.0)


def test_before_the_start_everything_is_left() -> None:
    work = left(seen(now=2.0))
    assert pieces_of(work) == [(10.0, 10), (20.0, 4)]
    assert work.gaps_s == 8.0  # lead 6 − 2 gone, gap 3, tail 1
    assert work.fraction == 0.0


def test_a_late_start_still_takes_its_time() -> None:
    assert left(seen(now=9.0, used=1.0)).gaps_s == 6.0  # 4 core-s on 2 cores, gap 3, tail 1


def test_finished_tasks_count_and_running_ones_only_as_metered() -> None:
    live = stage("read", 0, tasks=10, complete=4, active=2)
    # finished: 10·4/10 = 4; metered 10 − 5 → 1 of the 2 core-s in flight
    work = left(seen(live, used=10.0))
    assert work.done_core_s == pytest.approx(5.0)
    assert pieces_of(work) == [(pytest.approx(5.0), 6), (20.0, 4)]  # 10·(6 − 0.5·2)/10
    assert work.gaps_s == 4.0


def test_running_tasks_never_count_in_full() -> None:
    live = stage("read", 0, tasks=10, complete=4, active=2)
    assert left(seen(live, used=1000.0)).done_core_s == pytest.approx(4 + 0.9 * 2)


def test_a_profiled_stage_that_never_came_is_dropped() -> None:
    live = stage("write", 3, tasks=4, complete=0)
    assert pieces_of(left(seen(live, used=5.0))) == [(20.0, 4)]


def test_a_new_stage_costs_what_the_mean_task_costs() -> None:
    live = stage("read", 0, tasks=10, complete=10, completed_at=9.0), stage("sort", 1, tasks=7, complete=0)
    # 30 core-s in 14 tasks: 7 tasks cost 15
    assert pieces_of(left(seen(*live, used=15.0))) == [(20.0, 4), (15.0, 7)]


def test_a_waiting_stage_that_no_profile_knows_is_not_counted() -> None:
    waiting = Stage(stage_id=1, name="sort", status=StageStatus.PENDING, tasks=7)
    live = stage("read", 0, tasks=10, complete=10, completed_at=9.0)
    assert pieces_of(left(seen(live, waiting, used=15.0))) == [(20.0, 4)]


def started() -> policy.State:
    """The state after a start that used 5 core-s in 6 s."""
    return decide(seen(now=6.0, used=5.0))[1]


def test_cores_are_work_over_time() -> None:
    live = stage("read", 0, tasks=10, complete=5)
    # used 10 = 5 before + 10·5/10: β is 1. 25 core-s in 64 s − 10 s − gaps 4 s
    decision, _ = decide(seen(live, used=10.0), started(), deadline_s=64.0)
    assert decision.needed_cores == pytest.approx(25 / 50)
    assert (decision.guaranteed_cores, decision.ceiling_cores) == (0.5, 0.5)
    assert decision.finish_at == pytest.approx(10 + 4 + 25 / 2)
    assert decision.outlook is Outlook.ON_TRACK


def test_work_that_costs_twice_the_profile_asks_for_about_twice_the_cores() -> None:
    live = stage("read", 0, tasks=10, complete=10, completed_at=9.5)
    _, state = decide(seen(live, used=25.0), started())
    # finished 10 of 30 profiled, for 20: the profile still weighs 5·(1 − 10/30) = 3.33
    assert state.beta == pytest.approx((20 + 3.333) / (10 + 3.333), abs=0.001)


def test_a_costly_start_says_nothing_about_the_tasks() -> None:
    live = stage("read", 0, tasks=10, complete=10, completed_at=9.5)
    _, state = decide(seen(now=9.0, used=40.0))
    _, state = decide(seen(live, used=50.0), state)
    assert state.beta == pytest.approx(1.0)


def test_a_profile_that_overestimates_is_not_trusted_late() -> None:
    late = (
        stage("read", 0, tasks=10, complete=10, completed_at=8.0),
        stage("write", 1, tasks=4, complete=3, active=1),
    )
    _, state = decide(seen(*late, used=15.0), started())  # 25 of 30 profiled are done, for 10
    assert state.beta == pytest.approx(0.3 + 0.7 * 25 / 30)


def test_a_serial_stage_makes_the_others_hurry() -> None:
    # 10 s of the 30 are needed by the serial piece whatever the share: 40 / 20
    assert deadline.cores_within([Piece(work_core_s=40, parallelism=8), Piece(work_core_s=10, parallelism=1)], 30) == 2


def test_nothing_left_needs_nothing_and_no_time_left_needs_everything() -> None:
    assert deadline.cores_within([], 10) == 0
    assert deadline.cores_within([Piece(work_core_s=1, parallelism=1)], 0) == inf
    assert deadline.cores_within([Piece(work_core_s=10, parallelism=1)], 5) == inf


pieces = st.lists(
    st.builds(Piece, work_core_s=st.floats(0, 1000), parallelism=st.integers(1, 50).map(float)),
    max_size=12,
)


@given(pieces=pieces, time_s=st.floats(0.1, 10_000))
def test_the_least_cores_are_enough_and_less_is_not(pieces: list[Piece], time_s: float) -> None:
    cores = deadline.cores_within(pieces, time_s)
    if cores == inf:
        assert deadline.duration_s(pieces, 1e9) > time_s * (1 - 1e-9)
    elif cores > 1e-6:
        assert deadline.duration_s(pieces, cores) <= time_s * (1 + 1e-6)
        assert deadline.duration_s(pieces, cores * 0.99) > time_s * (1 - 1e-6)


@given(
    used=st.floats(0, 1e4),
    complete=st.integers(0, 10),
    active=st.integers(0, 2),
    now=st.floats(0, 500),
    deadline_s=st.floats(1, 1000),
    mode=st.sampled_from(Mode),
    max_cores=st.floats(0.2, 8),
)
def test_a_share_is_always_between_its_bounds(
    used: float, complete: int, active: int, now: float, deadline_s: float, mode: Mode, max_cores: float
) -> None:
    live = stage("read", 0, tasks=10, complete=complete, active=min(active, 10 - complete))
    decision, _ = decide(seen(live, used=used, now=now), deadline_s=deadline_s, mode=mode, max_cores=max_cores)
    high = max(0.2, min(2.0, max_cores))
    assert 0.0 <= decision.guaranteed_cores <= high + 0.005  # shares are rounded to 0.01
    if mode is Mode.RESERVE:
        assert decision.ceiling_cores is not None
        assert 0.19 <= decision.guaranteed_cores <= decision.ceiling_cores <= high + 0.005
    else:
        assert decision.ceiling_cores is None


def test_one_task_left_is_not_worth_two_cores() -> None:
    live = (
        stage("read", 0, tasks=10, complete=10, completed_at=8.0),
        stage("write", 1, tasks=4, complete=3, active=1),
    )
    decision, _ = decide(seen(*live, used=30.0), deadline_s=11.0)
    assert decision.needed_cores > 2
    assert decision.ceiling_cores == 1.0


def test_a_long_driver_gap_parks_the_guarantee_and_keeps_the_ceiling() -> None:
    over = stage("read", 0, tasks=10, complete=10, completed_at=10.0)
    before, state = decide(seen(over, used=15.0, now=11.0), started(), deadline_s=40.0)
    parked, _ = decide(seen(over, used=15.0, now=13.5), state, deadline_s=40.0)
    assert before.guaranteed_cores > 0.5
    assert parked.guaranteed_cores == 0.2
    assert parked.ceiling_cores == before.ceiling_cores


def test_nothing_is_parked_when_time_is_short() -> None:
    over = stage("read", 0, tasks=10, complete=10, completed_at=10.0)
    short, _ = decide(seen(over, used=15.0, now=13.5), started(), deadline_s=25.0)
    assert short.guaranteed_cores == 2.0


@pytest.mark.parametrize(
    ("now", "used", "cores"),
    [
        (2.0, 0.0, 0.2),  # no executor yet: the floor
        (4.0, 2.0, 1.5),  # 3 core-s of the start left for 2 s
        (7.0, 2.0, 2.0),  # should have started by now
    ],
)
def test_executors_start_in_time_and_never_under_a_low_ceiling(now: float, used: float, cores: float) -> None:
    decision, _ = decide(seen(now=now, used=used), deadline_s=500.0)
    assert (decision.guaranteed_cores, decision.ceiling_cores) == (cores, 2.0)


def test_the_driver_is_guaranteed_more_while_executors_wait_for_it() -> None:
    live = stage("read", 0, tasks=10, complete=5, active=2)
    assert decide(seen(now=2.0))[0].driver_cores == 1.0
    assert decide(seen(live, used=10.0))[0].driver_cores == 0.25


def test_the_ceiling_of_the_start_does_not_stay() -> None:
    starting, state = decide(seen(now=2.0), deadline_s=200.0)
    live = stage("read", 0, tasks=10, complete=0, active=2)
    running, _ = decide(seen(live, used=5.0), state, deadline_s=200.0)
    assert running.guaranteed_cores == starting.guaranteed_cores == 0.2
    assert running.ceiling_cores == 0.2


def test_idle_cycles_that_suffice_cost_nothing() -> None:
    live = stage("read", 0, tasks=10, complete=5, active=2)
    law = {"mode": Mode.WORK_CONSERVING, "deadline_s": 100.0}
    first, state = decide(seen(live, used=10.0), **law)
    assert first.guaranteed_cores > 0  # nothing is known yet
    second, _ = decide(seen(live, used=12.0, now=11.0), state, **law)  # 2 cores were used
    assert second.guaranteed_cores == 0.0
    assert "idle cycles suffice" in second.reason


def test_a_starved_job_gets_what_it_needs() -> None:
    live = stage("read", 0, tasks=10, complete=5, active=2)
    law = {"mode": Mode.WORK_CONSERVING, "deadline_s": 70.0}
    _, state = decide(seen(live, used=10.0), **law)
    starved, _ = decide(seen(live, used=10.1, now=11.0), state, **law)
    assert starved.guaranteed_cores == pytest.approx(starved.needed_cores, rel=0.05)
    assert "gave only 0.10" in starved.reason


def test_small_changes_are_not_worth_an_action() -> None:
    live = stage("read", 0, tasks=10, complete=5)
    first, state = decide(seen(live, used=10.0), deadline_s=64.0)
    second, _ = decide(seen(live, used=10.0, now=11.0), state, deadline_s=64.0)
    assert second.needed_cores > first.needed_cores
    assert second.ceiling_cores == first.ceiling_cores


def test_the_plan_that_explains_the_stages_is_taken_and_else_the_heaviest() -> None:
    light = replace(PLAN, stages=(StageProfile(key="other#0", core_s=1.0, tasks=1),))
    profile = Profile(key="k", plans=(light, PLAN))
    assert policy.best_plan(profile, None) == PLAN
    assert policy.best_plan(profile, seen(stage("other", 0, tasks=1, complete=0)).progress) == light
    assert policy.best_plan(None, None) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "greedy"),
        ("on_infeasible", "ignore"),
        ("min_cores", 0),
        ("min_cores", True),
        ("max_cores", -1.0),
        ("max_cores", float("nan")),
        ("max_cores", "2"),
        ("max_cores", 0.1),
        ("ttl_s", LONGEST_TTL_S + 1),  # the host's arbiter takes no longer lease
    ],
)
def test_bad_settings_name_the_field(field: str, value: object) -> None:
    with pytest.raises(errors.InvalidInputError) as caught:
        DeadlineSettings(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_lease_outlives_three_periods() -> None:
    assert DeadlineSettings(period_s=5.0, ttl_s=15.0).ttl_s == 15.0  # 3 · 5
    with pytest.raises(errors.InvalidInputError, match=r"ttl_s=10.0: must be at least 3 times period_s=5.0"):
        DeadlineSettings(period_s=5.0)
    with pytest.raises(errors.InvalidInputError, match=r"ttl_s=2.0: must be at least 3 times period_s=60.0"):
        DeadlineSettings(period_s=60.0, ttl_s=2.0)


def test_bounds_must_not_cross() -> None:
    with pytest.raises(errors.InvalidInputError, match=r"min_cores=3: must not exceed max_cores=2"):
        DeadlineSettings(min_cores=3, max_cores=2)
