"""When the outlook of a run has changed for good, and what it was before. Pure: times come with the records."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from airflow_mlscale.runtime.journal import Record, Value
from airflow_mlscale.spark.model import Outlook

HOLD_S = 5.0
"""People are not told of an outlook that passes: it counts once it has held this long, or the deadline is over."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """The outlook is another one than before."""

    outlook: Outlook
    previous: Outlook | None
    """None: nothing could be said before."""
    finish_at: float | None
    """Predicted end at the full share, seconds since the epoch, as are the other times."""
    finish_low_at: float | None
    finish_high_at: float | None
    deadline_at: float

    @property
    def news(self) -> bool:
        """Whether somebody should hear of it; that all begins well is none."""
        return self.previous is not None or self.outlook is not Outlook.ON_TRACK


@dataclass
class Watch:
    """Finds the changes in a run's records, one after the other."""

    hold_s: float = HOLD_S
    current: Outlook | None = field(default=None, init=False)
    """The outlook that holds."""
    _next: Outlook | None = field(default=None, init=False)
    _since: float = field(default=0.0, init=False)

    def change(self, record: Record) -> Change | None:
        """The change that this record completes, if it completes one."""
        word = record.decided.get("outlook")
        if word is None or word == self.current:
            self._next = None
            return None
        seen = Outlook(str(word))
        if seen is not self._next:
            self._next, self._since = seen, record.at
        left_s = float(record.seen["left_s"] or 0.0)
        if left_s > 0 and record.at - self._since < self.hold_s:
            return None
        previous, self.current, self._next = self.current, seen, None
        started_at = record.at - float(record.seen["t_s"] or 0.0)
        return Change(
            outlook=seen,
            previous=previous,
            finish_at=_at(started_at, record.decided.get("finish_s")),
            finish_low_at=_at(started_at, record.decided.get("finish_low_s")),
            finish_high_at=_at(started_at, record.decided.get("finish_high_s")),
            deadline_at=record.at + left_s,
        )


def news(records: Iterable[Record]) -> list[Change]:
    """All changes of a run that somebody should hear of."""
    watch = Watch()
    found = [watch.change(record) for record in records]
    return [change for change in found if change is not None and change.news]


def _at(started_at: float, seconds: Value) -> float | None:
    return None if seconds is None else started_at + float(seconds)
