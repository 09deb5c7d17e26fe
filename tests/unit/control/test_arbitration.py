"""Sharing a pot of cores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.control import arbitration

POLICIES = st.sampled_from(sorted(arbitration.POLICIES))
CLOSE = 1e-6


@st.composite
def claims(draw: st.DrawFn) -> list[arbitration.Claim]:
    found = []
    for number in range(draw(st.integers(0, 6))):
        minimum = draw(st.just(0.0) | st.floats(0, 4))
        found.append(
            arbitration.Claim(
                name=f"claim-{number}",
                wanted=minimum + draw(st.just(0.0) | st.floats(0, 8)),
                minimum=minimum,
                priority=draw(st.integers(-2, 2)),
                deadline_at=draw(st.just(float("inf")) | st.floats(0, 100)),
            )
        )
    return found


pots = st.floats(0, 32)


def claim(name: str, wanted: float, **more: float) -> arbitration.Claim:
    return arbitration.Claim(name=name, wanted=wanted, **more)  # type: ignore[arg-type]


@given(claims=claims(), pot=pots, policy=POLICIES)
def test_the_pot_is_never_exceeded(claims: list[arbitration.Claim], pot: float, policy: str) -> None:
    assert sum(arbitration.POLICIES[policy](claims, pot).values()) <= pot + CLOSE


@given(claims=claims(), pot=pots, policy=POLICIES)
def test_a_grant_lies_between_minimum_and_wish(claims: list[arbitration.Claim], pot: float, policy: str) -> None:
    grants = arbitration.POLICIES[policy](claims, pot)
    assert {each.name for each in claims} == set(grants)
    for each in claims:
        assert grants[each.name] <= each.wanted + CLOSE
        if arbitration.admissible(claims, pot):
            assert grants[each.name] >= each.minimum - CLOSE
        assert grants[each.name] >= 0


@given(claims=claims(), pot=pots, policy=POLICIES)
def test_nothing_is_left_over_while_somebody_wants_it(claims: list[arbitration.Claim], pot: float, policy: str) -> None:
    granted = sum(arbitration.POLICIES[policy](claims, pot).values())
    assert granted == pytest.approx(min(pot, sum(each.wanted for each in claims)), abs=CLOSE)


@given(claims=claims(), pots=st.tuples(pots, pots), policy=POLICIES)
def test_a_larger_pot_takes_from_nobody(
    claims: list[arbitration.Claim], pots: tuple[float, float], policy: str
) -> None:
    small, large = (arbitration.POLICIES[policy](claims, pot) for pot in sorted(pots))
    for name, grant in small.items():
        assert large[name] >= grant - CLOSE


@given(claims=claims(), pot=pots, policy=POLICIES, seed=st.randoms(use_true_random=False))
def test_the_order_of_the_claims_does_not_matter(
    claims: list[arbitration.Claim], pot: float, policy: str, seed: object
) -> None:
    shuffled = list(claims)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (arbitration.POLICIES[policy](each, pot) for each in (claims, shuffled))
    for name, grant in one.items():
        assert other[name] == pytest.approx(grant, abs=CLOSE)


def test_proportional() -> None:
    # minimums 1 + 0, 3 left for wishes of 2 and 4: half of each
    grants = arbitration.proportional([claim("a", 3.0, minimum=1.0), claim("b", 4.0)], 4.0)
    assert grants == {"a": 2.0, "b": 2.0}


def test_earliest_deadline() -> None:
    grants = arbitration.earliest_deadline(
        [claim("never", 2.0), claim("late", 2.0, deadline_at=200.0), claim("soon", 2.0, deadline_at=100.0)], 3.0
    )
    assert grants == {"soon": 2.0, "late": 1.0, "never": 0.0}


def test_priority_shares_among_equals() -> None:
    grants = arbitration.priority([claim("a", 2.0), claim("b", 1.0, priority=1), claim("c", 4.0)], 4.0)
    assert grants == {"b": 1.0, "a": 1.0, "c": 2.0}  # 3 left for wishes of 2 and 4: half of each


def test_guaranteed_first_breaks_ties_by_deadline() -> None:
    grants = arbitration.guaranteed_first(
        [
            claim("batch, soon", 2.0, deadline_at=10.0),
            claim("batch, late", 2.0, deadline_at=20.0, minimum=0.5),
            claim("serving", 1.0, priority=10),
        ],
        3.0,
    )
    # the minimum of 0.5 first; then serving 1; 1.5 left for the soonest
    assert grants == {"serving": 1.0, "batch, soon": 1.5, "batch, late": 0.5}


def test_too_many_minimums_are_scaled_down() -> None:
    claims = [claim("a", 3.0, minimum=3.0), claim("b", 1.0, minimum=1.0)]
    assert not arbitration.admissible(claims, 2.0)
    assert arbitration.proportional(claims, 2.0) == {"a": 1.5, "b": 0.5}


def test_an_exact_fit_is_admissible() -> None:
    assert arbitration.admissible([claim(str(n), 0.1, minimum=0.1) for n in range(20)], 2.0)  # rounding is forgiven


def test_no_pot_and_no_claims() -> None:
    assert arbitration.proportional([], 2.0) == {}
    assert arbitration.guaranteed_first([claim("a", 1.0, minimum=0.5)], -1.0) == {"a": 0.0}


@pytest.mark.parametrize("bad", [{"wanted": -1.0}, {"wanted": 1.0, "minimum": 2.0}, {"wanted": float("inf")}])
def test_bad_claims(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="claim 'a'"):
        arbitration.Claim(name="a", **bad)  # type: ignore[arg-type]


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match="same name"):
        arbitration.proportional([claim("a", 1.0), claim("a", 1.0)], 1.0)


def test_who_wants_less_than_an_even_part_is_not_cut_by_a_greedy_neighbour() -> None:
    wishes = [claim("greedy", 9.0), claim("modest", 0.5), claim("larger", 1.0)]
    assert arbitration.fair(wishes, 2.0) == {"greedy": 0.75, "modest": 0.5, "larger": 0.75}


def test_even_parts_are_even_beside_a_large_minimum() -> None:
    wishes = [claim("a", 5.0), claim("b", 5.0), claim("c", 6.0, minimum=4.0)]
    assert arbitration.fair(wishes, 6.0) == {"a": 1.0, "b": 1.0, "c": 4.0}


@given(claims=claims(), pot=pots)
def test_fairness_lifts_the_smallest_as_far_as_it_goes(claims: list[arbitration.Claim], pot: float) -> None:
    grants = arbitration.fair(claims, pot)
    for one in claims:
        if grants[one.name] < one.wanted - 1e-6:  # then no equal has more, but for its minimum
            for other in claims:
                if other.priority == one.priority and arbitration.admissible(claims, pot):
                    assert grants[other.name] <= max(grants[one.name], other.minimum) + 1e-6
