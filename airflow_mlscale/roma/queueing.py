"""The waiting line of one model: earliest deadline first, the late behind, the hopeless out.

Pure: the time is an argument. Requests whose deadline can no longer be met stop competing with those that
can still make it: they wait in a second line that is served when the first is empty, until their give-up time.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the line needs to know of a request; times are monotonic seconds."""

    @property
    def deadline(self) -> float:
        """When the answer should be there."""

    @property
    def give_up(self) -> float:
        """When the answer has lost its use; never before the deadline."""

    @property
    def size(self) -> int:
        """Bytes it holds."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits for it any more."""


RequestT = TypeVar("RequestT", bound=Waiting)


@dataclass
class DeadlineQueue(Generic[RequestT]):
    """Two heaps: those in time, by deadline, and the late ones, by give-up time."""

    size: int = 0
    """Bytes waiting."""
    _timely: list[tuple[float, int, RequestT]] = field(default_factory=list)
    _late: list[tuple[float, int, RequestT]] = field(default_factory=list)
    _order: count[int] = field(default_factory=count)

    def __len__(self) -> int:
        return len(self._timely) + len(self._late)

    def push(self, request: RequestT) -> None:
        heapq.heappush(self._timely, (request.deadline, next(self._order), request))
        self.size += request.size

    def sort_out(self, now: float, service_s: float) -> list[RequestT]:
        """Move the late behind and take out those that would be answered after their give-up time."""
        finish = now + service_s
        while self._timely and (self._timely[0][2].gone or self._timely[0][0] < finish):
            request = self._pop(self._timely)
            if not request.gone:
                heapq.heappush(self._late, (request.give_up, next(self._order), request))
                self.size += request.size
        hopeless = []
        while self._late and (self._late[0][2].gone or self._late[0][0] < finish):
            request = self._pop(self._late)
            if not request.gone:
                hopeless.append(request)
        return hopeless

    def take(self, count: int) -> list[RequestT]:
        """Up to ``count`` requests, the most urgent first."""
        taken: list[RequestT] = []
        while len(taken) < count and (self._timely or self._late):
            request = self._pop(self._timely or self._late)
            if not request.gone:
                taken.append(request)
        return taken

    def slack_s(self, now: float) -> float:
        """Seconds until the most urgent request that is still in time is due; infinite without one."""
        return self._timely[0][0] - now if self._timely else inf

    def next_check(self) -> float:
        """When `sort_out` may next have something to do; infinite when nothing waits."""
        return min(self._timely[0][0] if self._timely else inf, self._late[0][0] if self._late else inf)

    def _pop(self, heap: list[tuple[float, int, RequestT]]) -> RequestT:
        request = heapq.heappop(heap)[2]
        self.size -= request.size
        return request
