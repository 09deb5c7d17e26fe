"""Another try, after growing pauses, for a version that served before and could not be brought back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

FIRST_PAUSE_S = 5.0
"""Before the first new try; it doubles each time."""
MOST_PAUSE_S = 300.0
"""Longest pause."""


class Comeback:
    """The next try of one model's version."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._pause_s = FIRST_PAUSE_S

    @property
    def waits(self) -> bool:
        """Whether a try is to come."""
        return self._timer is not None

    def later(self, again: Callable[[], None]) -> float:
        """Call ``again`` after a pause, whose seconds are returned."""

        def due() -> None:
            self._timer = None
            again()

        pause_s = self._pause_s
        self._timer = asyncio.get_running_loop().call_later(pause_s, due)
        self._pause_s = min(MOST_PAUSE_S, 2 * pause_s)
        return pause_s

    def give_up(self) -> None:
        """No try is to come any more."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
