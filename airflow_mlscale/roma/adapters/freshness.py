"""Files that are read again while the daemon runs: tokens and certificates."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol

CHECK_S = 1.0
"""How soon a change is seen: looking at a few files once a second costs nothing worth saving."""


class Refreshing(Protocol):
    """Something that was read from files."""

    def refresh(self) -> None:
        """Read them again if they changed; tells of errors in the log, and goes on with what it has."""


async def keep(parts: Sequence[Refreshing], stop: asyncio.Event) -> None:
    """Refresh all of them until ``stop`` is set."""
    while parts and not stop.is_set():
        for part in parts:
            await asyncio.to_thread(part.refresh)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), CHECK_S)
