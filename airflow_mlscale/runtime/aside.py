"""Listening to a journal without being in anybody's way."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from airflow_mlscale.runtime.journal import Record

log = logging.getLogger(__name__)


@dataclass
class Aside:
    """A journal's listener in a thread of its own: however slow it is, who appends does not wait for it.

    A listener that raises is reported and passed over. Use as a context manager; leaving it waits until
    everything is told, for ``patience_s`` at most.
    """

    listener: Callable[[Record], None]
    name: str
    patience_s: float = 10.0
    """How long to wait at the end for a listener that is still busy."""
    _waiting: queue.SimpleQueue[Record | None] = field(default_factory=queue.SimpleQueue, init=False)
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        # A listener that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._listen, name=self.name, daemon=True)

    def __call__(self, record: Record) -> None:
        self._waiting.put(record)

    def __enter__(self) -> Aside:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join(self.patience_s)
        if self._thread.is_alive():
            log.warning("%s was still busy after %.0f s and is left behind", self.name, self.patience_s)

    def _listen(self) -> None:
        while (record := self._waiting.get()) is not None:
            try:
                self.listener(record)
            except Exception:  # who listens must not stop who controls
                log.exception("%s failed", self.name)
