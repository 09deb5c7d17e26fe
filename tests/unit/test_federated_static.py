"""Whom the fixed policies ask, and how many answers they wait for."""

from __future__ import annotations

from math import inf

from airflow_mlscale.federated import policies, policy
from tests.fakes import federated


def plan(silent: str = "", last_round_s: float | None = 2.0, number: int = 1, **changes) -> policy.RoundPlan:
    run = federated.settings(**{"policy": "over_selection", **changes})
    return policies.plan_round(
        run, federated.seen(*"abcde", silent=silent, last_round_s=last_round_s, values=[0.5] * (number - 1))
    )


def test_without_a_cohort_everybody_is_asked_and_a_part_is_enough():
    seen = plan()
    assert tuple("abcde") == seen.asked
    assert seen.enough == 4  # ⌈5 / 1.25⌉


def test_a_cohort_is_over_selected():
    seen = plan(cohort=3)
    assert len(seen.asked) == 4  # ⌈3 · 1.25⌉
    assert seen.enough == 3


def test_a_cohort_prefers_sites_that_answer():
    seen = plan(cohort=2, over_selection=1.5, silent="ab")
    assert seen.asked == ("c", "d", "e")


def test_silent_sites_are_asked_but_not_counted_on():
    seen = plan(silent="de")
    assert tuple("abcde") == seen.asked
    assert seen.enough == 3  # ⌈3 / 1.25⌉


def test_the_same_round_asks_the_same_sites_again():
    assert plan(cohort=2, number=7) == plan(cohort=2, number=7)
    assert len({plan(cohort=2, number=number).asked for number in range(1, 20)}) > 1


def test_the_first_round_of_a_segment_may_take_longer_and_none_outlasts_the_deadline():
    assert plan(last_round_s=None).timeout_s == 180  # 60 + 120 to start
    assert plan().timeout_s == 60
    assert plan(deadline_at=1012.0).timeout_s == 12
    assert plan(deadline_at=997.0).timeout_s == 0


def test_fedavg_waits_for_its_whole_cohort():
    seen = plan(policy="fedavg", cohort=3, local_epochs=5)
    assert (len(seen.asked), seen.enough, seen.patience_s) == (3, 3, inf)
    assert set(seen.local_epochs.values()) == {5}
