"""What a run cost: its shares, integrated over time. Pure: times come with the shares or the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from airflow_mlscale.runtime.journal import Record


@dataclass(frozen=True, kw_only=True)
class Held:
    """What an application holds from one decision to the next."""

    guaranteed_cores: float = 0.0
    """Of its executors and of its driver."""
    ceiling_cores: float = 0.0
    """Of its executors; all their slots where nothing limits them."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Integrals up to ``at``; from then on the application holds ``held``."""

    at: float
    """Seconds since the epoch."""
    since: float
    """When the first share was given."""
    held: Held = Held()
    granted_core_s: float = 0.0
    """Guarantees over time: what the application cost others."""
    cap_core_s: float = 0.0
    """Ceilings over time: what it could have taken at most."""
    peak_cores: float = 0.0
    """Largest guarantee."""

    @property
    def mean_cores(self) -> float:
        """Mean guarantee."""
        span_s = self.at - self.since
        return self.granted_core_s / span_s if span_s > 0 else 0.0

    def until(self, now: float) -> Totals:
        """With what was held until now; a clock that went back adds nothing."""
        span_s = max(0.0, now - self.at)
        return replace(
            self,
            at=now,
            granted_core_s=self.granted_core_s + span_s * self.held.guaranteed_cores,
            cap_core_s=self.cap_core_s + span_s * self.held.ceiling_cores,
        )

    def holding(self, held: Held) -> Totals:
        """With another share from now on."""
        return replace(self, held=held, peak_cores=max(self.peak_cores, held.guaranteed_cores))


def begin(now: float) -> Totals:
    """Nothing held yet."""
    return Totals(at=now, since=now)


def replayed(records: Iterable[Record], *, until: float) -> Totals | None:
    """The totals of a journal whose controller ended; None for an empty one. Nothing was held after its last record."""
    found: Totals | None = None
    for record in records:
        decided = record.decided
        ceiling = decided["ceiling_cores"]
        held = Held(
            guaranteed_cores=float(decided["guaranteed_cores"] or 0) + float(decided["driver_cores"] or 0),
            ceiling_cores=float((record.seen.get("slots") if ceiling is None else ceiling) or 0),
        )
        found = (begin(record.at) if found is None else found.until(record.at)).holding(held)
    return found and found.holding(Held()).until(until)
