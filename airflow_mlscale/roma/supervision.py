"""Keeps one worker alive: the first start, restarts with back-off, the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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
        """Times a worker ended, or had to be ended at once, and was to be followed by another."""
        self.load_s = 0.0
        self.worker: ports.WorkerPort | None = None
        self.outgoing: ports.WorkerPort | None = None
        """A worker that another has replaced while it lived: it finishes what it has under way, then it is ended."""
        self.renewals = 0
        """Times a worker was replaced while it lived."""
        self._launcher = launcher
        self._groups = groups
        self._timing = timing
        self._on_up = on_up
        self._on_down = on_down
        self.deaths = 0
        """In a row: of workers that did not live long enough to count as settled."""
        self._backoff_s = timing.backoff_first_s
        self._back_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._renew_at = 0.0
        self._up_at = 0.0
        self._killed_for = ""
        self._killing: set[asyncio.Task[None]] = set()
        self._ended = False
        self._runtime: Mapping[str, Any] | None = None

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

    def renew(self, why: str) -> bool:
        """Replace the worker by a fresh one once that is warm; until then it serves on.

        A worker that has to be replaced before it is settled counts as a death, so that a model which outgrows every
        worker ends in the crash loop.

        Returns:
            Whether anything was begun: nothing is while a fresh one is under way, or soon after one failed.
        """
        if not self.worker or self._renewal or time.monotonic() < self._renew_at:
            return False
        if time.monotonic() - self._up_at > self._timing.settled_after_s:
            self._backoff_s, self.deaths = self._timing.backoff_first_s, 0
        if self.deaths + 1 >= self._timing.crash_loop_after:
            return self.kill(why)
        self.deaths += 1
        self.renewals += 1
        self.reason = f"a fresh worker is started: {why}"
        log.warning("%s: worker %d is replaced by a fresh one: %s", self.order.name, self.worker.pid, why)
        self._renewal = asyncio.create_task(self._renew(self.worker, why), name=f"renew {self.order.name}")
        return True

    def kill(self, why: str) -> bool:
        """End the worker at once, and start another as after a death; False if it is being ended already."""
        if not self.worker or self._killed_for:
            return False
        self._killed_for = why
        log.error("%s: worker %d is ended: %s", self.order.name, self.worker.pid, why)
        task = asyncio.create_task(self.worker.end(), name=f"kill {self.order.name}")
        self._killing.add(task)
        task.add_done_callback(self._killing.discard)
        return True

    async def end(self) -> None:
        """End the worker and close its group."""
        self._ended = True
        for task in (self._task, self._renewal):
            if task:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self.worker:
            await self.worker.end()
        await self._groups.close(self.group)

    async def _bring_up(self) -> None:
        clock = time.monotonic
        started = clock()
        if not self._up_at:
            self.state = model.State.LOADING
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
        self._killed_for = ""
        loaded = self._settled_on(loaded)
        self._up_at = clock()
        self.load_s = self._up_at - started
        self.state, self.reason = model.State.READY, loaded.note
        worker.lost.add_done_callback(lambda lost: self._lost(worker, lost.result(), clock() - self._up_at))
        self._on_up(worker, loaded)

    def _settled_on(self, loaded: ports.Loaded) -> ports.Loaded:
        """A version keeps the runtime that its first worker chose, and what was measured then."""
        if self._runtime is None and loaded.runtime:
            self._runtime = loaded.runtime
            self.order = replace(self.order, runtime=replace(self.order.runtime, name=loaded.runtime["name"]))
        return replace(loaded, runtime=self._runtime or {})

    def _progress(self, state: model.State) -> None:
        if not self._up_at:
            self.state = state

    async def _renew(self, old: ports.WorkerPort, why: str) -> None:
        try:
            await self._bring_up()
        except Exception as exc:  # whatever the system refuses now, it may give later
            self._renew_at = time.monotonic() + self._backoff_s
            self._backoff_s = min(self._timing.backoff_max_s, 2 * self._backoff_s)
            log.warning("%s: no fresh worker: %s", self.order.name, exc)
            if self.worker is None:  # the old one did not live to see it
                self._task = asyncio.create_task(self._restart(old), name=f"restart {self.order.name}")
        else:
            told = f"the worker was renewed: {why}"
            self.reason = f"{self.reason}; {told}" if self.reason else told
            await self._retire(old)
        finally:
            self._renewal = None

    async def _retire(self, old: ports.WorkerPort) -> None:
        self.outgoing = old
        try:
            await old.rest(self._timing.drain_s)
        finally:
            self.outgoing = None
            await old.end()

    def _lost(self, worker: ports.WorkerPort, why: str, lived_s: float) -> None:
        if self._ended or worker is not self.worker:
            return
        why, self._killed_for = self._killed_for or why, ""
        if lived_s > self._timing.settled_after_s:
            self._backoff_s, self.deaths = self._timing.backoff_first_s, 0
        self.worker = None
        self.deaths += 1
        self.restarts += 1
        self._wait_for_next(why)
        log.warning("%s: worker ended (%s); starting another in %.1f s", self.order.name, why, self._backoff_s)
        self._on_down()
        if self._renewal is None or self.outgoing:  # else a fresh one is under way
            self._task = asyncio.create_task(self._restart(worker), name=f"restart {self.order.name}")

    def _wait_for_next(self, why: str) -> None:
        looping = self.deaths >= self._timing.crash_loop_after
        self.state = model.State.CRASH_LOOP if looping else model.State.RESTARTING
        self.reason = (
            f"the worker ended {self.deaths} times in a row, at last: {why}" if looping else f"the worker ended: {why}"
        )
        self._back_at = time.monotonic() + self._backoff_s + self.load_s

    async def _restart(self, dead: ports.WorkerPort) -> None:
        await dead.end()  # reaps it, and ends one that only lost its connection
        while True:
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(self._timing.backoff_max_s, 2 * self._backoff_s)
            try:
                return await self._bring_up()
            except Exception as exc:  # whatever the system refuses now, it may give later
                self.deaths += 1
                self._wait_for_next(str(exc))
                log.warning("%s: no new worker: %s; next try in %.1f s", self.order.name, exc, self._backoff_s)
                self._on_down()
