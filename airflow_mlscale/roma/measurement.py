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
    nan: int
    """Of those served, answers that hold NaN."""
    percentile_s: float | None
    """None without requests. Failed and shed ones count with their give-up time, and at least `Meter.lost_s`."""
    mean_s: float | None = None
    """Mean latency of those served; None without any."""


@dataclass
class _Slot:
    second: int
    arrivals: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    buckets: Counter[int] = field(default_factory=Counter)
    """Of those served."""
    served_s: float = 0.0
    """Sum of their latencies."""
    lost: Counter[int] = field(default_factory=Counter)
    """Of those failed and shed."""
    nan: int = 0


@dataclass
class Meter:
    """The recent past of one version of a model."""

    keep_s: int = 1800
    lost_s: float = 0.0
    """Least latency that a failed or shed request stands for: above the objective, whatever its client's deadline
    was. It applies to the past too, so that a new objective judges old failures rightly."""
    totals: Counter[Outcome] = field(default_factory=Counter)
    """Since the start."""
    reasons: Counter[tuple[Outcome, str]] = field(default_factory=Counter)
    """Of the shed and failed ones since the start."""
    batches: Counter[int] = field(default_factory=Counter)
    """Executions since the start, by the requests in them."""
    nan: int = 0
    """Answers that hold NaN since the start."""
    _slots: deque[_Slot] = field(default_factory=deque)
    _asked_since: int | None = None
    """The second of the first arrival."""

    def arrive(self, now: float) -> None:
        self._slot(now).arrivals += 1
        if self._asked_since is None:
            self._asked_since = floor(now)

    def record(self, now: float, outcome: Outcome, latency_s: float, reason: str = "", *, nan: bool = False) -> None:
        """One request ended.

        Args:
            now: on the monotonic clock.
            outcome: how.
            latency_s: of a failed or shed one its give-up time, or longer if it took longer.
            reason: one word that says why it was failed or shed.
            nan: whether its answer holds NaN.
        """
        slot = self._slot(now)
        slot.outcomes[outcome] += 1
        self.totals[outcome] += 1
        match outcome:
            case Outcome.SERVED:
                slot.buckets[_bucket(latency_s)] += 1
                slot.served_s += latency_s
                slot.nan += nan
                self.nan += nan
            case Outcome.FAILED | Outcome.SHED:
                slot.lost[_bucket(latency_s)] += 1
                self.reasons[outcome, reason] += 1
            case Outcome.INVALID | Outcome.CANCELLED:
                pass
            case _:
                assert_never(outcome)

    def window(self, now: float, seconds: float, percentile: float) -> Window:
        """The last ``seconds``, the running one included."""
        outcomes: Counter[Outcome] = Counter()
        buckets: Counter[int] = Counter()
        least_lost = _bucket(self.lost_s)
        served_s, nan = 0.0, 0
        for slot in reversed(self._slots):
            if slot.second <= now - seconds:
                break
            outcomes += slot.outcomes
            buckets += slot.buckets
            served_s += slot.served_s
            nan += slot.nan
            for bucket, count in slot.lost.items():
                buckets[max(bucket, least_lost)] += count
        errors = outcomes[Outcome.FAILED] + outcomes[Outcome.SHED]
        return Window(
            seconds=seconds,
            requests=outcomes[Outcome.SERVED] + errors,
            errors=errors,
            shed=outcomes[Outcome.SHED],
            invalid=outcomes[Outcome.INVALID],
            nan=nan,
            percentile_s=_percentile(buckets, percentile),
            mean_s=served_s / outcomes[Outcome.SERVED] if outcomes[Outcome.SERVED] else None,
        )

    def late(self, now: float, seconds: float, objective_s: float) -> int:
        """Requests of the last ``seconds`` that failed, were shed, or took longer than the objective."""
        limit = _bucket(objective_s)
        late = 0
        for slot in reversed(self._slots):
            if slot.second <= now - seconds:
                break
            late += slot.outcomes[Outcome.FAILED] + slot.outcomes[Outcome.SHED]
            late += sum(count for bucket, count in slot.buckets.items() if bucket > limit)
        return late

    def arrivals_per_s(self, now: float, seconds: float) -> float:
        """Mean rate over the last whole seconds, of a new model over those since its first request.

        The running second is left out: it would look too quiet.
        """
        current = floor(now)
        if self._asked_since is None or self._asked_since == current:
            return 0.0
        recent = sum(s.arrivals for s in self._slots if current - seconds <= s.second < current)
        return recent / min(seconds, current - self._asked_since)

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
