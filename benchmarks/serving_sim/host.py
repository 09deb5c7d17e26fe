"""The simulated kernel: cores divided by weight, quotas with a bucket, executions that use one core at most.

A fluid picture of CFS with ``cpu.max`` and ``cpu.max.burst``: a group under a quota runs at full speed while its
bucket lasts and at its quota then. As on real kernels, each write of a quota fills the bucket for one period.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

PERIOD_S = 0.1
"""Of the quota."""
_NOTHING = 1e-9


@dataclass(eq=False)
class Group:
    """The processes of one model."""

    weight: float = 1.0
    quota: float = inf
    bucket: float = 0.0
    """Core-seconds that may be used at once."""
    used_core_s: float = 0.0
    rate: float = 0.0
    """Cores for each of its executions now."""
    _done: float = 0.0
    """Core-seconds that each execution that ran all along would have had."""
    _running: list[tuple[float, int]] = field(default_factory=list)
    """(value of ``_done`` at which it ends, token)."""

    @property
    def executions(self) -> int:
        return len(self._running)

    def start(self, token: int, work_core_s: float) -> None:
        heappush(self._running, (self._done + work_core_s, token))

    def limit(self, quota: float) -> None:
        """Write the quota, if it is another one."""
        if quota == self.quota:
            return
        self.quota = quota
        self.bucket = quota * PERIOD_S if quota < inf else 0.0

    @property
    def most(self) -> float:
        """Cores that it could use now."""
        if self.bucket > _NOTHING or self.quota == inf:
            return float(len(self._running))
        return min(float(len(self._running)), self.quota)

    def advance(self, dt_s: float) -> None:
        used = self.rate * len(self._running)
        self._done += self.rate * dt_s
        self.used_core_s += used * dt_s
        if self.quota < inf:
            self.bucket = min(2 * self.quota * PERIOD_S, max(0.0, self.bucket + (self.quota - used) * dt_s))

    def next_s(self) -> float:
        """Seconds until an execution ends or the bucket is empty."""
        if not self._running or self.rate <= _NOTHING:
            return inf
        end_s = max(0.0, self._running[0][0] - self._done) / self.rate
        drain = self.rate * len(self._running) - self.quota
        empty_s = self.bucket / drain if drain > _NOTHING and self.bucket > _NOTHING else inf
        return min(end_s, empty_s)

    def ended(self) -> list[int]:
        """Tokens of the executions that are over."""
        tokens = []
        while self._running and self._running[0][0] <= self._done + _NOTHING:
            tokens.append(heappop(self._running)[1])
        return tokens


def divide(groups: Sequence[Group], cores: float) -> None:
    """Set every group's rate: by weight, nobody more than it can use, nothing left that somebody could use."""
    caps = {id(group): group.most for group in groups}
    if sum(caps.values()) <= cores:
        for group in groups:
            group.rate = caps[id(group)] / group.executions
        return
    left, hungry = cores, list(groups)
    while hungry:
        unit = left / sum(group.weight for group in hungry)
        full = [group for group in hungry if caps[id(group)] <= group.weight * unit]
        if not full:
            for group in hungry:
                group.rate = group.weight * unit / group.executions
            return
        for group in full:
            group.rate = caps[id(group)] / group.executions
            left -= caps[id(group)]
        hungry = [group for group in hungry if caps[id(group)] > group.weight * unit]
