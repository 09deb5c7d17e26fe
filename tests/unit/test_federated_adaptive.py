"""What our policy plans: who is asked, for how many epochs, and how long a round waits."""

from __future__ import annotations

from dataclasses import replace
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.federated import adaptive, curve, forecast, policies, policy
from airflow_mlscale.federated.sites import Site
from tests.fakes import federated


def site(name: str, *, overhead_s: float = 4.0, epoch_s: float = 4.0, **changes) -> Site:
    return Site(**{"name": name, "overhead_s": overhead_s, "epoch_s": epoch_s, "spread": 0.0, "samples": 50, **changes})


def plan(*known: Site, number: int = 9, predicted=None, **changes) -> policy.RoundPlan:
    run = federated.settings(**{"policy": "adaptive", "max_rounds": 100, **changes})
    seen = federated.seen(
        values=[i / 1000 for i in range(1, number)], last_round_s=10.0, sites=known, forecast=predicted
    )
    return policies.plan_round(run, seen)


def predicted(rounds: float, allowed: float, limit: str = "deadline") -> forecast.Forecast:
    span = curve.Span(rounds, rounds, rounds)
    return forecast.Forecast(
        rounds=span, seconds=span, node_seconds=span, gigabytes=span, rounds_to_limit=allowed, limit=limit,
        chance=0.5, at_limit=span, done=8,
    )  # fmt: skip


TWENTY = tuple(site(f"s{i:02d}", last_answered=8 - i % 4, last_asked=8 - i % 4) for i in range(20))


def test_a_quarter_of_the_sites_is_asked_and_never_fewer_than_a_few():
    assert len(plan(*TWENTY).asked) == 5  # 20 / 4
    assert len(plan(*TWENTY[:6]).asked) == 3
    assert len(plan(*TWENTY[:2]).asked) == 2
    assert len(plan(*TWENTY, cohort=8).asked) == 8


def test_a_run_that_struggles_gets_more_of_both():
    seen = federated.seen(values=[0.5, 0.6, *[0.55] * 24], last_round_s=10.0, sites=TWENTY)
    assert adaptive.struggle(seen) == 2.0  # 24 rounds since the best one: 8 of patience and 16 more
    struggling = policies.plan_round(federated.settings(policy="adaptive", max_rounds=100), seen)
    assert len(struggling.asked) == 10  # twice 20 / 4
    assert set(struggling.local_epochs.values()) == {2}
    assert adaptive.struggle(federated.seen(values=[0.5, 0.6, *[0.55] * 8], sites=TWENTY)) == 1.0


def test_sites_are_visited_in_turn():
    oldest = {each.name for each in TWENTY if each.last_answered == 5}
    assert oldest == set(plan(*TWENTY).asked)


def test_a_site_with_more_data_is_visited_more_often():
    rich = replace(TWENTY[0], samples=5000)  # answered in the last round: age 1, but √100 times the worth of others
    assert "s00" in plan(rich, *TWENTY[1:]).asked


def test_epochs_balance_overhead_and_training():
    # γ/(1 − γ)·c/b = 0.54·c/b
    assert set(plan(*TWENTY).local_epochs.values()) == {1}  # 0.54
    far = [replace(each, overhead_s=40.0) for each in TWENTY]
    assert set(plan(*far).local_epochs.values()) == {5}  # 5.4
    assert set(plan(*far, max_local_epochs=3).local_epochs.values()) == {3}
    assert set(plan(*far, local_epochs=7).local_epochs.values()) == {7}


def test_few_rounds_left_make_more_epochs():
    pressed = plan(*TWENTY, predicted=predicted(20, 13, "max_rounds"))  # 1.3·20/13 = 2; 2^(1/0.35) = 7.2 → 4
    assert max(pressed.local_epochs.values()) == 4


def test_slow_sites_come_together_and_not_every_time():
    slow = [replace(each, overhead_s=60.0) for each in TWENTY[:6]]
    asked = plan(*slow, *TWENTY[6:]).asked
    assert not {each.name for each in slow} & set(asked)
    old = [replace(each, last_answered=0) for each in slow]
    others = [replace(each, last_answered=8) for each in TWENTY[6:]]
    assert {each.name for each in old} >= set(plan(*old, *others).asked)


def test_a_slow_site_trains_fewer_epochs():
    crowd = [replace(each, overhead_s=20.0) for each in TWENTY[:4]]  # 0.54·20/4 = 3 epochs: 32 s
    slow = site("slow", overhead_s=20.0, epoch_s=30.0)  # 64 s, twice 32, hold one epoch: (64 − 20)/30
    epochs = adaptive.site_epochs(
        federated.settings(), [*crowd, slow], 3, adaptive.durations([*crowd, slow], 3), hurry=False
    )
    assert (epochs["s00"], epochs["slow"]) == (3, 1)


def test_in_a_hurry_fast_sites_use_the_time_they_would_wait():
    fast, usual = site("fast", overhead_s=1.0, epoch_s=1.0), site("usual", overhead_s=4.0, epoch_s=4.0)
    times = adaptive.durations([fast, usual], 2)
    calm = adaptive.site_epochs(federated.settings(), [fast, usual], 2, times, hurry=False)
    hurried = adaptive.site_epochs(federated.settings(), [fast, usual], 2, times, hurry=True)
    assert calm == {"fast": 2, "usual": 2}
    assert hurried == {"fast": 4, "usual": 2}  # twice the epochs at most, 5 s of 12 s


def test_unreliable_sites_are_over_selected():
    flaky = [replace(each, hits=1.0, misses=1.0) for each in TWENTY]
    seen = plan(*flaky)
    assert len(seen.asked) == 9  # 9 · 0.5 are about 5 answers
    assert seen.enough == 3  # 0.6 · 4.5


def test_a_silent_site_is_left_alone_for_a_while():
    silent = [replace(each, unanswered=1, last_asked=7, last_answered=0) for each in TWENTY[:3]]
    names = {each.name for each in silent}
    assert not names & set(plan(*silent, *TWENTY[3:]).asked)
    assert names & set(plan(*silent, *TWENTY[3:], number=12).asked)


def test_a_federation_of_silent_sites_is_asked_all_the_same():
    silent = [replace(each, unanswered=3, last_asked=8) for each in TWENTY[:4]]
    assert len(plan(*silent, min_nodes=3).asked) >= 3


def test_a_round_waits_a_little_longer_than_its_slowest_site():
    seen = plan(*(replace(each, spread=0.1) for each in TWENTY))
    assert seen.patience_s == pytest.approx(1.3 * 8 * exp(0.05))  # 4 + 4 s


def test_a_limit_that_is_close_makes_hurry():
    assert "hurrying" in plan(*TWENTY, predicted=predicted(20, 25)).reason  # 1.3 · 20 > 25
    assert "hurrying" not in plan(*TWENTY, predicted=predicted(20, 30)).reason
    assert "hurrying" in plan(*TWENTY, objective="time").reason
    assert len(plan(*TWENTY, objective="time").asked) == 6  # 1.2 · 5


SITES = st.builds(
    lambda i, overhead, epoch, unanswered, answered, hits, known: Site(
        name=f"s{i}", overhead_s=overhead if known else None, epoch_s=epoch if known else None, samples=answered * 10,
        unanswered=unanswered, last_asked=answered, last_answered=answered, hits=hits,
    ),
    st.integers(0, 50), st.floats(0, 100), st.floats(0, 100), st.integers(0, 5), st.integers(0, 8), st.floats(0.1, 10),
    st.booleans(),
)  # fmt: skip


@given(
    st.lists(SITES, min_size=1, max_size=25, unique_by=lambda each: each.name),
    st.sampled_from(list(policies.POLICIES)),
    st.sampled_from([None, 3, 10]),
    st.sampled_from(["cost", "time"]),
)
def test_every_policy_plans_a_round_that_can_be_played(known, name, cohort, objective):
    seen = plan(*known, policy=name, cohort=cohort, objective=objective, min_nodes=min(2, len(known)))
    assert set(seen.asked) == set(seen.local_epochs) <= {each.name for each in known}
    assert len(seen.asked) >= min(2, len(known))
    assert all(1 <= epochs <= 20 for epochs in seen.local_epochs.values())
    assert seen.enough >= seen.quorum
    assert seen.timeout_s > 0
    assert seen == plan(*known, policy=name, cohort=cohort, objective=objective, min_nodes=min(2, len(known)))
