"""How many requests are joined and how many cores a model gets."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import model, policy, settings

CONTROL = settings.ControlSettings()


def times(**means: float) -> policy.ServiceTimes:
    return policy.ServiceTimes(means={int(size[1:]): seconds for size, seconds in means.items()})


def size(learned: policy.ServiceTimes, *, waiting: int = 100, slack_s: float = inf, max_batch: int = 64) -> int:
    return policy.batch_size(learned, waiting=waiting, slack_s=slack_s, max_batch=max_batch, min_gain=0.1)


GAINING = times(b1=0.010, b2=0.011, b4=0.012, b8=0.013)


def test_a_model_that_does_not_gain_is_not_batched() -> None:
    assert size(times(b1=0.010, b2=0.020, b4=0.041, b8=0.085), max_batch=8) == 1


def test_a_model_that_gains_is_batched_as_far_as_requests_wait() -> None:
    assert size(GAINING, waiting=5, max_batch=8) == 5
    assert size(GAINING, waiting=50, max_batch=8) == 8


def test_a_gain_below_the_least_one_is_not_worth_it() -> None:
    assert size(times(b1=0.010, b2=0.0185), max_batch=2) == 1  # 9.25 ms against 10 ms each: 7.5 % < 10 %


def test_the_most_urgent_request_is_not_made_late_by_company() -> None:
    assert size(GAINING, slack_s=0.0115, max_batch=8) == 3  # two take 11 ms, four would take 12 ms


def test_a_size_never_tried_is_tried_once() -> None:
    learned = times(b1=0.010)
    assert size(learned) == 3
    learned.learn(3, 0.030)  # counts for 2: no gain
    learned.learn(4, 0.060)
    learned.learn(8, 0.120)
    assert size(learned, max_batch=8) == 1


def test_learned_times_follow_the_measurements() -> None:
    learned = times(b1=0.010)
    learned.learn(1, 0.020)
    assert pytest.approx(0.012) == learned.of(1)  # 0.010 + 0.2·(0.020 − 0.010)
    assert pytest.approx(0.048) == learned.of(4)  # unknown: four times one
    assert times().of(1) == 0.0


@given(st.integers(1, 200), st.integers(1, 64), st.floats(0, 1))
def test_a_batch_is_never_larger_than_what_waits_and_what_is_allowed(waiting: int, limit: int, slack_s: float) -> None:
    assert 1 <= size(GAINING, waiting=waiting, slack_s=slack_s, max_batch=limit) <= min(waiting, limit)


def seen(name: str = "m", **changes: object) -> policy.ModelSeen:
    limits = {key: changes.pop(key) for key in ("min_cores", "max_cores", "priority") if key in changes}
    spec = model.ModelSpec(
        name=name,
        version="1",
        artefact="/m",
        objective=model.Objective(milliseconds=100),
        **limits,  # type: ignore[arg-type]
    )
    one = policy.ModelSeen(
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


def decide(*models: policy.ModelSeen, memory: policy.Memory | None = None, host: float = 4.0, **control: object):
    return policy.decide(
        models,
        memory or {},
        host_cores=host,
        control=replace(CONTROL, **control),  # type: ignore[arg-type]
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
    assert pytest.approx(1.1) == first.trim  # one step of at most 10 %
    (second,), _ = decide(seen(percentile_s=0.300), memory=memory)
    assert pytest.approx(1.21) == second.trim
    assert second.verdict == model.Verdict.VIOLATING


def test_small_changes_are_not_worth_a_write() -> None:
    _, memory = decide(seen())
    (step,), _ = decide(seen(arrivals_per_s=42.0), memory=memory)  # 5 % more
    assert step.share.guaranteed_cores == 0.5
    assert not step.changed


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
