"""Averages, percentiles, deadbands, hysteresis, slew limits."""

from __future__ import annotations

from math import exp, inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.control import smoothing

numbers = st.floats(-1e6, 1e6)


def test_a_mean_moves_by_the_time_that_passed() -> None:
    mean = smoothing.ewma(smoothing.Ewma(10.0), 4.0, dt_s=1.0)
    assert mean.value == 4.0  # the first sample is the mean
    mean = smoothing.ewma(mean, 8.0, dt_s=10.0)
    assert mean.value == pytest.approx(4 + (1 - exp(-1)) * 4)  # one time constant: 63 % of the way


@given(samples=st.lists(st.tuples(numbers, st.floats(0, 100)), min_size=1))
def test_a_mean_stays_within_its_samples(samples: list[tuple[float, float]]) -> None:
    mean = smoothing.Ewma(5.0)
    for sample, dt_s in samples:
        mean = smoothing.ewma(mean, sample, dt_s=dt_s)
    values = [sample for sample, _ in samples]
    assert mean.value is not None
    assert min(values) - 1e-6 <= mean.value <= max(values) + 1e-6


@pytest.mark.parametrize("sample", [nan, inf, -inf])
def test_a_mean_ignores_lost_samples(sample: float) -> None:
    mean = smoothing.Ewma(5.0, 2.0)
    assert smoothing.ewma(mean, sample, dt_s=1.0) == mean
    assert smoothing.ewma(smoothing.Ewma(5.0), sample, dt_s=1.0).value is None


def test_a_time_constant_is_positive() -> None:
    with pytest.raises(ValueError, match="time_constant_s=0"):
        smoothing.Ewma(0.0)


@pytest.mark.parametrize(
    ("count", "rank", "expected"),
    [
        (1, 50, 1),
        (4, 50, 2),
        (5, 50, 3),
        (20, 95, 19),
        (20, 55, 11),  # 0.55·20 is 11.000000000000002 in floating point, and still the eleventh
        (100, 99, 99),
        (1000, 99.9, 999),
        (10, 100, 10),
        (10, 0.001, 1),
    ],
)
def test_percentiles_are_nearest_ranks(count: int, rank: float, expected: int) -> None:
    assert smoothing.percentile(list(range(count, 0, -1)), rank) == expected


@given(samples=st.lists(numbers, min_size=1), ranks=st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)))
def test_percentiles_are_samples_and_monotone(samples: list[float], ranks: tuple[float, float]) -> None:
    low, high = (smoothing.percentile(samples, rank) for rank in sorted(ranks))
    assert low is not None
    assert high is not None
    assert low in samples
    assert low <= high


def test_percentiles_of_nothing_and_of_bad_ranks() -> None:
    assert smoothing.percentile([], 95) is None
    for rank in (0, -1, 100.1, nan):
        with pytest.raises(ValueError, match="rank="):
            smoothing.percentile([1.0], rank)


def test_a_deadband_swallows_small_changes() -> None:
    assert smoothing.deadband(2.0, 2.5, relative=0.25) == 2.0  # 25 % of 2 is 0.5
    assert smoothing.deadband(2.0, 2.51, relative=0.25) == 2.51
    assert smoothing.deadband(0.0, 0.04, relative=0.1, absolute=0.05) == 0.0


def test_a_slew_limit() -> None:
    assert smoothing.slew(2.0, 5.0, rise_per_s=1.0, fall_per_s=0.5, dt_s=2.0) == 4.0  # 2 + 1·2
    assert smoothing.slew(2.0, 0.0, rise_per_s=1.0, fall_per_s=0.5, dt_s=2.0) == 1.0  # 2 − 0.5·2
    assert smoothing.slew(2.0, 2.5, rise_per_s=1.0, fall_per_s=0.5, dt_s=2.0) == 2.5


@given(last=numbers, proposed=numbers, rates=st.tuples(st.floats(0, 100), st.floats(0, 100)), dt_s=st.floats(0, 60))
def test_a_slew_limit_lies_between_last_and_proposal(
    last: float, proposed: float, rates: tuple[float, float], dt_s: float
) -> None:
    output = smoothing.slew(last, proposed, rise_per_s=rates[0], fall_per_s=rates[1], dt_s=dt_s)
    assert min(last, proposed) <= output <= max(last, proposed)


def test_hysteresis_wants_periods_in_a_row() -> None:
    state, held = smoothing.Hysteresis(), []
    for condition in (True, True, False, True, True, True, True, False):
        now, state = smoothing.held_for(state, condition, periods=3)
        held.append(now)
    assert held == [False, False, False, False, False, True, True, False]
