"""The remaining-work policy, step by step, with its arithmetic shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale import errors
from airflow_mlscale.cpu.ports import LONGEST_TTL_S
from airflow_mlscale.spark import estimate, policy
from airflow_mlscale.spark.estimate import Beta
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
    Tally,
)
from airflow_mlscale.spark.settings import DeadlineSettings

PLAN = Plan(
    stages=(
        StageProfile(key="read#0", core_s=10.0, tasks=10),
        StageProfile(key="write#0", core_s=20.0, tasks=4, gap_s=3.0, after=("read#0",)),
    ),
    startup_core_s=5.0,
    lead_s=6.0,
    tail_s=1.0,
)


def stage(name: str, stage_id: int, *, tasks: int, complete: int, active: int = 0, **times: Any) -> Stage:
    status = StageStatus.COMPLETE if "completed_at" in times else StageStatus.ACTIVE
    times = {"submitted_at": 6.0, **times}
    return Stage(stage_id=stage_id, name=name, status=status, tasks=tasks, complete=complete, active=active, **times)


def seen(
    *stages: Stage, now: float = 10.0, used: float = 0.0, slots: int = 2, by_stage: dict[int, Tally] | None = None
) -> Observation:
    progress = Progress(at=now, application_id="a", stages=stages, slots=slots) if stages else None
    return Observation(now=now, progress=progress, used_core_s=used, elapsed_s=now, by_stage=by_stage or {})


def decide(
    observation: Observation, state: policy.State | None = None, *, deadline_s: float = 100.0, **settings: Any
) -> tuple[Decision, policy.State]:
    law = policy.RemainingWork(
        promise=Promise(started_at=0.0, deadline_at=deadline_s),
        profile=Profile(key="k", plans=(PLAN,)),
        settings=DeadlineSettings(
            **{"mode": Mode.RESERVE, "aim": 1.0, "caution": 0.0, "spare": 0.0, "unknown": 0.0, **settings}
        ),
        host_cores=2.0,
    )
    return law(observation, state or law.start(), 1.0)


def left(observation: Observation, **costs: Any) -> estimate.Left:
    return estimate.left(PLAN, observation, Beta(**costs), slots=2.0, lead_left_s=4.0)


TRUST = 0.1


def works(found: estimate.Left) -> list[float]:
    return [pytest.approx(node.work_core_s) for node in found.nodes]


def test_before_the_start_everything_is_left() -> None:
    found = left(seen(now=2.0))
    assert works(found) == [10.0, 20.0]
    assert [node.gap_s for node in found.nodes] == [0.0, 3.0]
    assert (found.start_s, found.tail_s, found.fraction) == (4.0, 1.0, 0.0)


def test_finished_tasks_count_and_running_ones_only_as_metered() -> None:
    live = stage("read", 0, tasks=10, complete=4, active=2, run_time_s=4.0)
    # 10·4/10 = 4 are done; of 5 task-seconds and core-seconds 1 is that of the running ones
    found = left(seen(live, by_stage={0: Tally(core_s=5.0, task_s=5.0)}))
    assert found.done_core_s == pytest.approx(5.0)
    assert works(found) == [5.0, 20.0]
    assert found.start_s == 0.0


def test_running_tasks_never_count_in_full() -> None:
    live = stage("read", 0, tasks=10, complete=4, active=2)
    assert left(seen(live, by_stage={0: Tally(core_s=1000.0, task_s=9.0)})).done_core_s == pytest.approx(4 + 0.8 * 2)


def test_a_profiled_stage_that_never_came_is_dropped() -> None:
    live = stage("write", 3, tasks=4, complete=0)
    assert works(left(seen(live))) == [20.0]


def test_a_skipped_stage_is_neither_done_nor_left() -> None:
    skipped = Stage(stage_id=0, name="read", status=StageStatus.SKIPPED, tasks=10)
    found = left(seen(skipped))
    assert (works(found), found.done_core_s) == ([20.0], 0.0)


def test_a_new_stage_costs_what_the_mean_task_costs_and_the_others_wait_for_it() -> None:
    live = stage("read", 0, tasks=10, complete=10, completed_at=9.0), stage("sort", 1, tasks=7, complete=0)
    # 30 core-s in 14 tasks: 7 tasks cost 15
    found = left(seen(*live))
    assert works(found) == [15.0, 20.0]
    assert found.nodes[1].after == (0,)


def test_a_waiting_stage_that_no_profile_knows_is_not_counted() -> None:
    waiting = Stage(stage_id=1, name="sort", status=StageStatus.PENDING, tasks=7)
    live = stage("read", 0, tasks=10, complete=10, completed_at=9.0)
    assert works(left(seen(live, waiting))) == [20.0]


def test_a_waiting_stage_that_the_profile_knows_still_waits() -> None:
    waiting = Stage(stage_id=1, name="write", status=StageStatus.PENDING, tasks=4)
    live = stage("read", 0, tasks=10, complete=0)
    assert left(seen(live, waiting)).nodes[1].after == (0,)


def test_what_tasks_get_is_measured_over_steps_that_began_with_them() -> None:
    waiting = stage("read", 0, tasks=10, complete=10, completed_at=9.0)
    running = stage("read", 0, tasks=10, complete=2, active=2)
    _, state = decide(seen(waiting, now=10.0, used=5.0))
    _, state = decide(seen(running, now=11.0, used=5.1), state)
    assert state.rate.value is None
    _, state = decide(seen(running, now=12.0, used=6.5), state)
    assert state.rate.value == pytest.approx(1.4)


def test_idle_cycles_are_not_believed_in_for_long() -> None:
    running = stage("read", 0, tasks=10, complete=8, active=2)
    settings = {"mode": Mode.WORK_CONSERVING, "settle_s": 0.0}
    _, state = decide(seen(running, now=10.0, used=5.0), **settings)
    _, state = decide(seen(running, now=11.0, used=7.0), state, **settings)
    decision, state = decide(seen(running, now=12.0, used=9.0), state, **settings)
    assert decision.guaranteed_cores == 0.0  # two cores for free, a fraction of one needed
    between = stage("read", 0, tasks=10, complete=10, completed_at=12.5)
    starving = seen(between, now=20.0, used=9.0)  # nothing was measured since: a gap that lasts and lasts
    decision, _ = decide(starving, state, **settings)
    assert decision.guaranteed_cores > 0.2


def test_a_stage_that_failed_is_still_to_be_done() -> None:
    lost = replace(stage("write", 1, tasks=4, complete=2, completed_at=9.0), status=StageStatus.FAILED)
    again = stage("read", 0, tasks=10, complete=9)  # makes its lost output again
    assert works(left(seen(again, lost))) == [1.0, 10.0]


def test_a_stage_that_is_held_up_still_comes() -> None:
    third = StageProfile(key="sort#0", core_s=5.0, tasks=5, after=("read#0",))
    plan = replace(PLAN, stages=(PLAN.stages[0], third, replace(PLAN.stages[1], after=())))
    live = stage("read", 0, tasks=10, complete=5), stage("write", 1, tasks=4, complete=2)
    found = estimate.left(plan, seen(*live), Beta(), slots=2.0, lead_left_s=0.0)
    assert works(found) == [5.0, 5.0, 10.0]


@pytest.mark.parametrize("mode", [Mode.RESERVE, Mode.WORK_CONSERVING])
def test_tasks_that_no_profile_knows_are_work_all_the_same(mode: Mode) -> None:
    done = stage("read", 0, tasks=10, complete=10, completed_at=8.0), stage("write", 1, tasks=4, complete=3)
    tiny = Profile(key="k", plans=(replace(PLAN, stages=(PLAN.stages[0], replace(PLAN.stages[1], core_s=0.0))),))
    law = policy.RemainingWork(
        promise=Promise(started_at=0.0, deadline_at=20.0),
        profile=tiny,
        settings=DeadlineSettings(mode=mode, unknown=0.1),
        host_cores=2.0,
    )
    decision, _ = law(seen(*done, now=18.0), law.start(), 1.0)
    assert decision.guaranteed_cores >= 1.0


def test_a_gap_that_has_begun_is_shorter() -> None:
    over = stage("read", 0, tasks=10, complete=10, completed_at=9.0)
    assert left(seen(over, now=11.0)).nodes[0].gap_s == pytest.approx(1.0)  # 3 − (11 − 9)


def beta(*stages: Stage, by_stage: dict[int, float], plan: Plan = PLAN) -> Beta:
    tallies = {stage_id: Tally(core_s=core_s) for stage_id, core_s in by_stage.items()}
    return estimate.beta(plan, seen(*stages, by_stage=tallies), trust=TRUST)


def test_work_that_costs_twice_the_profile_is_expected_to_go_on_so() -> None:
    found = beta(stage("read", 0, tasks=10, complete=10, completed_at=9.5), by_stage={0: 20.0})
    # finished 10 of 30 profiled, for 20: the profile still weighs 0.1·30·(1 − 10/30) = 2
    assert found.overall == pytest.approx((20 + 2) / (10 + 2))
    assert found.of(PLAN.stages[0]) > found.overall  # the stage's own evidence is clearer


def test_kinds_are_wrong_together() -> None:
    first, second = PLAN.stages
    plan = replace(PLAN, stages=(replace(first, kind="scan"), replace(second, kind="exchange")))
    found = beta(stage("read", 0, tasks=10, complete=10, completed_at=9.5), by_stage={0: 20.0}, plan=plan)
    assert found.by_kind["scan"] > found.overall
    assert found.of(plan.stages[1]) == found.overall


def test_a_profile_that_overestimates_is_not_trusted_late() -> None:
    late = (
        stage("read", 0, tasks=10, complete=10, completed_at=8.0),
        stage("write", 1, tasks=4, complete=3, active=1),
    )
    found = beta(*late, by_stage={0: 3.0, 1: 4.0})  # 25 of 30 profiled are done, for 7
    assert found.overall == pytest.approx(0.2 + 0.8 * 25 / 30 * 0.7)


def scan_plan(**values: Any) -> Plan:
    scan = StageProfile(key="read#0", core_s=10.0, tasks=10, input_bytes=100 * MIB, kind="scan", **values)
    return replace(PLAN, stages=(scan, replace(PLAN.stages[1], after=("read#0",))))


def test_twice_the_data_is_expected_as_soon_as_its_tasks_are_counted() -> None:
    live = stage("read", 0, tasks=20, complete=0)
    found = estimate.expected(scan_plan(), seen(live).progress)
    assert [known.core_s for known in found.stages] == [20.0, 40.0]


def test_twice_the_data_in_as_many_tasks_is_noticed_when_the_first_one_ends() -> None:
    live = stage("read", 0, tasks=10, complete=3, input_bytes=60 * MIB)  # 60·10/3 = 200 of 100 MiB
    found = estimate.expected(scan_plan(), seen(live).progress)
    assert [known.core_s for known in found.stages] == [20.0, 40.0]


def test_work_grows_with_its_elasticity() -> None:
    live = stage("read", 0, tasks=20, complete=0)
    found = estimate.expected(scan_plan(elasticity=0.5), seen(live).progress)
    assert found.stages[0].core_s == pytest.approx(10 * 2**0.5)


MIB = 1 << 20


def started() -> policy.State:
    """The state after a start that used 5 core-s in 6 s."""
    return decide(seen(now=6.0, used=5.0))[1]


def test_cores_are_work_over_time() -> None:
    live = stage("read", 0, tasks=10, complete=5)
    # used 10 = 5 before + 10·5/10: β is 1. 25 core-s in 64 s − 10 s − gaps 4 s
    decision, _ = decide(seen(live, used=10.0), started(), deadline_s=64.0)
    assert decision.needed_cores == pytest.approx(25 / 50, rel=2e-3)
    assert (decision.guaranteed_cores, decision.ceiling_cores) == (0.5, 0.5)
    assert decision.finish_at == pytest.approx(10 + 4 + (4 / 2 + 1) + 20 / 2)  # the fifth task runs alone
    assert decision.outlook is Outlook.ON_TRACK


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
    before, state = decide(seen(over, used=15.0, now=10.5), started(), deadline_s=40.0)
    parked, _ = decide(seen(over, used=15.0, now=13.5), state, deadline_s=40.0)
    assert before.guaranteed_cores > 0.5
    assert parked.guaranteed_cores == 0.2
    assert parked.ceiling_cores == before.ceiling_cores


def test_nothing_is_parked_when_time_is_short() -> None:
    over = stage("read", 0, tasks=10, complete=10, completed_at=10.0)
    # the 3 s of the gap are over: 20 core-s in 25 − 13.5 − 1 s
    short, _ = decide(seen(over, used=15.0, now=13.5), started(), deadline_s=25.0)
    assert short.guaranteed_cores == pytest.approx(20 / 10.5, abs=0.01)


@pytest.mark.parametrize(
    ("now", "used", "cores"),
    [
        (2.0, 0.0, 0.2),  # no executor yet: the floor
        (4.0, 2.0, 1.5),  # 3 core-s of the start left for 2 s
        (7.0, 2.0, 1.0),  # should have started by now
    ],
)
def test_executors_start_in_time_and_never_under_a_low_ceiling(now: float, used: float, cores: float) -> None:
    decision, _ = decide(seen(now=now, used=used), deadline_s=500.0)
    assert (decision.guaranteed_cores, decision.ceiling_cores) == (cores, 2.0)


def test_the_driver_is_guaranteed_more_while_executors_wait_for_it() -> None:
    live = stage("read", 0, tasks=10, complete=5, active=2)
    assert decide(seen(now=2.0))[0].driver_cores == 1.0
    assert decide(seen(live, used=10.0))[0].driver_cores == 0.25  # not metered
    metered = replace(seen(live, used=10.0), driver_used_core_s=0.1)
    assert decide(metered)[0].driver_cores == 0.12  # 1.25 times the 0.1 of the last second


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
    assert estimate.best_plan(profile, None) == PLAN
    assert estimate.best_plan(profile, seen(stage("other", 0, tasks=1, complete=0)).progress) == light
    assert estimate.best_plan(None, None) is None
    edited = seen(stage("moved to another line", 0, tasks=1, complete=0)).progress
    assert estimate.best_plan(profile, edited) is None


def test_an_application_that_the_profile_does_not_know_gets_the_full_share() -> None:
    decision, _ = decide(seen(stage("moved to another line", 0, tasks=8, complete=0), now=10.0))
    assert (decision.guaranteed_cores, decision.outlook) == (2.0, None)
    assert decision.reason.startswith("none of its stages is in the profile")


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


def test_the_longest_task_of_a_stage_may_be_the_last_one() -> None:
    plan = replace(PLAN, stages=(replace(PLAN.stages[0], longest_core_s=4.0),))
    last = stage("read", 0, tasks=10, complete=9, active=1, run_time_s=9.0)
    tallies = {0: Tally(core_s=10.0, task_s=10.0, last_wave_core_s=1.0)}
    found = estimate.left(plan, seen(last, by_stage=tallies), Beta(), slots=2.0, lead_left_s=0.0)
    assert works(found) == [3.0]  # 4 less what it got, not the 0.2 that a mean task still had to do
    assert found.longest_core_s == 4.0


def test_time_is_kept_for_a_straggler_and_work_for_what_nobody_knows() -> None:
    live = stage("read", 0, tasks=10, complete=5)
    observation, state = seen(live, used=10.0), started()
    plain, _ = decide(observation, state, deadline_s=64.0)
    spared, _ = decide(observation, state, deadline_s=64.0, spare=1.0)
    careful, _ = decide(observation, state, deadline_s=64.0, unknown=0.1)
    # the longest left is a mean task of "write", 5 core-s; after one run three times as much is feared,
    # but no more than a tenth of the time is kept
    assert plain.needed_cores == pytest.approx(25 / 50, rel=2e-3)
    assert spared.needed_cores == pytest.approx(25 / (50 - 6.4), rel=5e-3)
    assert careful.needed_cores == pytest.approx((25 + 3) / 50, rel=5e-3)
