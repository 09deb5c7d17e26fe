"""From arrivals and measured latency to cores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.control import latency


def test_base_cores() -> None:
    # 40 requests a second at 15 ms each are 0.6 core, at 80 % utilisation 0.75
    found = latency.base_cores(arrivals_per_s=40.0, cpu_s_per_request=0.015, utilisation=0.8, low=0.1, high=2.0)
    assert found == pytest.approx(0.75)
    assert latency.base_cores(arrivals_per_s=0.0, cpu_s_per_request=0.015, utilisation=0.8, low=0.1, high=2.0) == 0.1
    assert latency.base_cores(arrivals_per_s=1e6, cpu_s_per_request=0.015, utilisation=0.8, low=0.1, high=2.0) == 2.0


@pytest.mark.parametrize("utilisation", [0.0, -1.0, 1.1, float("nan")])
def test_utilisation_has_a_range(utilisation: float) -> None:
    with pytest.raises(ValueError, match="utilisation="):
        latency.base_cores(arrivals_per_s=1.0, cpu_s_per_request=1.0, utilisation=utilisation, low=0.1, high=2.0)


@pytest.mark.parametrize(
    ("measured_s", "expected"),
    [
        (None, 1.0),
        (0.1, 1.0),  # at the objective: holds
        (0.05, 1.0),  # at half of it: holds
        (0.15, 1.05),  # half above: 1 + 0.1·0.5
        (0.2, 1.1),  # twice: the whole rate
        (9.9, 1.1),  # and never more
        (0.025, 0.95),  # a quarter: 1 − 0.1·(1 − 2·0.25)
        (0.0, 0.9),
    ],
)
def test_trim(measured_s: float | None, expected: float) -> None:
    found = latency.trim(1.0, measured_s=measured_s, objective_s=0.1, rate=0.1, low=0.5, high=2.0)
    assert found == pytest.approx(expected)


@given(
    last=st.floats(0, 10),
    measured_s=st.none() | st.floats(0, 10),
    low=st.floats(0, 5),
    span=st.floats(0, 5),
    rate=st.floats(0, 1),
)
def test_trim_is_bounded(last: float, measured_s: float | None, low: float, span: float, rate: float) -> None:
    found = latency.trim(last, measured_s=measured_s, objective_s=0.1, rate=rate, low=low, high=low + span)
    assert low <= found <= low + span


@given(pair=st.tuples(st.floats(0, 10), st.floats(0, 10)), rate=st.floats(0, 1))
def test_a_slower_model_never_gets_less(pair: tuple[float, float], rate: float) -> None:
    faster, slower = (
        latency.trim(1.0, measured_s=measured, objective_s=0.1, rate=rate, low=0.1, high=9.0)
        for measured in sorted(pair)
    )
    assert faster <= slower
