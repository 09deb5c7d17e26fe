"""Whom to ask, when a round closes, how answers combine, when a run ends."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.federated import model, policy
from tests.fakes import federated


def records(*names: str, silent: tuple[str, ...] = ()) -> list[policy.SiteRecord]:
    return [policy.SiteRecord(name=name, unanswered=int(name in silent)) for name in names]


def plan(settings=None, sites=None, **changes) -> policy.RoundPlan:
    arguments = {"number": 1, "last_round_s": 2.0, "left_s": inf, **changes}
    return policy.plan_round(settings or federated.settings(), sites or records(*"abcde"), **arguments)


def state(*values: float, **changes) -> model.RunState:
    rounds = tuple(
        model.Round(number=i + 1, value=v, loss=1 - v, asked=(), answered=(), samples=1, seconds=1, segment=1)
        for i, v in enumerate(values)
    )
    return model.RunState(run_id="run", rounds=rounds, **changes)


def test_without_a_cohort_everybody_is_asked_and_a_part_is_enough():
    seen = plan()
    assert tuple("abcde") == seen.asked
    assert seen.enough == 4  # ⌈5 / 1.25⌉


def test_a_cohort_is_over_selected():
    seen = plan(federated.settings(cohort=3))
    assert len(seen.asked) == 4  # ⌈3 · 1.25⌉
    assert seen.enough == 3


def test_a_cohort_prefers_sites_that_answer():
    seen = plan(federated.settings(cohort=2, over_selection=1.0), records(*"abcd", silent=("a", "b")))
    assert seen.asked == ("c", "d")


def test_silent_sites_are_asked_but_not_counted_on():
    seen = plan(sites=records(*"abcde", silent=("d", "e")))
    assert tuple("abcde") == seen.asked
    assert seen.enough == 3  # ⌈3 / 1.25⌉


def test_the_same_round_asks_the_same_sites_again():
    settings = federated.settings(cohort=2)
    assert plan(settings, number=7) == plan(settings, number=7)
    assert len({plan(settings, number=number).asked for number in range(1, 20)}) > 1


def test_the_first_round_of_a_segment_may_take_longer_and_none_outlasts_the_deadline():
    assert plan(last_round_s=None).timeout_s == 180  # 60 + 120 to start
    assert plan().timeout_s == 60
    assert plan(left_s=12).timeout_s == 12
    assert plan(left_s=-3).timeout_s == 0


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


def test_a_site_that_answers_is_lively_again():
    asked = plan(sites=records(*"abc"))
    once = policy.remember(records(*"abc"), asked, ["a", "b"])
    assert [site.unanswered for site in once] == [0, 0, 1]
    assert [site.unanswered for site in policy.remember(once, asked, ["a", "b", "c"])] == [0, 0, 0]


def test_weights_are_averaged_by_samples():
    answers = [
        model.SiteAnswer(site="a", samples=1, weights=[np.array([0.0, 4.0], "float32")]),
        model.SiteAnswer(site="b", samples=3, weights=[np.array([4.0, 0.0], "float32")]),
        model.SiteAnswer(site="c", error="no data"),
    ]
    (combined,) = policy.combine(answers)
    assert combined.tolist() == [3.0, 1.0]  # (1·0 + 3·4) / 4, (1·4 + 3·0) / 4
    assert np.float32 == combined.dtype


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(-10, 10)), min_size=1, max_size=8))
def test_an_average_lies_between_its_parts(parts):
    answers = [
        model.SiteAnswer(site=str(i), samples=samples, weights=[np.array([value])])
        for i, (samples, value) in enumerate(parts)
    ]
    average = policy.combine(answers)[0][0]
    values = [value for _, value in parts]
    assert min(values) - 1e-9 <= average <= max(values) + 1e-9


def test_errors_do_not_make_a_quorum():
    answers = [model.SiteAnswer(site="a", samples=1), model.SiteAnswer(site="b", error="no data")]
    assert not policy.counts(plan(), answers)
    assert policy.counts(plan(), [*answers, model.SiteAnswer(site="c", samples=1)])


@pytest.mark.parametrize(
    ("seen", "settings", "now", "expected"),
    [
        (state(), {}, 0, "running"),
        (state(0.95), {}, 0, "running"),  # one lucky round
        (state(0.95, 0.89, 0.95), {}, 0, "running"),  # not in a row
        (state(0.89, 0.90, 0.91), {}, 0, "reached"),
        (state(0.90, 0.91), {"deadline_at": 10.0}, 11, "reached"),  # the target before the limits
        (state(0.5), {"deadline_at": 10.0}, 10, "limit"),
        (state(), {"deadline_at": 10.0}, 10, "failed"),  # nothing to return
        (state(0.5, 0.6), {"max_rounds": 2}, 0, "limit"),
        (state(0.5, failed_rounds=3), {}, 0, "interrupted"),
    ],
)
def test_when_a_run_ends(seen, settings, now, expected):
    assert expected == policy.verdict(federated.settings(**settings), seen, now=now).status


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
