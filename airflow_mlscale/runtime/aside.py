"""Listening without being in anybody's way."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

NewsT = TypeVar("NewsT")


@dataclass
class Aside(Generic[NewsT]):
    """A listener (of a journal's records, of changes) in a thread of its own: however slow, nobody waits for it.

    A listener that raises is reported and passed over. Use as a context manager; leaving it waits until
    everything is told, for ``patience_s`` at most. With ``async with`` the event loop goes on meanwhile, and who
    is cancelled waits for nobody.
    """

    listener: Callable[[NewsT], None]
    name: str
    patience_s: float = 10.0
    """How long to wait at the end for a listener that is still busy."""
    _waiting: queue.SimpleQueue[tuple[NewsT] | None] = field(default_factory=queue.SimpleQueue, init=False)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        # In the context of who made it, by which a triggerer tells whose log lines are whose.
        listen = functools.partial(contextvars.copy_context().run, self._listen)
        # A listener that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=listen, name=self.name, daemon=True)

    def __call__(self, news: NewsT) -> None:
        self._waiting.put((news,))

    def __enter__(self) -> Aside[NewsT]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join(self.patience_s)
        if self._thread.is_alive():
            log.warning("%s was still busy after %.0f s and is left behind", self.name, self.patience_s)

    async def __aenter__(self) -> Aside[NewsT]:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self._waiting.put(None)
        else:
            await asyncio.to_thread(self.__exit__, kind, error, trace)

    def _listen(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            try:
                self.listener(*waiting)
            except Exception:  # who listens must not stop who controls
                log.exception("%s failed", self.name)
