"""When the outlook of a run has changed for good, and what it was before. Pure: times come with the records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import InitVar, asdict, dataclass, field, replace
from math import inf, isfinite
from typing import Any

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


@dataclass
class News:
    """Listens to a run's records: keeps what somebody should hear of, and passes new changes on.

    Args:
        earlier: records that whoever looked on before has listened to: their changes are kept, not passed on.
    """

    earlier: InitVar[Iterable[Record]] = ()
    pass_on: Callable[[Change], object] | None = None
    """Called with each new change, by who appends the record that completes it."""
    found: list[Change] = field(default_factory=list, init=False)
    _watch: Watch = field(default_factory=Watch, init=False)

    def __post_init__(self, earlier: Iterable[Record]) -> None:
        for record in earlier:
            self._find(record)

    def __call__(self, record: Record) -> None:
        change = self._find(record)
        if change is not None and self.pass_on is not None:
            self.pass_on(change)

    def _find(self, record: Record) -> Change | None:
        change = self._watch.change(record)
        if change is None or not change.news:
            return None
        self.found.append(change)
        return change


def to_row(change: Change) -> dict[str, Any]:
    """Plain values, for another process."""
    words = {"outlook": str(change.outlook), "previous": change.previous and str(change.previous)}
    return {**asdict(change), **words}


def from_row(row: Mapping[str, Any]) -> Change:
    """What `to_row` made."""
    change = Change(**row)
    previous = None if change.previous is None else Outlook(change.previous)
    return replace(change, outlook=Outlook(change.outlook), previous=previous)


def _at(started_at: float, seconds: Value) -> float | None:
    at = inf if seconds is None else started_at + float(seconds)
    return at if isfinite(at) else None
