"""A Spark application that exists only as numbers: stages, tasks, driver gaps, and the cores it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from airflow_mlscale import errors
from airflow_mlscale.spark.model import Plan, Progress, Stage, StageProfile, StageStatus


@dataclass(frozen=True)
class Part:
    """One stage: its work, its tasks and the driver gap before it."""

    core_s: float
    tasks: int
    gap_s: float = 0.0


@dataclass
class SimulatedApplication:
    """Runs its parts one after the other; tasks of a part are equal and start as slots become free.

    First the driver starts, then the executors, which need CPU for it; only then there is progress to read.
    """

    parts: Sequence[Part]
    slots: int = 2
    lead_s: float = 5.0
    tail_s: float = 1.0
    startup_core_s: float = 3.0
    now: float = 0.0
    used_core_s: float = 0.0
    _startup_left_core_s: float = field(init=False)
    _index: int = -1
    _gap_left_s: float = field(init=False)
    _done_core_s: float = 0.0
    _task_s: float = 0.0
    _run_time_s: float = 0.0
    _stages: list[Stage] = field(default_factory=list)
    _submitted_at: float = 0.0
    finished_at: float | None = None

    def __post_init__(self) -> None:
        self._gap_left_s = self.lead_s
        self._startup_left_core_s = self.startup_core_s

    @property
    def work_core_s(self) -> float:
        return self.startup_core_s + sum(part.core_s for part in self.parts)

    def plan(self, scale: float = 1.0) -> Plan:
        """What a profile would say, if it were wrong by ``scale``."""
        return Plan(
            stages=tuple(
                StageProfile(key=f"stage#{n}", core_s=part.core_s * scale, tasks=part.tasks, gap_s=part.gap_s)
                for n, part in enumerate(self.parts)
            ),
            startup_core_s=self.startup_core_s * scale,
            lead_s=self.lead_s + self.startup_core_s / self.slots,
            tail_s=self.tail_s,
        )

    def progress(self) -> Progress | None:
        if self._index < 0:
            return None
        return Progress(at=self.now, application_id="app-1", stages=tuple(self._stages), slots=self.slots)

    def advance(self, dt_s: float, cores: float) -> None:
        """Let ``dt_s`` seconds pass with ``cores`` cores delivered."""
        end = self.now + dt_s
        while self.now < end - 1e-9 and self.finished_at is None:
            if self._gap_left_s > 1e-9:
                self._wait(min(end - self.now, self._gap_left_s))
            elif self._startup_left_core_s > 1e-9:
                self._start_executors(end - self.now, cores)
            elif self._index < 0 or self._stage_over():
                self._next()
            else:
                self._work(end - self.now, cores)
        self.now = end

    def _wait(self, seconds: float) -> None:
        self.now += seconds
        self._gap_left_s -= seconds

    def _start_executors(self, left_s: float, cores: float) -> None:
        speed = min(cores, self.slots)
        seconds = min(left_s, self._startup_left_core_s / speed) if speed > 0 else left_s
        self._startup_left_core_s -= seconds * speed
        self.used_core_s += seconds * speed
        self.now += seconds

    def _stage_over(self) -> bool:
        return self._done_core_s >= self.parts[self._index].core_s - 1e-9

    def _next(self) -> None:
        if self._index >= 0 and self._stages[-1].completed_at is None:
            self._report(completed_at=self.now)
            following = self.parts[self._index + 1].gap_s if self._index + 1 < len(self.parts) else self.tail_s
            self._gap_left_s = following
            if following > 1e-9:
                return
        self._index += 1
        if self._index >= len(self.parts):
            self._index -= 1
            self.finished_at = self.now
            return
        self._done_core_s, self._task_s, self._run_time_s, self._submitted_at = 0.0, 0.0, 0.0, self.now
        self._stages.append(self._stage())

    def _work(self, left_s: float, cores: float) -> None:
        part = self.parts[self._index]
        complete = int(self._done_core_s / part.core_s * part.tasks + 1e-9)
        speed = min(cores, self.slots, part.tasks - complete)
        if speed <= 0:
            self.now += left_s
            return
        seconds = min(left_s, (part.core_s - self._done_core_s) / speed)
        self._task_s += seconds * min(self.slots, part.tasks - complete)
        self._done_core_s += seconds * speed
        self.used_core_s += seconds * speed
        self.now += seconds
        self._report(completed_at=None)

    def _report(self, completed_at: float | None) -> None:
        self._stages[-1] = self._stage(completed_at)

    def _stage(self, completed_at: float | None = None) -> Stage:
        part = self.parts[self._index]
        over = completed_at is not None
        # Tasks of a wave end together: nothing is reported before.
        wave = part.core_s / part.tasks * min(self.slots, part.tasks)
        complete = part.tasks if over else min(part.tasks, int(self._done_core_s / wave + 1e-9) * self.slots)
        if not self._stages or complete != self._stages[-1].complete or over:
            self._run_time_s = self._task_s  # told when tasks end
        return Stage(
            stage_id=self._index,
            name="stage",
            status=StageStatus.COMPLETE if over else StageStatus.ACTIVE,
            tasks=part.tasks,
            active=0 if over else min(self.slots, part.tasks - complete),
            complete=complete,
            run_time_s=self._run_time_s if complete else 0.0,
            submitted_at=self._submitted_at,
            completed_at=completed_at,
        )


@dataclass
class FakeProgress:
    """`ProgressPort` over a simulated application."""

    application: SimulatedApplication
    closed: bool = False

    async def read(self) -> Progress | None:
        if self.application.finished_at is not None:
            raise errors.UnreachableError("the Spark driver", "simulated", "it has ended")
        return self.application.progress()

    async def close(self) -> None:
        self.closed = True
