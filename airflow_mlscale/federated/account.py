"""What private rounds have spent, by an accountant library. Pure, and light to import.

The account is OpenDP's: zero-concentrated DP, composed over the rounds that a site took part in, told as ε for a δ.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from math import isfinite

from airflow_mlscale import errors
from airflow_mlscale.federated import model
from airflow_mlscale.federated.combination import Privacy


@dataclass(frozen=True)
class Spent:
    """What the models of a run tell about any one site at most."""

    epsilon: float
    delta: float
    rounds: int
    """Rounds that the site with the most of them took part in."""


def spent(settings: Privacy, rounds: Sequence[model.Round]) -> Spent:
    """The account after some rounds: the greatest of all sites' accounts. Each site pays for its own rounds.

    Raises:
        InvalidInputError: the accountant is not installed.
    """
    most = most_rounds(rounds)
    return Spent(epsilon(settings.noise_multiplier, most, settings.delta), settings.delta, most)


def exhausted(settings: Privacy, rounds: Sequence[model.Round]) -> bool:
    """Whether one more round could exceed ``max_epsilon`` for some site.

    Raises:
        InvalidInputError: the accountant is not installed; also where there is no limit, so that a run without one
            learns of it before its first round.
    """
    after = epsilon(settings.noise_multiplier, most_rounds(rounds) + 1, settings.delta)
    return settings.max_epsilon is not None and after > settings.max_epsilon


@lru_cache(maxsize=64)
def allowed_rounds(settings: Privacy, most: int) -> int:
    """Rounds that a site may take part in before ``max_epsilon`` would be exceeded, at most ``most``.

    Raises:
        InvalidInputError: the accountant is not installed.
    """
    if settings.max_epsilon is None:
        return most
    spent_after = partial(epsilon, settings.noise_multiplier, delta=settings.delta)
    return bisect_right(range(1, most + 1), settings.max_epsilon, key=spent_after)


def most_rounds(rounds: Sequence[model.Round]) -> int:
    """Rounds of the site that took part in the most."""
    taken = Counter(site for each in rounds for site in each.answered)
    return max(taken.values(), default=0)


@lru_cache(maxsize=4096)
def epsilon(noise_multiplier: float, rounds: int, delta: float) -> float:
    """ε of some rounds of the Gaussian mechanism for a δ, by OpenDP; infinite where it is beyond all numbers.

    Raises:
        InvalidInputError: the accountant is not installed.
    """
    if rounds == 0:
        return 0.0
    try:
        import opendp.prelude as dp
        from opendp.mod import OpenDPException
    except ImportError as exc:
        raise errors.InvalidInputError(
            "privacy", noise_multiplier, "needs an accountant: pip install airflow-provider-mlscale[privacy]"
        ) from exc
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.l2_distance(T=float)
    one_round = dp.m.make_gaussian(*space, scale=noise_multiplier)
    account = dp.c.make_zCDP_to_approxDP(dp.c.make_composition([one_round] * rounds))
    try:
        told = float(account.map(1.0).epsilon(delta))  # the clip is the unit: a site moves the sum by at most 1
    except OpenDPException as exc:
        if exc.variant != "Overflow":
            raise
        return float("inf")
    return told if isfinite(told) else float("inf")
