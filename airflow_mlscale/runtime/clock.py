"""Time as a dependency: the real clock and its port."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where controllers get the time; tests bring one that jumps."""

    def now(self) -> float:
        """Wall time in seconds since the epoch: deadlines, journal entries."""

    def monotonic(self) -> float:
        """Seconds that never go back: intervals."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
