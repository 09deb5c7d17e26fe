"""Brings one application to its deadline: observes it, decides by the policy, acts on its CPU group.

Runs in any event loop: in a thread beside whoever waits for the application (`beside`), or where nobody
waits but a trigger (`follow`). Reading the driver never delays a step: the last reading holds.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.cpu.ports import UNMANAGED, CpuPort
from airflow_mlscale.runtime import clock as clocks
from airflow_mlscale.runtime import processes
from airflow_mlscale.runtime.journal import Journal, Record
from airflow_mlscale.runtime.loop import PeriodicLoop
from airflow_mlscale.spark import grants, ports, records, totals
from airflow_mlscale.spark import ledger as ledgers
from airflow_mlscale.spark import policy as policies
from airflow_mlscale.spark import profile as profiles
from airflow_mlscale.spark.model import Decision, Observation, Plan, Profile, Progress, Promise
from airflow_mlscale.spark.settings import DeadlineSettings

log = logging.getLogger(__name__)

EXECUTORS_EVERY_S = 2.0
LAST_EXECUTOR_S = 4.0
CLOCK_SET_S = 1.0
"""A wall clock that moved so far against the monotonic one was set by somebody."""


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
    """One application's control loop: `open`, `begin`, `run` until told, then `end` or `let_go`."""

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
    submitted_at: float | None = None
    """When the application was submitted, if that was before `begin`; seconds since the epoch."""

    latest: Progress | None = field(default=None, init=False)
    used_core_s: float = field(default=0.0, init=False)
    """By the executors."""
    driver_used_core_s: float = field(default=0.0, init=False)
    """By the driver; 0 where it has no group of its own."""
    totals: totals.Totals = field(init=False)
    _ledger: ledgers.Ledger = field(default_factory=ledgers.Ledger, init=False)
    _booked: Progress | None = field(default=None, init=False)
    _booked_s: float | None = field(default=None, init=False)
    """When, on the monotonic clock."""
    _meters: dict[str, grants.Meter] = field(default_factory=dict, init=False)
    _grant: grants.Grant = field(default=grants.UNASKED, init=False)
    _last: Decision | None = field(default=None, init=False)
    _started: float = field(init=False)
    """What the wall clock would have shown when the monotonic one was at 0."""
    _told_clock_s: float = field(default=0.0, init=False)
    _admitted: frozenset[int] = field(default=frozenset(), init=False)
    _policy: policies.Policy[Any] = field(init=False)
    _state: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        now = self.clock.now()
        self._started = now - self.clock.monotonic()
        self.totals = totals.replayed(self.journal.records(), until=now) or totals.begin(now)

    def open(self, *, used_before: Mapping[str, float] | None = None) -> None:
        """Open the application's groups, or adopt those that exist.

        Args:
            used_before: core-seconds that a group's meter showed when the application was submitted, by
                group; default is what it shows now.
        """
        for group in self._groups():
            self.cpu.open(group)
            before = (used_before or {}).get(group)
            self._meters[group] = grants.Meter(self.cpu.usage(group).used_core_s if before is None else before)

    def begin(self) -> None:
        """Decide and give the first share.

        Raises:
            AdmissionRefusedError: the host cannot guarantee the least cores.
        """
        self.submitted_at = self.submitted_at or self.clock.now()
        job = self.job
        self._policy = policies.make(job.settings, promise=job.promise, profile=job.profile, host_cores=self.slots)
        if self.latest is not None:  # taken over in the middle: what was used until now is known only in sum
            self._book()
        first, self._state = self._policy(self._observation(), self._policy.start(), 0.0)
        self._apply(first)

    async def read(self) -> None:
        """Ask the driver how far it is; the last answer holds until the next."""
        self.latest = await self.progress.read() or self.latest

    async def run(self, stop: asyncio.Event) -> None:
        """Control until ``stop`` is set."""
        settings = self.job.settings
        control: PeriodicLoop[Observation, Decision, Any] = PeriodicLoop(
            self, self._policy, self._state, period_s=settings.period_s, clock=self.clock, name=self.job.name
        )
        beside = [asyncio.create_task(self._repeat(self.read, settings.read_period_s, "the driver's progress"))]
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

    def end(self) -> None:
        """The application has ended: book the rest, give everything back. Never raises."""
        self._integrate()
        self._tidy(self._book)
        self._tidy(lambda: self.cpu.apply(self.job.group, UNMANAGED))  # nothing slows the executors' own shutdown
        self._tidy(self._wait_until_empty)
        self.close()

    def let_go(self) -> None:
        """The application goes on without this controller: nothing limits it, and its groups and meters stay."""
        self._integrate()
        for group in self._groups():
            self._tidy(functools.partial(self.cpu.apply, group, UNMANAGED))

    def close(self) -> None:
        """Restore and remove the groups. Never raises."""
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
        """The plan of this run, if it succeeded; None when it tells nothing."""
        if self.latest is None or not self.latest.stages or self.submitted_at is None:
            log.warning("%s: no stage was ever seen", self.job.name)
            return None
        if abs(self._clock_set_s()) > CLOCK_SET_S:
            log.warning("%s: the clock was set by %+.0f s, its gaps mean nothing", self.job.name, self._clock_set_s())
            return None
        plan = profiles.observed(self._ledger, self.latest, submitted_at=self.submitted_at, ended_at=ended_at)
        return plan if plan.stages else None  # none was submitted before the last reading

    async def observe(self) -> Observation:
        try:
            await asyncio.to_thread(self._book)
        except errors.MlscaleError as exc:  # put on record, for people, and left to the loop
            await asyncio.to_thread(self._without_meter, exc)
            raise
        return self._observation()

    async def act(self, plan: Decision) -> None:
        try:
            await asyncio.to_thread(self._apply, plan)
        except errors.MlscaleError as exc:
            self._without_control(exc)
            raise

    def look(self) -> Observation:
        """What is known now, measured at the last step."""
        return self._observation()

    def _observation(self) -> Observation:
        elapsed = self._unset_now()
        return Observation(
            now=self.clock.now(),
            progress=self.latest,
            used_core_s=self.used_core_s,
            elapsed_s=elapsed - (self.submitted_at or elapsed),
            by_stage=self._ledger.by_stage,
            driver_used_core_s=self.driver_used_core_s,
            granted_cores=self._grant.share.guaranteed_cores if self._grant.contended else None,
        )

    def _book(self) -> None:
        """Meter what was used since the last step and book it to the stages that used it."""
        if self.job.driver_group:
            self.driver_used_core_s = self._metered(self.job.driver_group)
        used = self._metered(self.job.group)
        latest, now = self.latest, self.clock.monotonic()
        dt_s = 0.0 if self._booked_s is None else now - self._booked_s
        self._ledger = ledgers.book(self._ledger, used - self.used_core_s, self._booked, latest, dt_s=dt_s)
        self._booked, self._booked_s, self.used_core_s = latest, now, used

    def _metered(self, group: str) -> float:
        self._meters[group].read(self.cpu.usage(group).used_core_s)
        return self._meters[group].used_core_s

    def _apply(self, decision: Decision) -> None:
        begun = self._last or self.latest or self.journal.last()
        self._ask(decision, strict=not begun)  # before that, refuse the whole run
        self._record(decision, f"{decision.reason}{self._grant.why}")

    def _ask(self, decision: Decision, *, strict: bool = False) -> None:
        """At every step, changed or not: it renews a lease and repairs what others did to the group."""
        self._integrate()
        self._grant = self._asker().ask(decision, strict=strict)
        self._hold()

    def _asker(self) -> grants.Asker:
        job = self.job
        return grants.Asker(
            cpu=self.cpu,
            group=job.group,
            driver_group=job.driver_group,
            min_cores=job.settings.min_cores or 0.0,
            deadline_at=job.promise.deadline_at,
            ttl_s=job.settings.ttl_s,
        )

    def _hold(self) -> None:
        ceiling = self._grant.share.ceiling_cores
        held = totals.Held(
            guaranteed_cores=self._grant.share.guaranteed_cores + self._grant.driver_cores,
            ceiling_cores=self._slots() if ceiling is None else ceiling,
        )
        self.totals = self.totals.holding(held)

    def _without_meter(self, why: errors.MlscaleError) -> None:
        """Nothing was measured: the last share is held on to, or its lease would run out."""
        if self._last is None:
            return
        try:
            self._ask(self._last)
        except errors.MlscaleError as exc:
            self._without_control(exc)
            return
        self._record(self._last, f"the last share holds: {why}")

    def _without_control(self, why: errors.MlscaleError) -> None:
        """Nothing was applied: soon nothing is guaranteed any more, and nothing limited."""
        if self._last is None:
            return
        self._integrate()
        self._grant = grants.NOTHING
        self._hold()
        self._record(self._last, f"no control, nothing limits the application: {why}")

    def _slots(self) -> float:
        return (self.latest.slots if self.latest else 0) or self.slots

    def _integrate(self) -> None:
        self.totals = self.totals.until(self._unset_now())

    def _unset_now(self) -> float:
        """The wall clock, if nobody had set it since this controller was made."""
        return self._started + self.clock.monotonic()

    def _clock_set_s(self) -> float:
        return self.clock.now() - self._unset_now()

    def _clock_news(self) -> str:
        set_s = self._clock_set_s() - self._told_clock_s
        if abs(set_s) <= CLOCK_SET_S:
            return ""
        self._told_clock_s += set_s
        return f"; the clock was set by {set_s:+.0f} s, and the deadline is at a time of day"

    def _record(self, decision: Decision, reason: str) -> None:
        self._last = decision
        promise, last, news = self.job.promise, self.journal.last(), self._clock_news()
        seen = records.seen(self._observation(), decision, promise, slots=self._slots())
        decided = records.decided(decision, promise, self._grant)
        self.journal.append(
            Record(
                at=self.clock.now(),
                subject=self.job.name,
                seen=seen,
                decided=decided,
                reason=f"{reason}{news}",
                changed=bool(news) or last is None or records.changed(last.decided, decided),
            )
        )

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

    async def _admit(self) -> None:
        if self.latest is None or self.executors is None:
            return
        await asyncio.to_thread(self._admit_found, self.executors, self.latest.application_id)

    def _admit_found(self, executors: ports.ExecutorFinder, application_id: str) -> None:
        found = executors.find(application_id)
        for pid in found - self._admitted:
            try:
                self.cpu.admit(self.job.group, pid)
            except errors.InvalidInputError as exc:  # it ended in between
                log.debug("cannot admit process %d: %s", pid, exc)
        self._admitted |= found

    async def _publish(self) -> None:
        if self.publish:
            await asyncio.to_thread(self.publish)
