"""Server optimisers, with the paper's arithmetic."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.federated import combination, optimisers

TRAINED = (True, False, True)
"""A weight, a moving variance, and a counter that no gradient can train."""


def weights(value: float, variance: float = 1.0, count: int = 0) -> list:
    return [np.array([value], "float32"), np.array([variance], "float32"), np.array(count)]


def moved(name: str, answers: list[float], **settings) -> list[float]:
    """The weight after each round that answers with the given weights, from 0 on."""
    chosen = combination.ServerOptimiser(name=name, **settings)
    model, moments, seen = weights(0.0), optimisers.Moments(), []
    for answer in answers:
        model, moments = optimisers.step(chosen, model, weights(answer), moments, trained=TRAINED)
        assert moments == optimisers.Moments.from_arrays(chosen, moments.to_arrays())
        seen.append(float(model[0][0]))
    return seen


def test_fedavg_becomes_the_answer_or_goes_a_part_of_the_way():
    assert moved("fedavg", [1.0, 3.0]) == [1.0, 3.0]
    assert moved("fedavg", [1.0, 3.0], learning_rate=0.5) == [0.5, 1.75]  # 0.5 + 0.5·(3 − 0.5)


def test_momentum_keeps_going():
    # m = 1, x = 1; then Δ = 0, m = 0.9·1 = 0.9, x = 1.9
    assert moved("fedavgm", [1.0, 1.0]) == pytest.approx([1.0, 1.9])


def test_fedadam_as_published():
    # β₁ = 0.9, β₂ = 0.99, τ = 0.001, η = 0.01. Round 1: Δ = 1, m = 0.1, v = 0.99·τ² + 0.01·1.
    first = 0.01 * 0.1 / (sqrt(0.99e-6 + 0.01) + 0.001)
    delta = 1 - first
    second = first + 0.01 * (0.09 + 0.1 * delta) / (sqrt(0.99 * (0.99e-6 + 0.01) + 0.01 * delta**2) + 0.001)
    assert moved("fedadam", [1.0, 1.0]) == pytest.approx([first, second], rel=1e-5)


def test_fedyogi_as_published():
    # v = τ² − 0.01·1·sign(τ² − 1) = τ² + 0.01; a small Δ then lowers v by a part of itself: 0.01·Δ².
    first = 0.01 * 0.1 / (sqrt(1e-6 + 0.01) + 0.001)
    delta = 0.05 - first
    v = 1e-6 + 0.01 - 0.01 * delta**2
    second = first + 0.01 * (0.09 + 0.1 * delta) / (sqrt(v) + 0.001)
    assert moved("fedyogi", [1.0, 0.05]) == pytest.approx([first, second], rel=1e-5)


def test_fedadagrad_as_published():
    first = 0.01 * 0.1 / (sqrt(1e-6 + 1) + 0.001)
    assert moved("fedadagrad", [1.0]) == pytest.approx([first], rel=1e-5)


@pytest.mark.parametrize("name", combination.OPTIMISERS)
def test_what_gradients_do_not_train_becomes_the_answer(name):
    chosen = combination.ServerOptimiser(name=name, learning_rate=5.0)
    seen, moments = optimisers.step(
        chosen, weights(0.0, 1.0, 3), weights(0.5, 0.1, 8), optimisers.Moments(), trained=TRAINED
    )
    assert (float(seen[1][0]), int(seen[2])) == (pytest.approx(0.1), 8)  # a variance below 0 would be 1 − 5·0.9
    assert [array.dtype for array in seen] == [np.float32, np.float32, np.int64]
    assert all(array.dtype == np.float32 for array in moments.to_arrays())


@pytest.mark.parametrize("name", combination.OPTIMISERS)
def test_a_model_that_nobody_changes_comes_to_rest(name):
    assert moved(name, [0.0] * 3) == [0.0] * 3


def test_moments_of_another_model_are_refused():
    other = optimisers.Moments(first=(np.zeros(1),) * 2, second=(np.zeros(1),) * 2)
    with pytest.raises(ValueError, match="zip"):
        optimisers.step(combination.ServerOptimiser(name="fedadam"), weights(0), weights(1), other, trained=TRAINED)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20), st.sampled_from(["fedadagrad", "fedadam"]))
def test_an_adaptive_step_is_bounded_whatever_the_update(answers, name):
    """By Cauchy and Schwarz |m| / √v ≤ (1 − β₁) / √(1 − β₂) · √Σ(β₁² / β₂)ᵏ = 0.1 / 0.1 · √5.5 = 2.35.

    Adagrad's is less. FedYogi's v may fall below FedAdam's, so nothing of the kind holds for it.
    """
    seen = [0.0, *moved(name, answers)]
    steps = [abs(after - before) for before, after in pairwise(seen)]
    assert max(steps) <= 2.35 * 0.01
