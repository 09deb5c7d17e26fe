"""A clock that jumps instead of waiting."""

from __future__ import annotations

import asyncio


class FakeClock:
    """`runtime.clock.Clock` whose time passes only by `sleep` and `advance`."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._monotonic = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._now += seconds
        self._monotonic += seconds

    def set(self, seconds: float) -> None:
        """Somebody sets the wall clock forward, or back."""
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)
        await asyncio.sleep(0)
