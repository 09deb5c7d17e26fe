"""Control in a thread with an event loop of its own, beside whoever waits for the application."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import TracebackType

from airflow_mlscale import errors
from airflow_mlscale.spark.controller import DeadlineController


class Beside:
    """A context manager around the submission; whatever happens in it, everything is given back at the end."""

    def __init__(self, controller: DeadlineController) -> None:
        self.controller = controller
        self._thread: threading.Thread | None = None
        self._stop: Callable[[], None] | None = None
        self._failed: Exception | None = None
        """Why control never began."""

    def __enter__(self) -> DeadlineController:
        """Open the groups with their first share and start the loop.

        Raises:
            AdmissionRefusedError: the host cannot guarantee the least cores.
            TransientError: this process has no room for an event loop.
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
            target=self._control,
            args=(ready,),
            name=f"deadline of {self.controller.job.name}",
            daemon=True,
        )
        self._thread.start()
        ready.wait()
        if self._failed is not None:
            raise errors.TransientError(f"control could not begin: {self._failed}") from self._failed

    def _control(self, ready: threading.Event) -> None:
        try:
            with asyncio.Runner() as runner:
                runner.run(self._run(ready))
        except Exception as exc:
            if ready.is_set():
                raise
            self._failed = exc
        finally:
            ready.set()

    async def _run(self, ready: threading.Event) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.call_soon_threadsafe(stop.set)

        self._stop = end
        ready.set()
        await self.controller.run(stop)
