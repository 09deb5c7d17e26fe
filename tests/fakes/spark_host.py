"""A host on which several simulated applications run at once, each under its real controller and one real agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from airflow_mlscale.cpu import agent as agents
from airflow_mlscale.cpu import ports
from airflow_mlscale.runtime.journal import Record
from airflow_mlscale.runtime.loop import PeriodicLoop
from airflow_mlscale.spark.controller import DeadlineController, Job
from airflow_mlscale.spark.model import Mode, Profile, Promise
from airflow_mlscale.spark.settings import DeadlineSettings
from tests.fakes.clock import FakeClock
from tests.fakes.cpu import FakeCpu
from tests.fakes.spark import FakeProgress, SimulatedApplication


class AgentPort:
    """`CpuPort` that asks an agent in the same process, as `LeasePort` asks one over HTTP."""

    name = "lease"
    enforces = True

    def __init__(self, agent: agents.Agent) -> None:
        self.agent = agent
        self.host_cores = agent.pot_cores

    def open(self, group: str) -> None:
        self.agent.open(group)

    def apply(self, group: str, share: ports.CpuShare, terms: ports.Terms = ports.Terms()) -> ports.CpuShare:
        return self.agent.renew(group, share, terms)

    def usage(self, group: str) -> ports.CpuUsage:
        return self.agent.usage(group)

    def admit(self, group: str, pid: int) -> None:
        self.agent.admit(group, pid)

    def entry_files(self, group: str) -> tuple[Path, ...]:
        return self.agent.entry_files(group)

    def groups(self) -> list[ports.GroupInfo]:
        return self.agent.groups()

    def close(self, group: str) -> None:
        self.agent.close(group)


@dataclass
class SimulatedJob:
    """One application with a deadline."""

    application: SimulatedApplication
    control: DeadlineController
    loop: PeriodicLoop[object, object, object]

    @property
    def records(self) -> list[Record]:
        return self.control.journal.records()

    @property
    def finish_s(self) -> float:
        """Seconds from the start of the promise."""
        assert self.application.finished_at is not None
        return self.application.finished_at - self.control.job.promise.started_at

    @property
    def met(self) -> bool:
        return self.finish_s <= self.control.job.promise.duration_s


@dataclass
class SimulatedHost:
    """So many cores, divided by an agent of so named a policy; a kernel that shares by weight, below ceilings."""

    policy: str
    cores: float = 2.0
    jobs: dict[str, SimulatedJob] = field(default_factory=dict)
    ordinary: dict[str, float] = field(default_factory=dict)
    """Core-seconds of groups without any deadline, whose processes always want every core."""

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.kernel = FakeCpu(host_cores=self.cores)
        self.agent = agents.Agent(self.kernel, agents.Settings(policy=self.policy), clock=self.clock)

    def add(self, name: str, application: SimulatedApplication, deadline_s: float, *, mode: Mode) -> None:
        """A job that is submitted now."""
        application.now = now = self.clock.now()
        control = DeadlineController(
            job=Job(
                name=name,
                group=name,
                driver_group=None,
                promise=Promise(started_at=now, deadline_at=now + deadline_s),
                profile=Profile(key=name, plans=(application.plan(),)),
                settings=DeadlineSettings(mode=mode),
            ),
            cpu=AgentPort(self.agent),
            progress=FakeProgress(application),
            slots=float(application.slots),
            clock=self.clock,
        )
        control.open()
        control.begin()
        loop = PeriodicLoop(control, control._policy, control._state, period_s=1.0, clock=self.clock)
        self.jobs[name] = SimulatedJob(application, control, loop)

    def add_ordinary(self, name: str) -> None:
        """A group as of a job without a deadline: opened, never leased."""
        self.agent.open(name)
        self.ordinary[name] = 0.0

    async def run(self, *, longest_s: int = 600) -> None:
        """Until the last job has ended."""
        for _ in range(longest_s):
            running = {name: job for name, job in self.jobs.items() if job.application.finished_at is None}
            if not running:
                return
            self._pass_a_second(running)
            for job in running.values():
                if job.application.finished_at is None:
                    await job.control.read()
                    await job.loop.step()
                else:
                    job.control.close()
        raise AssertionError("some job never ended")

    def _pass_a_second(self, running: Mapping[str, SimulatedJob]) -> None:
        wanted = {name: _wanted(job.application) for name, job in running.items()} | dict.fromkeys(
            self.ordinary, self.cores
        )
        delivered = delivery({name: self.kernel.share(name) for name in wanted}, wanted, self.cores)
        for name, job in running.items():
            before = job.application.used_core_s
            job.application.advance(1.0, delivered[name])
            self.kernel.burn(name, job.application.used_core_s - before)
        for name in self.ordinary:
            self.ordinary[name] += delivered[name]
        self.clock.advance(1.0)


IDLE_WEIGHT = 3 / 1024
"""What the kernel gives the idle class beside one core's worth of weight."""


def delivery(shares: Mapping[str, ports.CpuShare], wanted: Mapping[str, float], cores: float) -> dict[str, float]:
    """What a kernel gives: by weight, to nobody more than it wants or may have."""
    given: dict[str, float] = {}
    limits = {
        name: min(want, cores if (ceiling := shares[name].ceiling_cores) is None else ceiling)
        for name, want in wanted.items()
    }
    weights = {name: max(IDLE_WEIGHT, shares[name].guaranteed_cores) for name in limits}
    while limits:
        part = max(0.0, cores - sum(given.values())) / sum(weights[name] for name in limits)
        full = {name: limit for name, limit in limits.items() if limit <= part * weights[name]}
        if not full:
            return given | {name: part * weights[name] for name in limits}
        given |= full
        limits = {name: limit for name, limit in limits.items() if name not in full}
    return given


def _wanted(application: SimulatedApplication) -> float:
    progress = application.progress()
    return float(application.slots if progress is None else progress.active_tasks)
