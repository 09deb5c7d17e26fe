"""What the meter says of the recent past."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.roma import measurement

Outcome = measurement.Outcome


def test_percentile_is_exact_to_two_percent() -> None:
    meter = measurement.Meter()
    for milliseconds in range(1, 101):
        meter.record(5.0, Outcome.SERVED, milliseconds / 1000)
    assert pytest.approx(0.095, rel=0.02) == meter.window(5.5, 10, 95).percentile_s


@given(st.lists(st.floats(1e-4, 100), min_size=1, max_size=200), st.floats(1, 100))
def test_percentile_agrees_with_sorting(latencies: list[float], rank: float) -> None:
    from airflow_mlscale.control import smoothing

    meter = measurement.Meter()
    for latency in latencies:
        meter.record(0.0, Outcome.SERVED, latency)
    assert pytest.approx(smoothing.percentile(latencies, rank), rel=0.021) == meter.window(0.5, 10, rank).percentile_s


def test_what_is_older_than_the_window_does_not_count() -> None:
    meter = measurement.Meter()
    meter.record(1.0, Outcome.SERVED, 9.0)
    meter.record(50.0, Outcome.SERVED, 0.1)
    window = meter.window(51.0, 10, 95)
    assert window.requests == 1
    assert pytest.approx(0.1, rel=0.02) == window.percentile_s


def test_shed_and_failed_requests_violate_but_the_clients_mistakes_do_not_count() -> None:
    meter = measurement.Meter()
    for _ in range(90):
        meter.record(0.0, Outcome.SERVED, 0.01)
    for _ in range(10):
        meter.record(0.0, Outcome.SHED, 0.5)
    meter.record(0.0, Outcome.INVALID, 0.001)
    meter.record(0.0, Outcome.CANCELLED, 0.0)
    window = meter.window(0.5, 10, 95)
    assert (window.requests, window.errors, window.shed, window.invalid) == (100, 10, 10, 1)
    assert pytest.approx(0.5, rel=0.02) == window.percentile_s  # a tenth of them is more than the 5 % allowed


def test_lost_requests_count_with_a_miss_even_if_they_were_given_up_early_or_before_the_objective_grew() -> None:
    meter = measurement.Meter(lost_s=0.5)
    meter.record(0.0, Outcome.SHED, 1e-5)
    meter.record(0.0, Outcome.FAILED, 0.001)
    assert pytest.approx(0.5, rel=0.02) == meter.window(0.5, 10, 50).percentile_s
    meter.lost_s = 10.0
    assert pytest.approx(10.0, rel=0.02) == meter.window(0.5, 10, 50).percentile_s
    meter.record(0.0, Outcome.SHED, 60.0)  # waited for longer
    assert pytest.approx(60.0, rel=0.02) == meter.window(0.5, 10, 95).percentile_s


def test_without_requests_there_is_no_percentile() -> None:
    assert measurement.Meter().window(3.0, 10, 95).percentile_s is None


def test_arrival_rate_counts_whole_seconds_only() -> None:
    meter = measurement.Meter()
    for second in range(4):
        for _ in range(10):
            meter.arrive(second + 0.5)
    meter.arrive(4.1)
    assert meter.arrivals_per_s(4.2, 4) == 10.0  # 40 in seconds 0–3; second 4 is not over
    assert meter.arrivals_per_s(4.2, 8) == 10.0  # first asked four seconds ago
    assert meter.arrivals_per_s(8.2, 8) == 41 / 8
    assert meter.arrivals_per_s(0.5, 8) == measurement.Meter().arrivals_per_s(9, 8) == 0.0


def test_old_slots_are_forgotten() -> None:
    meter = measurement.Meter(keep_s=10)
    for second in range(100):
        meter.record(float(second), Outcome.SERVED, 0.01)
    assert meter.window(99.5, 1000, 95).requests == 11
    assert meter.totals[Outcome.SERVED] == 100


def test_answers_with_nan_are_served_and_counted_apart() -> None:
    meter = measurement.Meter()
    for second, nan in enumerate((True, False, True)):
        meter.record(float(second), measurement.Outcome.SERVED, 0.01, nan=nan)
    window = meter.window(2.5, 2, 95)
    assert (window.requests, window.errors, window.nan, meter.nan) == (2, 0, 1, 2)
