"""The waiting line of one model: earliest deadline first, the late behind, the hopeless out.

Pure: the time is an argument. A higher priority goes first; among equals the earliest deadline does, and among
equal deadlines whoever came first. Requests whose deadline can no longer be met stop competing with those that
can still make it: they wait in a second line that is served when the first is empty, until their give-up time.

Sorted lists rather than heaps: the rank of a newcomer, the last in line and one in the middle are needed too,
and moving a few thousand pointers costs a microsecond.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Generic, Protocol, TypeVar

MAX_PRIORITY = 10
"""Of a request, either way; bounds the lines within the line."""


class Waiting(Protocol):
    """What the line needs to know of a request; times are monotonic seconds."""

    @property
    def deadline(self) -> float:
        """When the answer should be there."""

    @property
    def give_up(self) -> float:
        """When the answer has lost its use; never before the deadline."""

    @property
    def priority(self) -> int:
        """A higher one goes first."""

    @property
    def size(self) -> int:
        """Bytes it holds."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more."""


RequestT = TypeVar("RequestT", bound=Waiting)
_Key = tuple[float, int]


@dataclass
class _Sorted(Generic[RequestT]):
    """Requests of one priority by a time, and by arrival where times are equal."""

    keys: list[_Key] = field(default_factory=list)
    requests: list[RequestT] = field(default_factory=list)

    def add(self, key: _Key, request: RequestT) -> None:
        insort(self.keys, key)
        self.requests.insert(bisect_left(self.keys, key), request)

    def pop(self, position: int) -> RequestT:
        del self.keys[position]
        return self.requests.pop(position)


@dataclass
class DeadlineQueue(Generic[RequestT]):
    """Those in time by deadline, and the late ones by give-up time, each in order of their priorities."""

    size: int = 0
    """Bytes waiting."""
    _timely: dict[int, _Sorted[RequestT]] = field(default_factory=dict)
    _late: dict[int, _Sorted[RequestT]] = field(default_factory=dict)
    _keys: dict[int, tuple[int, _Key]] = field(default_factory=dict)
    """Where each request is, by its `id`: requests need not be hashable."""
    _order: count[int] = field(default_factory=count)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def timely(self) -> int:
        """Requests that can still be in time, as of the last `sort_out`."""
        return sum(len(line.requests) for line in self._timely.values())

    def push(self, request: RequestT) -> None:
        self._add(self._timely, request, request.deadline)
        self.size += request.size

    def remove(self, request: RequestT) -> bool:
        """Take out one that nobody waits for any more; False if it does not wait here."""
        found = self._keys.get(id(request))
        if found is None:
            return False
        priority, key = found
        for lines in (self._timely, self._late):
            line = lines.get(priority)
            if line is None:
                continue
            position = bisect_left(line.keys, key)
            if position < len(line.keys) and line.requests[position] is request:
                self._pop(lines, priority, position)
                return True
        raise AssertionError("a request that waits is in no line")

    def ahead(self, priority: int, deadline: float) -> int:
        """Requests in time that would be served before a newcomer of this priority and deadline."""
        return sum(
            len(line.keys) if other > priority else bisect_left(line.keys, (deadline, 1 << 62))
            for other, line in self._timely.items()
            if other >= priority
        )

    def ahead_late(self, priority: int, give_up: float) -> int:
        """Late requests that would be served before a late newcomer of this priority and give-up time."""
        return sum(
            len(line.keys) if other > priority else bisect_left(line.keys, (give_up, 1 << 62))
            for other, line in self._late.items()
            if other >= priority
        )

    def sort_out(self, now: float, service_s: float, cautious_s: float) -> list[RequestT]:
        """Move the late behind and take out those that would be answered after their give-up time.

        Args:
            now: on the clock of the deadlines.
            service_s: expected seconds of an execution: who would be given up by its end is.
            cautious_s: seconds that it hardly exceeds: who is only in time if it goes well is late. Otherwise a line
                under overload has each request begin at the last moment, and half of them end too late.
        """
        for request in self._before(self._timely, now + cautious_s):
            self._add(self._late, request, request.give_up)
            self.size += request.size
        return list(self._before(self._late, now + service_s))

    def take(self, count: int) -> list[RequestT]:
        """Up to ``count`` requests, the most urgent first."""
        taken: list[RequestT] = []
        while len(taken) < count and self._keys:
            lines = self._timely or self._late
            request = self._pop(lines, max(lines), 0)
            if not request.gone:
                taken.append(request)
        return taken

    def last_below(self, priority: int) -> RequestT | None:
        """Take out the one that is missed least: late before timely, lowest priority, latest; None if none is below.

        For a full line: who is more important takes its place.
        """
        for lines in (self._late, self._timely):
            lowest = min(lines, default=priority)
            if lowest < priority:
                return self._pop(lines, lowest, len(lines[lowest].keys) - 1)
        return None

    def deadline(self) -> float:
        """The earliest deadline of those in time that go first; infinite without one."""
        return self._timely[max(self._timely)].keys[0][0] if self._timely else inf

    def deadlines(self) -> list[float]:
        """Of all that can still be in time, rising."""
        return sorted(key[0] for line in self._timely.values() for key in line.keys)

    def slack_s(self, now: float) -> float:
        """Seconds until the most urgent request that is still in time is due; infinite without one."""
        return self.deadline() - now

    def next_check(self, service_s: float, cautious_s: float) -> float:
        """When `sort_out` may next have something to do; infinite when nothing waits."""
        late = min((line.keys[0][0] for line in self._timely.values()), default=inf)
        lost = min((line.keys[0][0] for line in self._late.values()), default=inf)
        return min(late - cautious_s, lost - service_s)

    def __iter__(self) -> Iterator[RequestT]:
        """All that wait, in the order they would be served as things stand."""
        for lines in (self._timely, self._late):
            for priority in sorted(lines, reverse=True):
                yield from lines[priority].requests

    def _before(self, lines: dict[int, _Sorted[RequestT]], finish: float) -> Iterator[RequestT]:
        """Take out, of every priority, those whose time is up before ``finish``; skips those that are gone."""
        for priority in list(lines):
            while priority in lines and (lines[priority].requests[0].gone or lines[priority].keys[0][0] < finish):
                request = self._pop(lines, priority, 0)
                if not request.gone:
                    yield request

    def _add(self, lines: dict[int, _Sorted[RequestT]], request: RequestT, time: float) -> None:
        key = (time, next(self._order))
        self._keys[id(request)] = (request.priority, key)
        lines.setdefault(request.priority, _Sorted()).add(key, request)

    def _pop(self, lines: dict[int, _Sorted[RequestT]], priority: int, position: int) -> RequestT:
        line = lines[priority]
        request = line.pop(position)
        if not line.keys:
            del lines[priority]
        del self._keys[id(request)]
        self.size -= request.size
        return request
