"""The learning curve: what is left, and how sure that is."""

from __future__ import annotations

import random
from math import exp, inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlscale.federated import curve, forecast, metrics, model
from airflow_mlscale.federated.settings import Budget
from tests.fakes import federated

ACCURACY, LOSS = metrics.METRICS["accuracy"], metrics.METRICS["loss"]


def powers(rounds: int, *, floor: float = 0.02, slope: float = 1.0, noise: float = 0.0, seed: int = 0) -> list[float]:
    """Accuracies whose error is φ + 0.8·(1 + x)^−s, with relative noise."""
    chance = random.Random(seed)
    errors = [floor + 0.8 * (1 + x) ** -slope for x in range(1, rounds + 1)]
    return [1 - error * exp(chance.gauss(0, noise)) for error in errors]


def fit(values, metric=ACCURACY) -> curve.Curve:
    found = curve.fit(metric, values, [1.0] * len(values))
    assert found is not None
    return found


def test_nothing_is_said_too_early():
    assert curve.fit(ACCURACY, [0.1, 0.2, 0.3], [1.0] * 3) is None
    assert curve.fit(ACCURACY, [0.1, 0.2, 0.3, float("nan")], [1.0] * 4) is None


def test_the_work_that_is_left_is_found():
    # 0.02 + 0.8/(1 + x) = 0.05 at x = 25.7; ten rounds are done
    left = fit(powers(15)).work_to(0.95)
    assert 0.9 * left.low <= 25.7 - 15 <= 1.1 * left.high
    assert left.middle == pytest.approx(10.7, rel=0.5)


def test_a_target_beyond_the_floor_is_out_of_reach():
    seen = fit(powers(40, floor=0.1, noise=0.03))
    assert seen.chance(0.99, 200) < 0.03
    assert seen.work_to(0.99).middle == inf
    assert seen.value_at(200).high < 0.97


def test_a_target_that_was_passed_needs_no_work():
    seen = fit(powers(30, floor=0.0))
    assert seen.work_to(0.9).middle == 0
    assert seen.chance(0.9, seen.x) > 0.95


def test_an_outlier_changes_little():
    values = powers(20, noise=0.03)
    spoiled = [*values[:-3], 0.5, *values[-2:]]
    assert fit(spoiled).value_at(60).middle == pytest.approx(fit(values).value_at(60).middle, abs=0.05)


def test_errors_and_losses_fall_to_their_best_value():
    seen = fit([1.0 / (1 + x) for x in range(1, 15)], LOSS)
    assert seen.chance(0.03, 60) > 0.5
    assert curve.value_of(LOSS, curve.error_of(LOSS, 0.3)) == pytest.approx(0.3)
    assert curve.value_of(ACCURACY, curve.error_of(ACCURACY, 0.3)) == pytest.approx(0.3)


def test_effort_grows_ever_less():
    one = curve.effort(epochs=1, answers=5, sites=20)
    assert one == 1.0
    assert 1 < curve.effort(epochs=2, answers=5, sites=20) < 2
    assert 1 < curve.effort(epochs=1, answers=10, sites=20) < 2
    assert curve.effort(epochs=1, answers=20, sites=20) == curve.effort(epochs=1, answers=10, sites=20)
    assert curve.effort(epochs=5, answers=0, sites=20) == 0


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=25), st.floats(0.05, 1), st.floats(0, 500))
def test_answers_are_probabilities_and_stay_in_order(values, target, further):
    seen = fit(values)
    assert sum(each.weight for each in seen.hypotheses) == pytest.approx(1, abs=1e-3)
    assert 0 <= seen.chance(target, seen.x + further) <= 1 + 1e-9
    at = seen.value_at(seen.x + further)
    assert 0 <= at.low <= at.middle <= at.high <= 1
    left = seen.work_to(target)
    assert 0 <= left.low <= left.middle <= left.high


def run_so_far(values, *, seconds=10.0, node_s=40.0):
    rounds = tuple(
        model.Round(
            number=i + 1, value=v, loss=1 - v, asked=(), answered=(), samples=1, seconds=seconds, segment=1,
            node_s=node_s, gigabytes=0.1,
        )
        for i, v in enumerate(values)
    )  # fmt: skip
    return model.RunState(run_id="run", rounds=rounds, best_round=len(rounds))


def test_the_first_limit_is_found():
    run, state = federated.settings(max_rounds=100, deadline_at=400.0), run_so_far(powers(10))
    seen = forecast.predict(run, state, now=100.0)
    assert (seen.limit, seen.rounds_to_limit) == ("deadline", 30.0)  # 300 s at 10 s each
    few = forecast.predict(federated.settings(max_rounds=15, deadline_at=400.0), state, now=100.0)
    assert (few.limit, few.rounds_to_limit) == ("max_rounds", 5.0)
    assert few.chance < seen.chance


def test_time_and_cost_follow_from_the_rounds_left():
    seen = forecast.predict(federated.settings(max_rounds=100), run_so_far(powers(10)), now=100.0)
    assert seen.seconds.middle == pytest.approx(10 * seen.rounds.middle)
    assert seen.node_seconds.middle == pytest.approx(40 * seen.rounds.middle)
    assert seen.gigabytes.middle == pytest.approx(0.1 * seen.rounds.middle)


def test_a_spent_budget_leaves_no_rounds():
    run = federated.settings(budget=Budget(gigabytes=0.5))
    state = model.RunState.from_json({**run_so_far(powers(10)).to_json(), "sites": [{"name": "a", "gigabytes": 0.5}]})
    seen = forecast.predict(run, state, now=100.0)
    assert (seen.limit, seen.rounds_to_limit) == ("budget.gigabytes", 0.0)


def test_json_says_null_for_never():
    seen = forecast.predict(
        federated.settings(target=model.Quality("accuracy", 0.999)), run_so_far(powers(30, floor=0.1)), now=0
    )
    assert seen.to_json()["rounds"][1] is None


def test_a_young_run_is_not_called_hopeless():
    flat = [0.1, 0.11, 0.1, 0.12, 0.1, 0.11]
    assert not forecast.predict(federated.settings(max_rounds=100), run_so_far(flat), now=0).hopeless
    assert forecast.predict(federated.settings(max_rounds=12), run_so_far(flat), now=0).hopeless  # half of it is gone
