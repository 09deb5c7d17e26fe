"""The learned service-time law, and the batches it leads to."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.roma import batching, service_time


def times(seconds: dict[int, float], *, samples: int = 20) -> service_time.ServiceTimes:
    learned = service_time.ServiceTimes()
    for size, each in seconds.items():
        for _ in range(samples):
            learned.learn(size, each)
    return learned


def test_nothing_known_refuses_nothing() -> None:
    nothing = service_time.ServiceTimes()
    assert (nothing.of(1), nothing.cautious(8), nothing.each(8)) == (0.0, 0.0, 0.0)


def test_between_and_beyond_what_was_seen() -> None:
    learned = times({1: 0.010, 4: 0.016})
    assert pytest.approx(0.012) == learned.of(2)  # a straight line from (1, 10 ms) to (4, 16 ms)
    assert pytest.approx(0.032) == learned.of(8)  # in proportion
    assert pytest.approx(0.004) == learned.each(4)
    assert pytest.approx({1: 0.010, 4: 0.016}) == dict(learned.means)


def test_a_frozen_machine_teaches_little_and_a_lasting_change_everything() -> None:
    learned = times({1: 0.010})
    learned.learn(1, 5.0)
    assert learned.of(1) < 0.0105  # at most 4 spreads of 5 %, weighed with a tenth
    for _ in range(60):
        learned.learn(1, 0.030)
    assert pytest.approx(0.030, rel=0.02) == learned.of(1)


def test_less_than_a_core_slows_down_in_proportion_and_is_not_learned_as_slowness() -> None:
    learned = service_time.ServiceTimes()
    for _ in range(20):
        learned.learn(1, 0.040, cores=0.25)
    assert pytest.approx(0.010) == learned.of(1)
    assert pytest.approx(0.020) == learned.of(1, cores=0.5)


def test_what_more_cores_share_is_learned() -> None:
    learned = times({1: 0.100})
    for _ in range(80):
        learned.learn(1, 0.040, cores=4.0)  # (1 − p) + p/4 = 0.4 → p = 0.8
    assert pytest.approx(0.8, abs=0.02) == learned.parallel
    assert pytest.approx(0.060, rel=0.05) == learned.of(1, cores=2.0)


def test_caution_shrinks_as_samples_agree_and_covers_most_of_them_when_they_do_not() -> None:
    few, many = times({1: 0.010}, samples=1), times({1: 0.010}, samples=100)
    assert few.cautious(1) > many.cautious(1) > many.of(1)
    rng = random.Random(7)
    noisy = service_time.ServiceTimes()
    drawn = [0.010 * rng.lognormvariate(0, 0.3) for _ in range(400)]
    for each in drawn:
        noisy.learn(1, each)
    assert 0.85 < sum(each <= noisy.cautious(1) for each in drawn) / len(drawn) < 0.995


SAMPLES = st.lists(st.tuples(st.integers(1, 64), st.floats(1e-5, 10), st.floats(0.05, 8)), min_size=1, max_size=40)


@given(SAMPLES, st.integers(1, 200), st.integers(1, 200), st.floats(0.05, 16), st.floats(0.05, 16))
def test_it_never_falls_with_the_size_nor_rises_with_the_cores(
    samples: list[tuple[int, float, float]], one: int, other: int, few: float, many: float
) -> None:
    learned = service_time.ServiceTimes()
    for size, seconds, cores in samples:
        learned.learn(size, seconds, cores=cores)
    small, large = sorted((one, other))
    few, many = sorted((few, many))
    assert learned.of(small) <= learned.of(large) * (1 + 1e-9)
    assert learned.cautious(small) <= learned.cautious(large) * (1 + 1e-9)
    assert learned.of(one, cores=many) <= learned.of(one, cores=few) * (1 + 1e-9)
    assert 0 < learned.of(one) <= learned.cautious(one) < inf
    assert 0.0 <= learned.parallel <= 1.0


def size(
    learned: service_time.ServiceTimes,
    *,
    waiting: int = 100,
    slack_s: float = inf,
    max_batch: int = 64,
    free: int = 1,
    cores: float = 1.0,
) -> int:
    return batching.size(
        learned, waiting=waiting, slack_s=slack_s, max_batch=max_batch, min_gain=0.1, free=free, cores=cores
    )


GAINING = times({1: 0.010, 2: 0.011, 4: 0.012, 8: 0.013}, samples=100)


def test_a_model_that_does_not_gain_is_not_batched() -> None:
    assert size(times({1: 0.010, 2: 0.020, 4: 0.041, 8: 0.085}), max_batch=8) == 1


def test_a_model_that_gains_is_batched_as_far_as_requests_wait() -> None:
    assert size(GAINING, waiting=5, max_batch=8) == 5
    assert size(GAINING, waiting=50, max_batch=8) == 8


def test_a_gain_below_the_least_one_is_not_worth_it() -> None:
    assert size(times({1: 0.010, 2: 0.0185}), max_batch=2) == 1  # 9.25 ms against 10 ms each: 7.5 % < 10 %


def test_the_most_urgent_request_is_not_made_late_by_company() -> None:
    # with all samples alike the spread is 5 %, and 1.65 of 5.05 % are 8.7 %: four take 13.04 ms at worst
    assert size(GAINING, slack_s=0.0131, max_batch=8) == 4
    assert size(GAINING, slack_s=0.0130, max_batch=8) == 3
    assert size(GAINING, slack_s=0.0131, max_batch=8, cores=0.5) == 1


def test_free_places_are_filled_before_requests_are_joined() -> None:
    assert size(GAINING, waiting=4, free=4) == 1
    assert size(GAINING, waiting=4, free=2) == 2


def test_a_size_never_tried_is_tried_once() -> None:
    learned = times({1: 0.010})
    assert size(learned) == 3
    learned.learn(3, 0.030)  # no gain
    assert size(learned, max_batch=3) == 1
    assert size(learned) == 7  # nobody has seen four yet


@given(
    SAMPLES,
    st.integers(0, 200),
    st.integers(1, 64),
    st.floats(0, 1),
    st.integers(1, 8),
    st.floats(0.05, 1),
)
def test_a_batch_is_never_larger_than_what_waits_and_what_is_allowed_and_is_in_time_where_one_request_is(
    samples: list[tuple[int, float, float]], waiting: int, limit: int, slack_s: float, free: int, cores: float
) -> None:
    learned = service_time.ServiceTimes()
    for each, seconds, _ in samples:
        learned.learn(each, seconds)
    found = size(learned, waiting=waiting, slack_s=slack_s, max_batch=limit, free=free, cores=cores)
    assert min(1, waiting) <= found <= min(waiting, limit)
    assert found <= 1 or learned.cautious(found, cores=cores) <= slack_s
