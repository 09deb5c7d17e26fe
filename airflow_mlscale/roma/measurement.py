"""What a model did lately: latencies and outcomes in one-second slots, read over any window.

Pure: the time is an argument. Latencies are kept in logarithmic buckets 2 % wide, so a percentile is exact
to 2 % (never below the true one by more than rounding), at a cost that does not grow with the request rate.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, floor, log
from typing import assert_never

_WIDTH = log(1.02)
_SMALLEST_S = 1e-5


class Outcome(StrEnum):
    """How a request ended."""

    SERVED = "served"
    FAILED = "failed"
    """The model or its worker failed."""
    SHED = "shed"
    """Refused or given up under overload."""
    INVALID = "invalid"
    """The client's mistake: no part of the objective."""
    CANCELLED = "cancelled"
    """The client went away: no part of the objective."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A stretch of the recent past."""

    seconds: float
    requests: int
    """Those that count for the objective: served, failed and shed."""
    errors: int
    """Failed and shed."""
    shed: int
    invalid: int
    percentile_s: float | None
    """None without requests. Failed and shed ones count with their give-up time, and at least `Meter.lost_s`."""


@dataclass
class _Slot:
    second: int
    arrivals: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    buckets: Counter[int] = field(default_factory=Counter)
    """Of those served."""
    lost: Counter[int] = field(default_factory=Counter)
    """Of those failed and shed."""


@dataclass
class Meter:
    """The recent past of one version of a model."""

    keep_s: int = 1800
    lost_s: float = 0.0
    """Least latency that a failed or shed request stands for: above the objective, whatever its client's deadline
    was. It applies to the past too, so that a new objective judges old failures rightly."""
    totals: Counter[Outcome] = field(default_factory=Counter)
    """Since the start."""
    _slots: deque[_Slot] = field(default_factory=deque)

    def arrive(self, now: float) -> None:
        self._slot(now).arrivals += 1

    def record(self, now: float, outcome: Outcome, latency_s: float) -> None:
        """One request ended; ``latency_s`` of a failed or shed one is its give-up time, or longer if it took longer."""
        slot = self._slot(now)
        slot.outcomes[outcome] += 1
        self.totals[outcome] += 1
        match outcome:
            case Outcome.SERVED:
                slot.buckets[_bucket(latency_s)] += 1
            case Outcome.FAILED | Outcome.SHED:
                slot.lost[_bucket(latency_s)] += 1
            case Outcome.INVALID | Outcome.CANCELLED:
                pass
            case _:
                assert_never(outcome)

    def window(self, now: float, seconds: float, percentile: float) -> Window:
        """The last ``seconds``, the running one included."""
        outcomes: Counter[Outcome] = Counter()
        buckets: Counter[int] = Counter()
        least_lost = _bucket(self.lost_s)
        for slot in reversed(self._slots):
            if slot.second <= now - seconds:
                break
            outcomes += slot.outcomes
            buckets += slot.buckets
            for bucket, count in slot.lost.items():
                buckets[max(bucket, least_lost)] += count
        errors = outcomes[Outcome.FAILED] + outcomes[Outcome.SHED]
        return Window(
            seconds=seconds,
            requests=outcomes[Outcome.SERVED] + errors,
            errors=errors,
            shed=outcomes[Outcome.SHED],
            invalid=outcomes[Outcome.INVALID],
            percentile_s=_percentile(buckets, percentile),
        )

    def arrivals_per_s(self, now: float, seconds: float) -> float:
        """Mean rate over the last whole seconds; the running one would look too quiet."""
        current = floor(now)
        recent = sum(s.arrivals for s in self._slots if current - seconds <= s.second < current)
        return recent / seconds

    def _slot(self, now: float) -> _Slot:
        second = floor(now)
        if not self._slots or self._slots[-1].second < second:
            self._slots.append(_Slot(second))
            while self._slots[0].second < second - self.keep_s:
                self._slots.popleft()
        return self._slots[-1]


def _bucket(latency_s: float) -> int:
    return ceil(log(max(latency_s, _SMALLEST_S) / _SMALLEST_S) / _WIDTH - 1e-9)


def _percentile(buckets: Counter[int], percentile: float) -> float | None:
    total = sum(buckets.values())
    rank = ceil(percentile / 100 * total - 1e-9)
    for bucket in sorted(buckets):
        rank -= buckets[bucket]
        if rank <= 0:
            # The geometric middle of the bucket: half a bucket (1 %) from any latency in it.
            return float(_SMALLEST_S * 1.02 ** (bucket - 0.5))
    return None
