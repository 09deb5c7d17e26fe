"""Trying a new version on a part of the requests: which requests it gets, and when it counts as worse.

Pure. Two versions are compared over the same window by the parts of their requests that failed, that were answered
with NaN, and that missed the objective. A difference counts once the lower end of its confidence interval is above
what is allowed: R. G. Newcombe, "Interval estimation for the difference between independent proportions", Statistics
in Medicine 17 (1998), method 10, made of two intervals after E. B. Wilson (1927). Both hold for few requests too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from math import sqrt
from statistics import NormalDist

from airflow_mlscale.roma import model


@dataclass
class Splitter:
    """Says of each request whether the canary gets it."""

    salt: str = ""
    """Of the model and the version, so that not always the same keys are tried on."""
    chance: random.Random = field(default_factory=random.Random)
    _share: float = 0.0

    def takes(self, trial: model.Canary, key: str | None = None) -> bool:
        """Whether the next request, with this route key, is the canary's."""
        if trial.split == "random":
            return self.chance.random() < trial.fraction
        if key is not None:
            return _place(self.salt, key) < trial.fraction
        self._share += trial.fraction
        if self._share < 1 - 1e-9:
            return False
        self._share -= 1
        return True


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one version did over the window."""

    requests: int
    """That count for the objective."""
    errors: int
    """Failed, shed or given up."""
    late: int
    """Errors and requests that took longer than the objective."""
    nan: int = 0
    """Answered, but with NaN."""


class Finding(StrEnum):
    """What is known of a canary."""

    WAITING = "waiting"
    """Too few requests."""
    FINE = "fine"
    """Nothing speaks against it."""
    WORSE = "worse"


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """A finding and its reason, for a person."""

    finding: Finding
    reason: str


def judge(new: Counts, stable: Counts, trial: model.Canary, objective: model.Objective) -> Opinion:
    """Whether the new version is worse than the stable one.

    It is, with ``trial.confidence``, when it fails or answers NaN more often by over ``trial.max_error_increase``, or
    when it misses its objective more often than the objective allows *and* more often than the stable version: where
    the host is too slow for both, going back would not help.
    """
    for counts, which in ((new, "canary"), (stable, "stable version")):
        if counts.requests < trial.min_requests:
            told = f"{counts.requests} of {trial.min_requests} requests of the {which} in {trial.window_s:g} s"
            return Opinion(finding=Finding.WAITING, reason=told)
    z = NormalDist().inv_cdf(trial.confidence)
    for done, bad, stable_bad in (("failed", new.errors, stable.errors), ("answered NaN", new.nan, stable.nan)):
        if least_difference(bad, new.requests, stable_bad, stable.requests, z=z) > trial.max_error_increase:
            told = f"{_part(bad, new)} {done}, of the stable version {_part(stable_bad, stable)}"
            return Opinion(finding=Finding.WORSE, reason=told)
    allowed = 1 - objective.percentile / 100
    misses, _ = wilson(new.late, new.requests, z=z)
    more_misses = least_difference(new.late, new.requests, stable.late, stable.requests, z=z)
    told = (
        f"{_part(new.late, new)} missed {objective.milliseconds:g} ms, of the stable version"
        f" {_part(stable.late, stable)}; {100 * allowed:g} % may"
    )
    worse = misses > allowed and more_misses > 0
    return Opinion(finding=Finding.WORSE if worse else Finding.FINE, reason=told)


def wilson(hits: int, total: int, *, z: float) -> tuple[float, float]:
    """The interval in which the true part of hits lies; ``total`` ≥ 1."""
    part, spread = hits / total, z * z / total
    middle = part + spread / 2
    half = z * sqrt(part * (1 - part) / total + spread / (4 * total))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def least_difference(hits: int, total: int, other_hits: int, other_total: int, *, z: float) -> float:
    """By how much the first part of hits is at least above the other (Newcombe's method 10)."""
    part, other = hits / total, other_hits / other_total
    low, _ = wilson(hits, total, z=z)
    _, high = wilson(other_hits, other_total, z=z)
    return part - other - sqrt((part - low) ** 2 + (high - other) ** 2)


def _place(salt: str, key: str) -> float:
    """Where a key stands between 0 and 1; the same for ever."""
    digest = blake2b(f"{salt}\0{key}".encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _part(hits: int, counts: Counts) -> str:
    return f"{100 * hits / counts.requests:.1f} % of {counts.requests}"
