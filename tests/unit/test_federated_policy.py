"""When a round closes, and what it changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.federated import model, policies, policy
from tests.fakes import federated
from tests.fakes.federated import state


def plan(settings=None, last_round_s=2.0, left_s=None) -> policy.RoundPlan:
    run = settings or federated.settings(
        policy="over_selection", deadline_at=None if left_s is None else 1000.0 + left_s
    )
    return policies.plan_round(run, federated.seen(*"abcde", last_round_s=last_round_s))


@pytest.mark.parametrize(
    ("answered", "failed", "elapsed", "expected"),
    [
        ((), 0, 10, 50),  # nobody: the timeout is left
        ((1, 2), 0, 2, 4),  # the quorum: patience of 3 · 2 s = 6 s
        ((1, 2), 0, 7, 0),
        ((1, 2, 3, 4), 0, 4, 2),  # enough at 4 s: half of it as grace
        ((0.1, 0.2, 0.3, 0.4), 0, 0.4, 1),  # at least a second
        ((1, 2, 3, 4, 5), 0, 5, 0),  # everybody
        ((1, 2, 3), 2, 3, 0),  # everybody, two of them with an error
        ((), 0, 70, 0),
    ],
)
def test_a_round_closes(answered, failed, elapsed, expected):
    left = policy.seconds_to_close(plan(), answered_after_s=answered, failed=failed, elapsed_s=elapsed)
    assert left == pytest.approx(expected)


@given(
    st.lists(st.floats(0, 100), max_size=5), st.integers(0, 5), st.floats(0, 200), st.floats(0.1, 60), st.floats(0, 300)
)
def test_no_round_stays_open_beyond_its_timeout(answered, failed, elapsed, last, left_s):
    seen = plan(last_round_s=last, left_s=left_s)
    left = policy.seconds_to_close(seen, answered_after_s=answered, failed=failed, elapsed_s=elapsed)
    assert 0 <= left <= max(0.0, seen.timeout_s - elapsed)


def test_errors_do_not_make_a_quorum():
    answers = [model.SiteAnswer(site="a", samples=1), model.SiteAnswer(site="b", error="no data")]
    assert not policy.counts(plan(), answers)
    assert policy.counts(plan(), [*answers, model.SiteAnswer(site="c", samples=1)])


def test_the_best_round_is_remembered_for_accuracies_and_for_errors():
    quality, loss = model.Quality("accuracy", 0.9), model.Quality("loss", 0.1)
    for condition, expected in ((quality, 2), (loss, 1)):
        seen = state()
        for done in state(0.5, 0.8, 0.7).rounds:
            seen = policy.with_round(seen, condition, done)
        assert expected == seen.best_round


def test_a_complete_round_forgives_failed_ones():
    done = state(0.5).rounds[0]
    seen = policy.with_round(
        replace(state(), failed_rounds=2, reason="no quorum"), model.Quality("accuracy", 0.9), done
    )
    assert (seen.failed_rounds, seen.reason) == (0, "")


def test_the_first_finite_evaluation_beats_one_that_is_not() -> None:
    loss = model.Quality("loss", 0.1)
    assert loss.better(0.5, float("nan"))
    assert not loss.better(float("nan"), 0.5)
