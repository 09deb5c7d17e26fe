"""The published policies behave as published."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_mlscale.federated import model, oort, paper, policies
from airflow_mlscale.federated.settings import POLICIES, Budget
from airflow_mlscale.federated.sites import Site
from tests.fakes import federated


def rounds(*points: tuple[float, int]) -> model.RunState:
    """A run of (accuracy, epochs)."""
    state = federated.state(*(value for value, _ in points))
    done = tuple(replace(r, epochs={"a": e}) for r, (_, e) in zip(state.rounds, points, strict=True))
    return replace(state, rounds=done)


def epochs(*points: tuple[float, int], share: float, **changes) -> int:
    return paper.next_epochs(federated.settings(**{"local_epochs": 3, **changes}), rounds(*points), share)


def test_all_policies_are_known_by_name():
    assert set(POLICIES) == set(policies.POLICIES)


def test_the_line_through_the_last_two_rounds_gives_the_epochs():
    # 2 epochs gave 0.1; the set-point half way from 0.5 to 0.9 is 0.7, 0.1 lacks: 2 epochs
    assert epochs((0.5, 2), (0.6, 2), share=0.5) == 2
    assert epochs((0.5, 2), (0.6, 2), share=1.0) == 6  # 0.3 lacks
    assert epochs((0.5, 2), (0.6, 2), share=0.1) == 1  # ahead of the set-point


def test_the_first_two_rounds_use_the_given_epochs():
    assert epochs(share=0.1) == 3
    assert epochs((0.5, 3), share=0.1) == 3


def test_the_known_defects_are_kept():
    assert epochs((0.6, 5), (0.5, 5), share=0.9) == 1  # a dip
    assert epochs((0.6, 5), (0.6, 5), share=0.9, max_local_epochs=1024) == 1024  # no gain


@pytest.mark.parametrize(("shape", "expected"), [(paper.linear, 0.25), (paper.quadratic, 0.4375)])
def test_set_points(shape, expected):
    assert shape(0.25) == expected  # 1 − 0.75²
    assert (shape(0.0), shape(1.0)) == (0.0, 1.0)


def test_network_policies_follow_the_bytes():
    run = federated.settings(max_rounds=10, budget=Budget(gigabytes=8.0))
    state = replace(rounds((0.5, 1), (0.6, 1)), sites=(Site(name="a", gigabytes=4.0),))
    assert paper.rounds_used(run, state) == 0.3
    assert paper.network_used(run, state) == 0.75  # (4 + 2) / 8
    assert paper.network_used(federated.settings(max_rounds=10), state) == 0.3


def known(name: str, seconds: float = 10.0, loss: float = 1.0, seen: int = 1) -> Site:
    return Site(name=name, overhead_s=0.0, epoch_s=seconds, loss=loss, samples=50, spread=0.0, last_answered=seen)


def asked(*known_sites: Site, number: int = 200, cohort: int = 2) -> tuple[str, ...]:
    run = federated.settings(policy="oort", cohort=cohort, local_epochs=1)
    return policies.plan_round(
        run, federated.seen(sites=known_sites, values=[i / 1000 for i in range(1, number)])
    ).asked


def test_oort_prefers_useful_and_fast_sites():
    crowd = [known(f"s{i}") for i in range(8)]
    assert {"useful"} < set(asked(*crowd, known("useful", loss=3.0)))
    assert "slow" not in asked(*crowd, known("slow", seconds=60.0, loss=3.0))  # (10/60)² of three times


def test_oort_explores_much_at_first_and_some_later():
    fresh = [Site(name=f"new{i}") for i in range(10)]
    crowd = [known(f"s{i}") for i in range(10)]
    early = asked(*crowd, *fresh, number=1, cohort=5)
    later = asked(*crowd, *fresh, number=200, cohort=5)
    assert sum(name.startswith("new") for name in early) == 6  # 0.9 of ⌈1.3·5⌉ = 7
    assert sum(name.startswith("new") for name in later) == 1  # 0.2 of 7
    assert len(early) == len(later) == 7


def test_oort_waits_for_its_cohort_only():
    run = federated.settings(policy="oort", cohort=5, local_epochs=1)
    seen = oort.plan(run, federated.seen(sites=tuple(known(f"s{i}") for i in range(10))))
    assert (len(seen.asked), seen.enough) == (7, 5)
