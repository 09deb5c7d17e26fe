"""Keeps one worker alive: the first start, restarts with back-off, the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.roma import cores, model, ports, settings

log = logging.getLogger(__name__)


class Supervisor:
    """The life of one version's worker. ``on_up`` and ``on_down`` are called in the event loop."""

    def __init__(
        self,
        order: ports.LoadOrder,
        *,
        group: str,
        launcher: ports.LauncherPort,
        groups: cores.CoreGroups,
        timing: settings.WorkerSettings,
        on_up: Callable[[ports.WorkerPort, ports.Loaded], None],
        on_down: Callable[[], None],
    ) -> None:
        self.order = order
        self.group = group
        self.state = model.State.LOADING
        self.reason = ""
        self.restarts = 0
        self.load_s = 0.0
        self.worker: ports.WorkerPort | None = None
        self._launcher = launcher
        self._groups = groups
        self._timing = timing
        self._on_up = on_up
        self._on_down = on_down
        self._backoff_s = timing.backoff_first_s
        self._back_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    @property
    def pid(self) -> int | None:
        return self.worker.pid if self.worker else None

    def back_in_s(self) -> float:
        """Expected seconds until a worker answers again; 0 when one does."""
        if self.state is model.State.READY:
            return 0.0
        return max(self.load_s / 10, self._back_at - time.monotonic())

    async def start(self) -> None:
        """The first start: a worker that dies is tried again, a model that cannot be loaded is not.

        Raises:
            ModelArtefactError: the artefact cannot be loaded.
            WorkerLostError: every attempt ended with a dead worker.
        """
        for attempt in range(1, self._timing.start_attempts + 1):
            try:
                await self._bring_up()
                break
            except ports.WorkerLostError as exc:
                if attempt == self._timing.start_attempts:
                    raise
                log.warning("%s: worker died while loading (%s); trying again", self.order.name, exc)

    async def end(self) -> None:
        """End the worker and close its group."""
        self._ended = True
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.worker:
            await self.worker.end()
        await self._groups.close(self.group)

    async def _bring_up(self) -> None:
        clock = time.monotonic
        started = clock()
        self.state = model.State.LOADING if self.restarts == 0 else model.State.RESTARTING
        entry_files: tuple[Path, ...] = await self._groups.open(self.group)
        worker = await self._launcher.launch(f"{self.order.name}-{self.order.version}", entry_files)
        try:
            await self._groups.admit(self.group, worker.pid)
            loaded = await asyncio.wait_for(worker.load(self.order, self._progress), self._timing.load_timeout_s)
        except TimeoutError as exc:
            await worker.end()
            limit_s = self._timing.load_timeout_s
            raise ports.WorkerLostError(f"the model was not loaded and warm after {limit_s:.0f} s") from exc
        except BaseException:
            await worker.end()
            raise
        self.worker = worker
        self.load_s = clock() - started
        self.state, self.reason = model.State.READY, loaded.note
        worker.lost.add_done_callback(lambda lost: self._lost(worker, lost.result(), clock() - started))
        self._on_up(worker, loaded)

    def _progress(self, state: model.State) -> None:
        if self.restarts == 0:
            self.state = state

    def _lost(self, worker: ports.WorkerPort, why: str, lived_s: float) -> None:
        if self._ended:
            return
        if lived_s > self._timing.settled_after_s:
            self._backoff_s = self._timing.backoff_first_s
        self.worker = None
        self.restarts += 1
        self._wait_for_next(why)
        log.warning("%s: worker ended (%s); starting another in %.1f s", self.order.name, why, self._backoff_s)
        self._on_down()
        self._task = asyncio.create_task(self._restart(worker), name=f"restart {self.order.name}")

    def _wait_for_next(self, why: str) -> None:
        self.state, self.reason = model.State.RESTARTING, f"the worker ended: {why}"
        self._back_at = time.monotonic() + self._backoff_s + self.load_s

    async def _restart(self, dead: ports.WorkerPort) -> None:
        await dead.end()  # reaps it, and ends one that only lost its connection
        while True:
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(self._timing.backoff_max_s, 2 * self._backoff_s)
            try:
                return await self._bring_up()
            except errors.MlscaleError as exc:
                self._wait_for_next(str(exc))
                log.warning("%s: no new worker: %s; next try in %.1f s", self.order.name, exc, self._backoff_s)
                self._on_down()
