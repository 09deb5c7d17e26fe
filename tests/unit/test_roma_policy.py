"""How many cores a model gets, and how it is judged."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import laws, model, policy, settings

CONTROL = settings.ControlSettings()


def seen(name: str = "m", **changes: object) -> laws.ModelSeen:
    limits = {key: changes.pop(key) for key in ("min_cores", "max_cores", "priority") if key in changes}
    spec = model.ModelSpec(
        name=name,
        version="1",
        artefact="/m",
        objective=model.Objective(milliseconds=100),
        **limits,  # type: ignore[arg-type]
    )
    one = laws.ModelSeen(
        name=name,
        group=f"roma.{name}",
        spec=spec,
        arrivals_per_s=40.0,
        cpu_s_per_request=0.010,
        percentile_s=0.080,
        requests=400,
        waiting=0,
        used_cores=0.4,
    )
    return replace(one, **changes)  # type: ignore[arg-type]


def decide(
    *models: laws.ModelSeen,
    memory: policy.Memory | None = None,
    host: float = 4.0,
    dt_s: float = 1.0,
    **control: object,
) -> tuple[tuple[policy.SetShare, ...], policy.Memory]:
    return policy.decide(
        models,
        memory or {},
        host_cores=host,
        control=replace(CONTROL, **control),  # type: ignore[arg-type]
        dt_s=dt_s,
    )


def test_base_is_load_over_utilisation() -> None:
    (step,), _ = decide(seen())
    assert pytest.approx(0.5) == step.share.guaranteed_cores  # 40/s · 10 ms / 0.8
    assert step.share.ceiling_cores is None
    assert step.terms.priority == cpu.SERVING_PRIORITY
    assert step.terms.minimum_cores == 0.1


def test_reserve_mode_makes_the_base_the_ceiling() -> None:
    (step,), _ = decide(seen(), mode="reserve")
    assert cpu.CpuShare.strict(0.5) == step.share


def test_without_requests_the_minimum_is_kept() -> None:
    (step,), _ = decide(seen(arrivals_per_s=0.0, cpu_s_per_request=None, percentile_s=None, min_cores=0.25))
    assert step.share.guaranteed_cores == 0.25
    assert step.verdict == model.Verdict.NO_DATA


def test_most_cores_and_the_host_are_limits() -> None:
    (step,), _ = decide(seen(arrivals_per_s=1000.0, max_cores=2.0))
    assert step.share.guaranteed_cores == 2.0
    (step,), _ = decide(seen(arrivals_per_s=1000.0))
    assert step.share.guaranteed_cores == 4.0


def test_a_missed_objective_trims_the_base_up_slowly() -> None:
    (first,), memory = decide(seen(percentile_s=0.300))
    assert pytest.approx(1.03) == first.trim  # one step of at most 3 %
    (second,), _ = decide(seen(percentile_s=0.300), memory=memory)
    assert pytest.approx(1.0609) == second.trim
    assert second.verdict == model.Verdict.VIOLATING


def test_small_changes_are_not_worth_a_write() -> None:
    _, memory = decide(seen())
    (step,), _ = decide(seen(arrivals_per_s=42.0), memory=memory)  # 5 % more
    assert step.share.guaranteed_cores == 0.5
    assert not step.changed


def test_credit_is_earned_by_load_and_who_asks_for_less_earns_an_even_part() -> None:
    greedy, modest, idle = seen("greedy", arrivals_per_s=800.0), seen("modest"), seen("idle", arrivals_per_s=0.0)
    plan, _ = decide(greedy, modest, idle, host=4.0)
    # 10 and 0.5 cores by load, and 0.1 at least: two of 4 cores are even; the greedy one has what is left
    assert [step.earned_cores for step in plan] == pytest.approx([3.4, 2.0, 2.0])
    plan, _ = decide(greedy, replace(greedy, group="other"), modest, host=4.0)
    assert [step.earned_cores for step in plan] == pytest.approx([1.75, 1.75, 4 / 3])


def test_a_light_model_weighs_as_much_as_the_mean_as_far_as_that_makes_it_prompt() -> None:
    heavy, light = seen("heavy", arrivals_per_s=80.0), seen("light", arrivals_per_s=10.0, cpu_s_per_request=0.004)
    plan, _ = decide(heavy, light)
    cores = {step.seen.name: step.share.guaranteed_cores for step in plan}
    # 1.0 and 0.1 by load; 10 · 4 ms of work, and 4 ms in a fifth of 100 ms: 0.24
    assert pytest.approx({"heavy": 1.0, "light": 0.24}) == cores
    plan, _ = decide(heavy, light, prompt_part=0.001)
    assert [step.share.guaranteed_cores for step in plan] == pytest.approx([1.0, 0.55])  # not above the mean
    plan, _ = decide(heavy, replace(light, arrivals_per_s=0.0))
    assert plan[1].share.guaranteed_cores == 0.1  # whom nobody asks
    plan, _ = decide(seen("heavy", arrivals_per_s=80.0, priority=1), light)
    assert plan[1].share.guaranteed_cores == 0.1  # no peer of the heavy one
    plan, _ = decide(heavy, seen("light", arrivals_per_s=10.0, cpu_s_per_request=0.004, max_cores=0.15))
    assert pytest.approx(0.15) == plan[1].share.guaranteed_cores


def test_under_contention_the_higher_priority_is_served_first() -> None:
    plan, _ = decide(seen("low", arrivals_per_s=160.0), seen("high", arrivals_per_s=120.0, priority=5), host=2.0)
    cores = {step.seen.name: step.share.guaranteed_cores for step in plan}
    assert pytest.approx({"low": 0.5, "high": 1.5}) == cores  # high wants 1.5 and gets it; low gets what is left of 2


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1), st.integers(-3, 3)), min_size=1, max_size=6))
def test_guarantees_never_exceed_the_host(drawn: list[tuple[float, float, int]]) -> None:
    models = [
        seen(f"m{index}", arrivals_per_s=rate, cpu_s_per_request=cost, priority=priority)
        for index, (rate, cost, priority) in enumerate(drawn)
    ]
    plan, _ = decide(*models)
    assert sum(step.share.guaranteed_cores for step in plan) <= 4.0 + 1e-6
    assert all(step.share.guaranteed_cores >= 0.1 - 1e-9 for step in plan)  # six minimums of 0.1 fit into 4


@pytest.mark.parametrize(
    ("measured_s", "short", "expected"),
    [
        (None, False, "no_data"),
        (0.05, False, "on_target"),
        (0.095, False, "at_risk"),
        (0.05, True, "at_risk"),
        (0.101, False, "violating"),
    ],
)
def test_verdicts(measured_s: float | None, short: bool, expected: str) -> None:
    assert expected == policy.judge(measured_s, 0.1, short_of_cores=short)


def verdicts(*raw: model.Verdict) -> list[str]:
    memory, told = policy.VerdictMemory(), []
    for one in raw:
        memory = policy.settled(memory, one, CONTROL)
        told.append(memory.verdict.value)
    return told


GOOD, RISK, BAD = model.Verdict.ON_TARGET, model.Verdict.AT_RISK, model.Verdict.VIOLATING


def test_one_bad_look_is_no_verdict_but_two_are() -> None:
    assert verdicts(GOOD, BAD, GOOD, BAD, BAD) == ["on_target", "on_target", "on_target", "on_target", "violating"]


def test_a_verdict_gets_better_after_five_good_looks() -> None:
    told = verdicts(BAD, *[GOOD] * 4, BAD, *[GOOD] * 5)
    assert told == ["violating"] * 10 + ["on_target"]
    assert verdicts(BAD, model.Verdict.NO_DATA, GOOD) == ["violating", "no_data", "on_target"]


@given(st.lists(st.sampled_from([GOOD, RISK, BAD]), min_size=1, max_size=40))
def test_a_verdict_never_moves_more_often_than_its_hysteresis_allows(raw: list[model.Verdict]) -> None:
    told = verdicts(*raw)
    moves = [i for i in range(1, len(told)) if told[i] != told[i - 1]]
    assert all(later - earlier >= CONTROL.worse_periods for earlier, later in itertools.pairwise(moves))


def test_the_objective_the_bounds_and_the_priority_may_change_between_two_steps() -> None:
    one = seen(percentile_s=0.080)
    _, memory = decide(one)
    tighter = replace(one.spec, objective=model.Objective(milliseconds=50), min_cores=1.0, max_cores=1.5, priority=7)
    (step,), _ = decide(replace(one, spec=tighter), memory=memory)
    assert (step.share.guaranteed_cores, step.terms.minimum_cores) == (1.0, 1.0)
    assert step.terms.priority == cpu.SERVING_PRIORITY + 7
    assert step.trim > 1.0  # 80 ms were fine for 100 ms, they are not for 50 ms


@pytest.mark.parametrize(("ceiling", "places"), [(None, 4), (0.3, 1), (1.0, 1), (1.1, 2), (9.0, 4)])
def test_executions_side_by_side_follow_the_ceiling(ceiling: float | None, places: int) -> None:
    share = cpu.CpuShare(guaranteed_cores=0.3, ceiling_cores=ceiling)
    assert places == policy.places(seen().spec, share, 4.0)
    assert policy.places(seen(max_cores=1.0).spec, share, 4.0) == 1


def test_a_loan_raises_the_ceiling_alone() -> None:
    assert cpu.CpuShare(guaranteed_cores=0.5, ceiling_cores=0.8) == policy.lent(cpu.CpuShare.strict(0.5), 0.3)
    free = cpu.CpuShare(guaranteed_cores=0.5)
    assert free == policy.lent(free, 0.3)


def test_what_the_host_cannot_give_does_not_wind_up() -> None:
    memory: policy.Memory = {}
    for _ in range(100):
        (step, _), memory = decide(
            seen("a", percentile_s=9.0, arrivals_per_s=500.0), seen("b", arrivals_per_s=500.0), memory=memory
        )
    assert step.trim < 1.1  # it wishes 4 of the 4 cores that b wishes too
