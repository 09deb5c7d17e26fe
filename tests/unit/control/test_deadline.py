"""From remaining work and time to cores."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.control import deadline

LEFT = deadline.Remaining(work_core_s=100.0, time_s=100.0, gaps_s=10.0)


def cores(remaining: deadline.Remaining, *, low: float = 0.2, high: float = 8.0, beta: float = 1.0) -> float:
    return deadline.cores(remaining, beta=beta, aim=0.95, margin_s=5.0, low=low, high=high)


def test_cores() -> None:
    # 100·0.95 − 10 − 5 = 80 s; 100·1.2/80
    assert deadline.usable_s(LEFT, aim=0.95, margin_s=5.0) == 80.0
    assert cores(LEFT, beta=1.2) == 1.5


def test_limits() -> None:
    assert cores(LEFT, high=1.0) == 1.0
    assert cores(deadline.Remaining(work_core_s=1.0, time_s=100.0)) == 0.2
    assert cores(deadline.Remaining(work_core_s=1.0, time_s=-5.0)) == 8.0  # too late: everything
    assert cores(deadline.Remaining(work_core_s=1.0, time_s=15.0, gaps_s=10.0)) == 8.0  # only gaps are left
    assert cores(deadline.Remaining(work_core_s=0.0, time_s=-5.0)) == 0.2  # nothing left to do
    assert cores(deadline.Remaining(work_core_s=0.0, time_s=5.0), low=0.5, high=0.25) == 0.25


works = st.floats(0, 1e6)
times = st.floats(-1e4, 1e6)
gaps = st.floats(0, 1e4)


@given(work=works, time=times, gap=gaps, beta=st.floats(0.1, 10), low=st.floats(0, 4), span=st.floats(0, 60))
def test_cores_are_bounded(work: float, time: float, gap: float, beta: float, low: float, span: float) -> None:
    remaining = deadline.Remaining(work_core_s=work, time_s=time, gaps_s=gap)
    assert low <= cores(remaining, low=low, high=low + span, beta=beta) <= low + span


@given(works=st.tuples(works, works), time=times, gap=gaps)
def test_more_work_never_takes_fewer_cores(works: tuple[float, float], time: float, gap: float) -> None:
    less, more = (deadline.Remaining(work_core_s=work, time_s=time, gaps_s=gap) for work in sorted(works))
    assert cores(less) <= cores(more)


@given(work=works, times=st.tuples(times, times), gap=gaps)
def test_more_time_never_takes_more_cores(work: float, times: tuple[float, float], gap: float) -> None:
    less, more = (deadline.Remaining(work_core_s=work, time_s=time, gaps_s=gap) for time in sorted(times))
    assert cores(less) >= cores(more)


def test_earliest_finish() -> None:
    assert deadline.earliest_finish_s(LEFT, beta=1.2, cores_max=4.0) == 40.0  # 10 + 1.2·100/4
    assert deadline.earliest_finish_s(LEFT, beta=1.0, cores_max=0.0) == inf
    assert deadline.earliest_finish_s(deadline.Remaining(work_core_s=0, time_s=9), beta=1.0, cores_max=2.0) == 0.0


def test_the_stage_deadline_of_the_paper() -> None:
    # w = 0.33·2 + 0.67·(60/20 − 1) = 2; (0.95·100 − 5)/(2 + 1) = 30
    found = deadline.stage_deadline_s(
        deadline_s=100.0, elapsed_s=5.0, stages_left=2, duration_left_s=60.0, stage_duration_s=20.0
    )
    assert found == pytest.approx(30.0)
    # the last stage has all that is left: w = 0
    found = deadline.stage_deadline_s(
        deadline_s=100.0, elapsed_s=45.0, stages_left=0, duration_left_s=20.0, stage_duration_s=20.0
    )
    assert found == pytest.approx(50.0)
    # a stage that the profile gives no time counts by its number alone: w = 0.33·3
    found = deadline.stage_deadline_s(
        deadline_s=100.0, elapsed_s=0.0, stages_left=3, duration_left_s=60.0, stage_duration_s=0.0
    )
    assert found == pytest.approx(95 / 1.99)


def piece(work: float, parallelism: float) -> deadline.Piece:
    return deadline.Piece(work_core_s=work, parallelism=parallelism)


def test_pieces_one_after_the_other() -> None:
    pieces = [piece(40.0, 8.0), piece(10.0, 1.0)]
    assert deadline.duration_s(pieces, 4.0) == 20.0  # 40/4 + 10/1
    assert deadline.cores_within(pieces, 20.0) == 4.0
    assert deadline.cores_within(pieces, 15.0) == 8.0  # 10 s for the serial one, 40/8 = 5 for the other
    assert deadline.cores_within(pieces, 14.0) == inf
    assert deadline.cores_within(pieces, 0.0) == inf
    assert (deadline.duration_s([], 0.0), deadline.cores_within([], 0.0)) == (0.0, 0.0)
    assert deadline.duration_s(pieces, 0.0) == inf


@given(
    pieces=st.lists(st.builds(piece, st.floats(0.1, 100), st.floats(0.5, 16)), min_size=1, max_size=6),
    time_s=st.floats(0.1, 500),
)
def test_cores_within_is_the_least_that_suffices(pieces: list[deadline.Piece], time_s: float) -> None:
    found = deadline.cores_within(pieces, time_s)
    if found == inf:
        assert deadline.duration_s(pieces, 1e6) > time_s * (1 - 1e-9)
    else:
        assert deadline.duration_s(pieces, found) <= time_s * (1 + 1e-9)
        assert deadline.duration_s(pieces, found * 0.99) > time_s * (1 - 1e-9)
