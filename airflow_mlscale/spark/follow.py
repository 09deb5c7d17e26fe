"""Control of an application in the cluster, from wherever this runs, until the cluster says that it has ended.

Survives its own end: nothing remote is ended with it, and who comes next goes on from the groups' meters
and, on the same host, from the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from airflow_mlscale import errors
from airflow_mlscale.cpu.adapters import observe_only
from airflow_mlscale.cpu.ports import CpuPort
from airflow_mlscale.runtime import processes
from airflow_mlscale.runtime.journal import Journal, Record
from airflow_mlscale.spark import narration, ports, summary
from airflow_mlscale.spark.adapters import driver, executors
from airflow_mlscale.spark.controller import DeadlineController, Job
from airflow_mlscale.spark.model import Observation, Plan, Profile
from airflow_mlscale.spark.ports import RemoteState, RemoteStatus
from airflow_mlscale.spark.ticket import Ticket

log = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

STATUS_EVERY_S = 1.0
PATIENCE_S = 120.0
"""How long the cluster may be away before following it is given up; the application may go on."""
ACTUATOR_PATIENCE_S = 30.0
"""How long the host agent may be away before the deadline is only watched."""
KEPT_S = 7 * 86400.0
"""Journals of runs are kept so long, for the case that somebody has to go on from them."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an application ended."""

    status: RemoteStatus
    summary: dict[str, Any]
    records: list[Record]
    plan: Plan | None
    """What the run teaches; None if it did not succeed, or was not seen to the end."""


class Follower:
    """Controls one submission; `run` may be cancelled at any time and begun again elsewhere."""

    def __init__(
        self,
        ticket: Ticket,
        application: ports.RemoteApplication,
        actuator: Callable[[], CpuPort],
        profile: Profile | None,
        *,
        end_at: float | None = None,
        publish: Callable[[], None] | None = None,
    ) -> None:
        """Prepare; nothing is asked of anybody yet.

        Args:
            ticket: the submission.
            application: it, in the cluster.
            actuator: makes the CPU port; called in a thread, again while it cannot be reached.
            profile: of the application.
            end_at: seconds since the epoch after which the application is ended.
            publish: called every two seconds in a thread of its own.
        """
        self.ticket = ticket
        self.application = application
        self.profile = profile
        self.end_at = end_at
        self.journal = _journal(ticket.run)
        self.controller: DeadlineController | None = None
        self._actuator = actuator
        self._publish = publish
        self._cpu: CpuPort | None = None
        self._ended_at: float | None = None
        self._watched = False
        """Whether it was seen before its end."""

    async def run(self) -> Outcome:
        """Control until the end.

        Raises:
            UnreachableError: the cluster did not answer for `PATIENCE_S`.
            AdmissionRefusedError: the host cannot guarantee the least cores; the application was ended.
        """
        narrator = narration.Narrator(self.ticket.promise, self.profile, self.look)
        self.journal.listen(narrator)
        try:
            status = await self._controlled(await self._status())
            narrator.finish()
            return self._outcome(status)
        finally:
            self.journal.close()
            self.application.close()

    @property
    def ui_url(self) -> str | None:
        """Address of the driver's web page, for people; None until it is known."""
        return self.application.page

    def look(self) -> Observation | None:
        """What is known of the application now."""
        return self.controller.look() if self.controller else None

    def tell(self) -> dict[str, Any]:
        """The summary as of now."""
        return summary.tell(
            application=self.ticket.name,
            promise=self.ticket.promise,
            settings=self.ticket.settings,
            warm=self.profile is not None,
            cpu=self._cpu,
            journal=self.journal,
            control=self.controller,
            ended_at=self._ended_at,
        )

    def give_back(self) -> None:
        """The application was ended on purpose: leave no group of it, even if control had not begun. Blocks.

        Raises:
            MlscaleError: the groups cannot be reached.
        """
        if self.controller is None:
            self._cpu = self._actuator()
            self.controller = self._control(self._cpu)
            self.controller.open(used_before=self.ticket.used_before)
        self.controller.end()

    async def _controlled(self, status: RemoteStatus) -> RemoteStatus:
        """Control until the application is over; one that is over already has its groups removed."""
        self._cpu = await self._port()
        self.controller = control = self._control(self._cpu)
        self._watched = not status.state.over
        stop = asyncio.Event()
        watch: asyncio.Task[RemoteStatus] | None = None
        try:
            await asyncio.to_thread(control.open, used_before=self.ticket.used_before)
            if not status.state.over:
                with contextlib.suppress(errors.UnreachableError):
                    await control.read()
                await asyncio.to_thread(self._begin, control)
                watch = asyncio.create_task(self._watch(stop))
                await control.run(stop)
                status = await watch
        except BaseException:  # cancelled most of all: the application goes on, unlimited, until somebody comes again
            if watch is not None:
                watch.cancel()
            # In a thread: a trigger shares its event loop with all others. Shielded: it is to be done in any case.
            await asyncio.shield(asyncio.to_thread(control.let_go))
            raise
        await asyncio.to_thread(control.end)
        return status

    def _begin(self, control: DeadlineController) -> None:
        try:
            control.begin()
        except errors.AdmissionRefusedError:
            self.application.kill()
            raise

    def _control(self, cpu: CpuPort) -> DeadlineController:
        ticket = self.ticket
        return DeadlineController(
            job=Job(
                name=ticket.name,
                group=ticket.group,
                driver_group=ticket.driver_group,
                promise=ticket.promise,
                profile=self.profile,
                settings=ticket.settings,
            ),
            cpu=cpu,
            progress=driver.RemoteProgress(self.application, ticket.run),
            slots=ticket.slots,
            journal=self.journal,
            executors=executors.spread(cpu, ticket.group, self.application.driver)
            or (executors.LocalExecutors() if ticket.here else None),
            publish=self._publish,
            submitted_at=ticket.submitted_at,
        )

    async def _port(self) -> CpuPort:
        """The actuator; without one (for too long), the deadline is only watched: the job's own outcome counts."""
        give_up_at = time.monotonic() + ACTUATOR_PATIENCE_S
        while True:
            try:
                return await asyncio.to_thread(self._actuator)
            except errors.TransientError as exc:
                if time.monotonic() + exc.retry_after_s > give_up_at:
                    return self._only_watched(exc)
                log.info("%s", exc)
                await asyncio.sleep(exc.retry_after_s)
            except errors.MlscaleError as exc:  # a token that was changed, groups that this process may not write
                return self._only_watched(exc)

    def _only_watched(self, why: errors.MlscaleError) -> CpuPort:
        log.warning("%s; the deadline of %s is only watched", why, self.ticket.name)
        return observe_only.ObserveOnlyPort(host_cores=self.ticket.slots)

    async def _watch(self, stop: asyncio.Event) -> RemoteStatus:
        try:
            while True:
                status = await self._status()
                if status.state.over:
                    return status
                if self.end_at is not None and time.time() > self.end_at:
                    await kill(self.application)
                    return RemoteStatus(state=RemoteState.KILLED, reason="it took longer than the task may")
                await asyncio.sleep(STATUS_EVERY_S)
        finally:
            stop.set()

    async def _status(self) -> RemoteStatus:
        return await _answered(self.application.status)

    def _outcome(self, status: RemoteStatus) -> Outcome:
        plan = None
        if status.state is RemoteState.SUCCEEDED:  # one that failed has met no deadline, however early
            self._ended_at = status.ended_at or self._noticed_at()
            if self.controller and self._ended_at is not None:
                plan = self.controller.learned(ended_at=self._ended_at)
        return Outcome(status=status, summary=self.tell(), records=self.journal.records(), plan=plan)

    def _noticed_at(self) -> float | None:
        """Now, the end of an application that was watched; of another one only that it was met in any case."""
        now = time.time()
        return now if self._watched or now <= self.ticket.promise.deadline_at else None


async def kill(application: ports.RemoteApplication) -> None:
    """End an application; a cluster that is away for less than `PATIENCE_S` is waited for.

    Raises:
        UnreachableError: the cluster did not answer.
    """
    await _answered(application.kill)


async def _answered(ask: Callable[[], AnswerT]) -> AnswerT:
    """The cluster's answer; one that is away for less than `PATIENCE_S` is waited for."""
    give_up_at = time.monotonic() + PATIENCE_S
    told = False
    while True:
        try:
            return await asyncio.to_thread(ask)
        except errors.UnreachableError as exc:
            if time.monotonic() > give_up_at:
                raise
            log.log(logging.DEBUG if told else logging.WARNING, "%s; waiting for it", exc)
            told = True
            await asyncio.sleep(2 * STATUS_EVERY_S)


def _journal(run: str) -> Journal:
    """The run's journal, in a file where one can be had: a triggerer that comes after this one goes on with it."""
    path = _journal_path(run)
    try:
        return Journal(path)
    except OSError as exc:  # such as a file system that may only be read
        log.warning("the decision journal is not written to %s: %s", path, exc)
        return Journal()


def _journal_path(run: str) -> Path:
    folder = processes.home() / "spark" / "runs"
    for old in folder.glob("*.jsonl"):
        with contextlib.suppress(OSError):
            if old.stat().st_mtime < time.time() - KEPT_S:
                old.unlink()
    return folder / f"{run}.jsonl"
