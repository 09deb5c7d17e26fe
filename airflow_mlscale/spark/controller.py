"""Brings one application to its deadline: observes it, decides by the policy, acts on its CPU group.

Runs in a thread with an event loop of its own, beside whoever waits for the application. Reading the
driver never delays a step: the last reading holds. Whatever happens, the group is released at the end.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.cpu.ports import UNMANAGED, CpuPort, CpuShare, Terms
from airflow_mlscale.runtime import clock as clocks
from airflow_mlscale.runtime import processes
from airflow_mlscale.runtime.journal import Journal, Record
from airflow_mlscale.runtime.loop import PeriodicLoop
from airflow_mlscale.spark import policy as policies
from airflow_mlscale.spark import ports
from airflow_mlscale.spark import profile as profiles
from airflow_mlscale.spark.model import Decision, Observation, Plan, Profile, Progress, Promise
from airflow_mlscale.spark.settings import DeadlineSettings

log = logging.getLogger(__name__)

EXECUTORS_EVERY_S = 2.0
LAST_EXECUTOR_S = 4.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is controlled, and towards what."""

    name: str
    group: str
    """CPU group of its executors."""
    driver_group: str | None
    """CPU group of its driver; None when the driver is in the executors' group or in none."""
    promise: Promise
    profile: Profile | None
    settings: DeadlineSettings


@dataclass
class DeadlineController:
    """One application's control loop; use as a context manager around the submission."""

    job: Job
    cpu: CpuPort
    progress: ports.ProgressPort
    slots: float
    """Tasks that can run at once, until executors tell."""
    journal: Journal = field(default_factory=Journal)
    executors: ports.ExecutorFinder | None = None
    """Set when executors cannot enter their group by themselves."""
    publish: Callable[[], None] | None = None
    """Called every `publish_every_s` in a thread of its own, for whoever shows the journal."""
    publish_every_s: float = 2.0
    clock: clocks.Clock = field(default_factory=clocks.SystemClock)

    latest: Progress | None = field(default=None, init=False)
    granted_core_s: float = field(default=0.0, init=False)
    """Guarantees so far, the driver's too, integrated over time: what the application cost others."""
    used_core_s: float = field(default=0.0, init=False)
    _ledger: profiles.Ledger = field(default_factory=profiles.Ledger, init=False)
    _booked: Progress | None = field(default=None, init=False)
    _base_core_s: float = field(default=0.0, init=False)
    _share: CpuShare = field(default=UNMANAGED, init=False)
    _driver_cores: float = field(default=0.0, init=False)
    _share_at: float = field(default=0.0, init=False)
    _submitted_at: float = field(default=0.0, init=False)
    _seen: Observation | None = field(default=None, init=False)
    _last: Decision | None = field(default=None, init=False)
    _admitted: frozenset[int] = field(default=frozenset(), init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _stop: Callable[[], None] | None = field(default=None, init=False)

    def __enter__(self) -> DeadlineController:
        """Open the group with its first share and start the loop.

        Raises:
            AdmissionRefusedError: the host cannot guarantee the least cores.
        """
        for group in self._groups():
            self.cpu.open(group)
        try:
            self._base_core_s = self.cpu.usage(self.job.group).used_core_s
            self._submitted_at = self._share_at = self.clock.now()
            policy = policies.make(
                self.job.settings,
                promise=self.job.promise,
                profile=self.job.profile,
                host_cores=self.slots,
            )
            first, state = policy(self._observation(), policy.start(), 0.0)
            self._apply(first)
            self._start(policy, state)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stop and self._thread:
            self._stop()
            self._thread.join(timeout=30)
        self._integrate()
        self._tidy(self._book)
        self._tidy(lambda: self.cpu.apply(self.job.group, UNMANAGED))  # nothing slows the executors' own shutdown
        self._tidy(self._wait_until_empty)
        self._close()

    def _close(self) -> None:
        for group in self._groups():
            self._tidy(functools.partial(self.cpu.close, group))

    def _tidy(self, step: Callable[[], object]) -> None:
        """Do one thing after the run: the application's own outcome counts, not whether its share was given back."""
        try:
            step()
        except (errors.MlscaleError, OSError, KeyError) as exc:  # a share that nobody renews is given back by itself
            log.warning("%s: after the run: %s", self.job.name, exc)

    def _groups(self) -> list[str]:
        return [group for group in (self.job.group, self.job.driver_group) if group]

    def _wait_until_empty(self) -> None:
        """Executors end a moment after their driver; an empty group is removed for good at once."""
        try:
            processes.wait_until(
                lambda: not any(group.members for group in self.cpu.groups() if group.name in self._groups()),
                what=f"the end of the executors of {self.job.name}",
                timeout_s=LAST_EXECUTOR_S,
            )
        except errors.TransientError as exc:  # whoever empties it later removes it
            log.info("%s", exc)

    def learned(self, *, ended_at: float) -> Plan | None:
        """The plan of this run, if it succeeded; None when no stage was ever seen."""
        if self.latest is None or not self.latest.stages:
            return None
        return profiles.observed(self._ledger, self.latest, submitted_at=self._submitted_at, ended_at=ended_at)

    async def observe(self) -> Observation:
        await asyncio.to_thread(self._book)
        self._seen = self._observation()
        return self._seen

    async def act(self, plan: Decision) -> None:
        await asyncio.to_thread(self._apply, plan)

    def look(self) -> Observation:
        """What is known now, measured at the last step."""
        return self._observation()

    def _observation(self) -> Observation:
        now = self.clock.now()
        return Observation(
            now=now,
            progress=self.latest,
            used_core_s=self.used_core_s,
            elapsed_s=now - self._submitted_at,
            by_stage=self._ledger.by_stage,
        )

    def _book(self) -> None:
        """Meter what was used since the last step and book it to the stages that used it."""
        used = self.cpu.usage(self.job.group).used_core_s - self._base_core_s
        latest = self.latest
        self._ledger = profiles.book(self._ledger, used - self.used_core_s, self._booked, latest)
        self._booked, self.used_core_s = latest, max(self.used_core_s, used)

    def _apply(self, decision: Decision) -> None:
        wanted = CpuShare(guaranteed_cores=decision.guaranteed_cores, ceiling_cores=decision.ceiling_cores)
        settings = self.job.settings
        deadline_at, ttl_s = self.job.promise.deadline_at, settings.ttl_s
        minimum = min(settings.min_cores or 0.0, wanted.guaranteed_cores)
        terms = Terms(minimum_cores=minimum, deadline_at=deadline_at, ttl_s=ttl_s)
        self._integrate()
        # Applied at every step, changed or not: it renews a lease and repairs what others did to the group.
        self._share = self.cpu.apply(self.job.group, wanted, terms)
        if self.job.driver_group:
            share = CpuShare(guaranteed_cores=decision.driver_cores)
            granted = self.cpu.apply(self.job.driver_group, share, Terms(deadline_at=deadline_at, ttl_s=ttl_s))
            self._driver_cores = granted.guaranteed_cores
        self._record(decision)

    def _integrate(self) -> None:
        now = self.clock.now()
        guaranteed = self._share.guaranteed_cores + self._driver_cores
        self.granted_core_s += guaranteed * max(0.0, now - self._share_at)
        self._share_at = now

    def _record(self, decision: Decision) -> None:
        now = self.clock.now()
        seen, last, promise = self.latest, self._last, self.job.promise
        changed = last is None or (decision.guaranteed_cores, decision.ceiling_cores, decision.outlook) != (
            last.guaranteed_cores,
            last.ceiling_cores,
            last.outlook,
        )
        self._last = decision
        record = Record(
            at=now,
            subject=self.job.name,
            seen={
                "t_s": round(now - promise.started_at, 2),
                "left_s": round(promise.deadline_at - now, 2),
                "progress": None if decision.progress is None else round(decision.progress, 4),
                "used_core_s": round(self.used_core_s, 2),
                "stages": len([s for s in seen.stages if s.completed_at]) if seen else 0,
                "tasks_running": seen.active_tasks if seen else 0,
                "reading_age_s": round(now - seen.at, 2) if seen else None,
            },
            decided={
                "guaranteed_cores": round(self._share.guaranteed_cores, 3),
                "ceiling_cores": self._share.ceiling_cores,
                "driver_cores": round(self._driver_cores, 3),
                "needed_cores": round(decision.needed_cores, 3),
                "finish_s": _after(promise, decision.finish_at),
                "finish_low_s": _after(promise, decision.finish_low_at),
                "finish_high_s": _after(promise, decision.finish_high_at),
                "outlook": decision.outlook,
            },
            reason=decision.reason,
            changed=changed,
        )
        self.journal.append(record)

    def _start(self, policy: policies.Policy[Any], state: Any) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(policy, state, ready)),
            name=f"deadline of {self.job.name}",
            daemon=True,
        )
        self._thread.start()
        ready.wait()

    async def _run(self, policy: policies.Policy[Any], state: Any, ready: threading.Event) -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def end() -> None:
            loop.call_soon_threadsafe(stop.set)

        self._stop = end
        ready.set()
        control: PeriodicLoop[Observation, Decision, Any] = PeriodicLoop(
            self, policy, state, period_s=self.job.settings.period_s, clock=self.clock, name=self.job.name
        )
        settings = self.job.settings
        beside = [asyncio.create_task(self._repeat(self._read, settings.read_period_s, "the driver's progress"))]
        if self.executors:
            beside.append(asyncio.create_task(self._repeat(self._admit, EXECUTORS_EVERY_S, "admitting executors")))
        if self.publish:
            beside.append(asyncio.create_task(self._repeat(self._publish, self.publish_every_s, "publishing")))
        try:
            await control.run(stop)
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self.progress.close()

    async def _repeat(self, step: Callable[[], Awaitable[None]], every_s: float, what: str) -> None:
        """Do something beside the loop again and again; a failure is told once, and tried again."""
        failing = False
        while True:
            try:
                await step()
                failing = False
            except Exception as exc:  # control goes on with what it has
                # A driver that ends stops answering a moment before: nothing to be alarmed about.
                level = logging.INFO if isinstance(exc, errors.UnreachableError) else logging.WARNING
                log.log(logging.DEBUG if failing else level, "%s: %s: %s", self.job.name, what, exc)
                failing = True
            await self.clock.sleep(every_s)

    async def _read(self) -> None:
        self.latest = await self.progress.read() or self.latest

    async def _admit(self) -> None:
        if self.latest is None or self.executors is None:
            return
        found = await asyncio.to_thread(self.executors.find, self.latest.application_id)
        for pid in found - self._admitted:
            try:
                self.cpu.admit(self.job.group, pid)
            except errors.InvalidInputError as exc:  # it ended in between
                log.debug("cannot admit process %d: %s", pid, exc)
        self._admitted |= found

    async def _publish(self) -> None:
        if self.publish:
            await asyncio.to_thread(self.publish)


def _after(promise: Promise, at: float | None) -> float | None:
    """Seconds from the start of the promise."""
    return None if at is None else round(at - promise.started_at, 1)
