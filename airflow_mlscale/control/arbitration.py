"""Sharing a fixed pot of cores among claims.

Every policy gives each claim its minimum first (`admissible` says beforehand whether that is possible)
and then shares the rest. A grant lies between the claim's minimum and its wish; grants never exceed the pot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import inf


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What one group of processes asks of its host."""

    name: str
    wanted: float
    """Cores it wants guaranteed now."""
    minimum: float = 0.0
    """Cores it must never go below; part of admission."""
    priority: int = 0
    """Higher is served first by `priority`."""
    deadline_at: float = inf
    """Absolute time of its deadline in seconds; infinite when it has none."""

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.wanted < inf:
            raise ValueError(f"claim {self.name!r}: need 0 <= minimum={self.minimum} <= wanted={self.wanted} < inf")


Grants = Mapping[str, float]
Policy = Callable[[Sequence[Claim], float], Grants]


def admissible(claims: Sequence[Claim], pot: float) -> bool:
    """Whether every minimum fits in the pot."""
    return sum(claim.minimum for claim in claims) <= pot + 1e-9


def proportional(claims: Sequence[Claim], pot: float) -> Grants:
    """Minimums first, the rest in proportion to what each claim still wants."""
    grants, rest = _minimums(claims, pot)
    return {**grants, **_scaled(claims, grants, rest)}


def earliest_deadline(claims: Sequence[Claim], pot: float) -> Grants:
    """Minimums first, the rest to the earliest deadline until it is satisfied, then to the next."""
    return _in_order(claims, pot, key=lambda claim: claim.deadline_at)


def priority(claims: Sequence[Claim], pot: float) -> Grants:
    """Minimums first, the rest to the highest priority; equals share in proportion."""
    return _in_order(claims, pot, key=lambda claim: float(-claim.priority))


def fair(claims: Sequence[Claim], pot: float) -> Grants:
    """Minimums first, the rest by priority; among equals whoever wants least is satisfied first (max-min fairness).

    Nobody who wants less than an even part is cut because a neighbour wants more.
    """
    grants, rest = _minimums(claims, pot)
    for _, equals in groupby(sorted(claims, key=_importance), key=_importance):
        peers = list(equals)
        held = sum(grants[peer.name] for peer in peers)
        served = _levelled(peers, grants, held + rest)
        rest = max(0.0, held + rest - sum(served.values()))
        grants.update(served)
    return grants


def _levelled(peers: Sequence[Claim], held: Mapping[str, float], pot: float) -> dict[str, float]:
    """Up to a common level, but for those who want less, and those who hold more already."""
    served: dict[str, float] = {}
    rising = sorted(peers, key=lambda claim: claim.wanted)
    while rising:
        left, level = pot - sum(served.values()), 0.0
        for count, peer in zip(range(len(rising), 0, -1), rising, strict=True):
            level = left / count
            if peer.wanted > level:
                break
            left -= peer.wanted
        above = [peer for peer in rising if held[peer.name] > min(level, peer.wanted) + 1e-12]
        if not above:
            return served | {peer.name: min(peer.wanted, max(0.0, level)) for peer in rising}
        served |= {peer.name: held[peer.name] for peer in above}
        rising = [peer for peer in rising if peer.name not in served]
    return served


def _importance(claim: Claim) -> float:
    return -claim.priority


def guaranteed_first(claims: Sequence[Claim], pot: float) -> Grants:
    """Highest priority first and, among equals, the earliest deadline: the host agent's default.

    Serving claims carry a higher priority than batch claims, so objectives outrank deadlines.
    """
    return _in_order(claims, pot, key=lambda claim: (-claim.priority, claim.deadline_at))


POLICIES: Mapping[str, Policy] = {
    policy.__name__: policy for policy in (proportional, earliest_deadline, priority, fair, guaranteed_first)
}


def _minimums(claims: Sequence[Claim], pot: float) -> tuple[dict[str, float], float]:
    if len({claim.name for claim in claims}) < len(claims):
        raise ValueError("two claims have the same name")
    pot = max(0.0, pot)
    total = sum(claim.minimum for claim in claims)
    scale = 1.0 if total <= pot else pot / total  # an inadmissible set still never exceeds the pot
    grants = {claim.name: claim.minimum * scale for claim in claims}
    return grants, max(0.0, pot - sum(grants.values()))


def _scaled(claims: Sequence[Claim], grants: Mapping[str, float], rest: float) -> dict[str, float]:
    wishes = {claim.name: max(0.0, claim.wanted - grants[claim.name]) for claim in claims}
    total = sum(wishes.values())
    scale = 1.0 if total <= rest else rest / total
    return {name: grants[name] + wish * scale for name, wish in wishes.items()}


def _in_order(claims: Sequence[Claim], pot: float, *, key: Callable[[Claim], float | tuple[float, ...]]) -> Grants:
    grants, rest = _minimums(claims, pot)
    for _, equals in groupby(sorted(claims, key=key), key=key):
        peers = list(equals)
        served = _scaled(peers, grants, rest)
        rest = max(0.0, rest - sum(served[peer.name] - grants[peer.name] for peer in peers))
        grants.update(served)
    return grants
