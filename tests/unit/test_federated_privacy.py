"""Clipping, noise and the account of what rounds have spent."""

from __future__ import annotations

from math import erfc, exp, inf, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.federated import account, combination, model, privacy

SENT = [np.ones((2,), "float32"), np.ones(1, "float32"), np.array(7)]
TRAINED = (True, False, False)


def settings(**changes) -> combination.Privacy:
    return combination.Privacy(**{"clip_norm": 5.0, "noise_multiplier": 1e-9, **changes})


def moved(*by: float) -> list:
    return [SENT[0] + np.array(by, "float32"), np.full(1, 9.0, "float32"), np.array(8)]


def played(*answered: str) -> list[model.Round]:
    return [
        model.Round(
            number=i + 1, value=0.5, loss=1, asked=(), answered=tuple(sites), samples=1, seconds=1, segment=1
        )
        for i, sites in enumerate(answered)
    ]  # fmt: skip


def test_a_long_update_is_shortened_and_a_short_one_is_not():
    update = privacy.update_of(moved(6, 8), SENT, TRAINED)  # length 10
    assert privacy.norm(update) == 10
    assert privacy.clipped(update, 5.0)[0].tolist() == [3, 4]
    assert privacy.clipped(update, 10.0)[0].tolist() == [6, 8]


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=2), st.floats(1e-3, 1e3))
def test_no_clipped_update_is_longer_than_the_clip(by, most):
    assert privacy.norm(privacy.clipped([np.array(by), None], most)) <= most * (1 + 1e-12)


def test_only_what_gradients_train_leaves_a_site():
    sent = privacy.leaving(settings(), moved(6, 8), SENT, TRAINED, quorum=2)
    assert sent[0].tolist() == [4, 5]  # 1 + 3, 1 + 4
    assert (sent[1].tolist(), int(sent[2])) == ([1.0], 7)  # as it was given


def test_every_site_counts_the_same_and_at_most_its_clip():
    seen = privacy.combined(settings(), [moved(6, 8), moved(0, 1)], SENT, TRAINED)
    assert seen[0] == pytest.approx([1 + 3 / 2, 1 + 5 / 2], abs=1e-6)  # (3 + 0) / 2, (4 + 1) / 2
    assert [array.dtype for array in seen] == [array.dtype for array in SENT]
    assert int(seen[2]) == 7


def big(deviation_at: str, parts: int) -> np.ndarray:
    """What is left of many coordinates that nobody changed: the noise of the average."""
    given_weights = [np.zeros(40_000, "float32")]
    chosen = settings(clip_norm=2.0, noise_multiplier=3.0, noise_at=deviation_at)
    sent = [privacy.leaving(chosen, given_weights, given_weights, (True,), quorum=4) for _ in range(parts)]
    return privacy.combined(chosen, sent, given_weights, (True,))[0]


def test_the_server_adds_the_promised_noise_to_the_sum():
    assert big("server", 4).std() == pytest.approx(2 * 3 / 4, rel=0.05)  # z·S / n; 40,000 draws: ± 0.35 % each σ


def test_the_noises_of_the_quorum_make_the_promised_one():
    assert big("sites", 4).std() == pytest.approx(2 * 3 / 4, rel=0.05)
    assert big("sites", 8).std() == pytest.approx(sqrt(8 * (2 * 3 / sqrt(4)) ** 2) / 8, rel=0.05)  # more than promised


def test_noise_is_gaussian_and_never_the_same():
    drawn = privacy.gaussian((200, 500))
    assert drawn.shape == (200, 500)
    assert drawn.mean() == pytest.approx(0, abs=0.03)
    assert drawn.std() == pytest.approx(1, abs=0.03)
    for bound in (1.0, 2.0, 3.0):
        assert (drawn > bound).mean() == pytest.approx(erfc(bound / sqrt(2)) / 2, abs=0.006)
    assert len(np.unique(np.concatenate([drawn.ravel(), privacy.gaussian((1000,))]))) == 101_000
    assert privacy.gaussian(()).shape == ()


def test_an_honest_noisy_update_is_within_the_bound():
    chosen = settings(clip_norm=1.0, noise_multiplier=2.0, noise_at="sites")
    given_weights = [np.zeros(1000, "float32")]
    bound = privacy.longest(chosen, quorum=4, coordinates=1000)
    assert bound == pytest.approx(1 + 1 * (sqrt(1000) + 6.5))  # σ = 2·1/√4 = 1
    for _ in range(20):
        sent = privacy.leaving(chosen, given_weights, given_weights, (True,), quorum=4)
        assert privacy.norm(privacy.update_of(sent, given_weights, (True,))) <= bound


def test_each_site_pays_for_its_own_rounds():
    assert account.most_rounds([]) == 0
    assert account.most_rounds(played("ab", "bc", "cb")) == 3


def exact_epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """ε of a Gaussian mechanism without loss: Balle and Wang, ICML 2018, theorem 8, with μ = √rounds / z."""
    mu = sqrt(rounds) / noise_multiplier

    def phi(x: float) -> float:
        return erfc(-x / sqrt(2)) / 2

    low, high = 0.0, 500.0
    for _ in range(100):
        middle = (low + high) / 2
        spent = phi(mu / 2 - middle / mu) - exp(middle) * phi(-mu / 2 - middle / mu)
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


@pytest.mark.parametrize("noise_multiplier", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("rounds", [1, 50])
def test_the_accountant_tells_no_less_than_the_truth_and_not_much_more(noise_multiplier, rounds):
    pytest.importorskip("opendp")
    told, truth = account.epsilon(noise_multiplier, rounds, 1e-5), exact_epsilon(noise_multiplier, rounds, 1e-5)
    assert truth <= told <= 1.25 * truth


def test_the_rounds_that_a_budget_allows_are_found_by_the_accountant():
    two, three = account.epsilon(2.0, 2, 1e-5), account.epsilon(2.0, 3, 1e-5)
    assert account.allowed_rounds(settings(noise_multiplier=2.0, max_epsilon=(two + three) / 2), 50) == 2
    assert account.allowed_rounds(settings(noise_multiplier=2.0, max_epsilon=three), 50) == 3
    assert account.allowed_rounds(settings(noise_multiplier=2.0, max_epsilon=1e9), 50) == 50
    assert account.allowed_rounds(settings(noise_multiplier=2.0), 50) == 50


def test_a_run_without_rounds_has_spent_nothing():
    assert account.spent(settings(), []) == account.Spent(0.0, 1e-5, 0)


def test_the_budget_ends_a_run_before_it_is_exceeded():
    pytest.importorskip("opendp")
    two, three = account.epsilon(2.0, 2, 1e-5), account.epsilon(2.0, 3, 1e-5)
    chosen = settings(noise_multiplier=2.0, max_epsilon=(two + three) / 2)
    assert not account.exhausted(chosen, played("ab"))
    assert not account.exhausted(chosen, played("ab", "cd"))  # nobody has taken part twice
    assert account.exhausted(chosen, played("ab", "bc"))
    assert account.spent(chosen, played("ab", "bc")).epsilon == two < inf
    assert not account.exhausted(settings(noise_multiplier=2.0), played("ab", "bc"))


def test_hardly_any_noise_promises_nothing_instead_of_failing_the_run():
    assert account.epsilon(1e-6, 3, 1e-5) == float("inf")
