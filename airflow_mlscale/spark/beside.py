"""Control in a thread with an event loop of its own, beside whoever waits for the application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType

from airflow_mlscale.spark.controller import DeadlineController


class Beside:
    """A context manager around the submission; whatever happens in it, everything is given back at the end."""

    def __init__(self, controller: DeadlineController) -> None:
        self.controller = controller
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], None] | None = None

    def __enter__(self) -> DeadlineController:
        """Open the groups with their first share and start the loop.

        Raises:
            AdmissionRefusedError: the host cannot guarantee the least cores.
        """
        control = self.controller
        try:
            control.open()
            control.begin()
            self._start()
        except BaseException:
            control.close()
            raise
        return control

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stop and self._thread:
            self._stop()
            self._thread.join(timeout=30)
        self.controller.end()

    def _start(self) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(ready)),
            name=f"deadline of {self.controller.job.name}",
            daemon=True,
        )
        self._thread.start()
        ready.wait()

    async def _run(self, ready: threading.Event) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.call_soon_threadsafe(stop.set)

        self._stop = end
        ready.set()
        await self.controller.run(stop)
