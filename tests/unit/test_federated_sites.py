"""What is learned of a site from what it does."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.federated import model, sites
from airflow_mlscale.federated.sites import Site


def answer(site: str = "a", *, elapsed_s: float = 14.0, train_s: float = 10.0, **changes) -> model.SiteAnswer:
    return model.SiteAnswer(**{"site": site, "samples": 40, "elapsed_s": elapsed_s, "train_s": train_s, **changes})


def after(
    *answers: model.SiteAnswer, known: Site | None = None, open_s: float = 20.0, epochs: int = 2, **changes
) -> Site:
    before = [known or Site(name="a")]
    return sites.remember(before, number=3, epochs={"a": epochs}, answers=answers, open_s=open_s, **changes)[0]


def test_the_first_answer_counts_fully():
    seen = after(answer(utility=1.5))
    assert (seen.overhead_s, seen.epoch_s) == (4.0, 5.0)  # 14 − 10; 10 / 2
    assert (seen.samples, seen.last_answered, seen.answered, seen.asked) == (40, 3, 1, 1)
    assert seen.utility == pytest.approx(1.5 * 40**0.5)


def test_later_times_move_the_mean_of_the_logarithms():
    seen = after(answer(elapsed_s=24.0, train_s=20.0), known=after(answer()))
    assert seen.epoch_s == pytest.approx(5 * 2**0.4)  # twice as slow, learned by 0.4


def test_one_stall_does_not_brand_a_site():
    seen = after(answer(elapsed_s=1004.0, train_s=1000.0), known=after(answer()), open_s=2000.0)
    assert seen.epoch_s == pytest.approx(5 * exp(0.4 * 1.5))


def test_nothing_is_learned_of_overheads_while_sites_start():
    seen = after(answer(elapsed_s=60.0), starting=True)
    assert (seen.overhead_s, seen.epoch_s, seen.known) == (None, 5.0, False)


def test_a_silent_site_is_judged_only_when_it_is_overdue():
    known = after(answer())  # expected: (4 + 2·5)·e^{0.025} = 14.4 s
    early = after(known=known, open_s=15.0)
    assert (early.unanswered, early.misses) == (1, known.misses)
    late = after(known=known, open_s=19.0)  # 1.3 · 14.4 = 18.7
    assert late.misses > known.misses
    assert late.reliability < known.reliability
    assert (late.busy_s - known.busy_s, late.asked) == (19.0, 2)


def test_an_error_costs_trust_and_no_speed_is_learned_from_it():
    seen = after(answer(error="NaN"))
    assert not seen.known
    assert (seen.unanswered, seen.answered) == (0, 0)
    assert seen.reliability < Site(name="a").reliability


def test_a_late_answer_shows_that_a_site_is_slow_and_not_dead():
    silent = after(open_s=30.0)
    late = sites.remember_late([silent], [answer(elapsed_s=50.0, epochs=2, number=3)], used=True)[0]
    assert late.unanswered == 0
    assert late.reliability > silent.reliability
    assert late.expected_s(2) == pytest.approx(50.0 * exp(late.spread / 2))  # 40 of overhead and 10 of training
    assert (late.last_answered, late.samples) == (3, 40)
    unused = sites.remember_late([silent], [answer(elapsed_s=50.0, epochs=2, number=3)], used=False)[0]
    assert (unused.last_answered, unused.known) == (0, True)


def test_gigabytes_and_seconds_are_counted():
    seen = after(answer(), model_gigabytes=0.5)
    assert (seen.gigabytes, seen.busy_s) == (1.0, 14.0)  # down and up; to its answer
    assert after(model_gigabytes=0.5).gigabytes == 0.5


def test_epochs_fit_into_a_time():
    seen = after(answer())  # 4 s and 5 s for each epoch, times e^{0.025}
    assert [seen.epochs_within(seconds, most=3) for seconds in (0, 10, 15, 100)] == [1, 1, 2, 3]
    assert Site(name="new").epochs_within(1.0, most=3) == 3


def test_a_site_that_comes_back_is_asked_again_with_what_was_known():
    known = after(known=after(answer()))
    back, new = sites.present([known], ["a", "b"])
    assert (back.unanswered, back.epoch_s, new) == (0, 5.0, Site(name="b"))
    assert sites.merged([known, Site(name="c")], [back]) == (back, Site(name="c"))


def test_what_is_known_survives_a_checkpoint():
    seen = after(answer(utility=1.0))
    state = model.RunState(run_id="run", sites=(seen,))
    assert state == model.RunState.from_json(json.loads(json.dumps(state.to_json())))
    assert seen == Site.from_json({**asdict(seen), "field_of_a_later_version": 1})


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e4), st.booleans()), max_size=30))
def test_what_is_believed_of_a_site_stays_sane(rounds):
    seen = Site(name="a")
    for overhead_s, train_s, silent in rounds:
        given_ = () if silent else (answer(elapsed_s=overhead_s + train_s, train_s=train_s),)
        seen = after(*given_, known=seen, open_s=overhead_s + train_s + 1)
        assert 0 < seen.reliability < 1
        assert seen.spread >= 0
        expected_s = seen.expected_s(2)
        assert expected_s is None or 0 <= expected_s < 1e6
