"""The PI law: expected arithmetic, bounds, anti-windup."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.control import pi

GAINS = pi.Gains(proportional=2.0, integral_s=4.0, low=0.0, high=8.0)

errors = st.floats(-1e6, 1e6)
steps = st.lists(
    st.tuples(errors | st.sampled_from([nan, inf, -inf]), st.floats(0, 60), st.floats(-10, 10)), max_size=30
)


@st.composite
def gains(draw: st.DrawFn) -> pi.Gains:
    low = draw(st.floats(-10, 10))
    return pi.Gains(
        proportional=draw(st.floats(0, 100)),
        integral_s=draw(st.floats(0.1, 100)),
        low=low,
        high=low + draw(st.floats(0, 20)),
        tracking_s=draw(st.just(0.0) | st.floats(0.1, 100)),
    )


def test_one_step() -> None:
    output, state = pi.step(GAINS, pi.State(integral=1.0), error=0.5, dt_s=2.0, feed_forward=3.0)
    # push 2·0.5 = 1; integral 1 + 1·2/4 = 1.5; output 3 + 1 + 1.5
    assert output == 5.5
    assert state == pi.State(integral=1.5, push=1.0)


def test_the_integral_adds_the_push_once_per_integral_time() -> None:
    state, outputs = pi.State(), []
    for _ in range(4):
        output, state = pi.step(GAINS, state, error=1.0, dt_s=1.0)
        outputs.append(output)
    assert outputs == [2.5, 3.0, 3.5, 4.0]  # 2 + n·2/4: after Ti = 4 s twice the push


def test_output_is_clipped_and_the_integral_re_derived() -> None:
    output, state = pi.step(GAINS, pi.State(), error=100.0, dt_s=1.0)
    assert output == 8.0  # 2·100 clipped
    assert state.integral == 8.0 - 200.0  # as in the papers: what is left of the output without the push


def test_there_is_no_windup() -> None:
    state = pi.State()
    for _ in range(1000):
        output, state = pi.step(GAINS, state, error=1.0, dt_s=1.0)
    assert output == 8.0
    output, state = pi.step(GAINS, state, error=-0.5, dt_s=1.0)
    # integral 8 − 2 = 6; push −1; integral 6 − 0.25 = 5.75: it moves at once
    assert output == pytest.approx(4.75)


def test_tracking_takes_its_time() -> None:
    slow = pi.Gains(proportional=2.0, integral_s=4.0, low=0.0, high=8.0, tracking_s=10.0)
    _, state = pi.step(slow, pi.State(), error=100.0, dt_s=1.0)
    # raw 200 + 50 = 250; a tenth of the way back: 50 + 0.1·(8 − 250)
    assert state.integral == pytest.approx(50 - 24.2)


@given(gains=gains(), steps=steps)
def test_output_is_bounded_whatever_is_measured(gains: pi.Gains, steps: list[tuple[float, float, float]]) -> None:
    state = pi.State()
    for error, dt_s, feed_forward in steps:
        output, state = pi.step(gains, state, error=error, dt_s=dt_s, feed_forward=feed_forward)
        assert gains.low <= output <= gains.high


@given(gains=gains(), integral=st.floats(-100, 100), dt_s=st.floats(0, 60), pair=st.tuples(errors, errors))
def test_output_is_monotone_in_the_error(
    gains: pi.Gains, integral: float, dt_s: float, pair: tuple[float, float]
) -> None:
    less, more = sorted(pair)
    state = pi.State(integral)
    assert pi.step(gains, state, error=less, dt_s=dt_s)[0] <= pi.step(gains, state, error=more, dt_s=dt_s)[0]


@given(
    gains=gains(),
    error=errors,
    lost=st.lists(st.tuples(st.sampled_from([nan, inf, -inf]), st.floats(0, 60)), max_size=5),
)
def test_the_output_holds_while_measurements_are_lost(
    gains: pi.Gains, error: float, lost: list[tuple[float, float]]
) -> None:
    output, state = pi.step(gains, pi.State(), error=error, dt_s=1.0)
    if gains.low < output < gains.high:
        for nothing, dt_s in lost:
            held, state = pi.step(gains, state, error=nothing, dt_s=dt_s)
            assert held == output


def test_without_any_error_nothing_moves() -> None:
    assert pi.step(GAINS, pi.State(integral=3.0), error=0.0, dt_s=5.0) == (3.0, pi.State(integral=3.0))


@pytest.mark.parametrize("bad", [{"integral_s": 0.0}, {"tracking_s": -1.0}, {"low": 9.0}])
def test_bad_gains(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        pi.Gains(**{"proportional": 1.0, "integral_s": 1.0, "low": 0.0, "high": 8.0, **bad})
