"""What the deadline controller knows of an application: its progress, its profile, its decisions.

Only values; how they are measured is the adapters' matter, what follows from them the policy's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256


class Mode(StrEnum):
    """What a share means."""

    WORK_CONSERVING = "work_conserving"
    """Soak idle cycles; take a guarantee only as far as the deadline needs one."""
    RESERVE = "reserve"
    """The guarantee is also the ceiling: the job stretches to its deadline and leaves the rest to others."""


class Outlook(StrEnum):
    """What becomes of the promise, as far as can be said now."""

    ON_TRACK = "on_track"
    """Even a pessimistic prediction at the full share lies before the deadline."""
    AT_RISK = "at_risk"
    """The deadline lies within the interval of the prediction."""
    WILL_MISS = "will_miss"
    """Even an optimistic prediction lies after it."""


class StageStatus(StrEnum):
    """As Spark's REST API names them."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    COMPLETE = "COMPLETE"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


KINDS = ("scan", "exchange", "result", "generate")
"""Reads storage; reads a shuffle and writes one; reads a shuffle only; makes its data itself."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the running application."""

    stage_id: int
    name: str
    status: StageStatus
    tasks: int
    active: int = 0
    complete: int = 0
    run_time_s: float = 0.0
    """Seconds that its finished tasks took in total; the work measure when nothing meters CPU."""
    longest_s: float | None = None
    """Run time of its longest task; None until the stage is complete, or when unknown."""
    input_bytes: int = 0
    """Read so far, from storage and from other stages' shuffles."""
    records: int = 0
    """As many records were read so far."""
    kind: str = ""
    """What it does, as far as its data tell: one of `KINDS`; empty before it has moved any."""
    submitted_at: float | None = None
    """Seconds since the epoch, as are the other times."""
    completed_at: float | None = None

    @property
    def running(self) -> bool:
        return self.status is StageStatus.ACTIVE

    @property
    def over(self) -> bool:
        """Whether it comes no more: one that failed is tried again, or the application ends."""
        return self.status not in (StageStatus.ACTIVE, StageStatus.FAILED) and self.completed_at is not None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One reading of the driver's REST API."""

    at: float
    """When it was read, seconds since the epoch."""
    application_id: str
    stages: tuple[Stage, ...] = ()
    """Every stage the driver has shown so far, by stage id."""
    slots: int = 0
    """Tasks that its executors can run at once; 0 before the first executor."""

    @property
    def active_tasks(self) -> int:
        return sum(stage.active for stage in self.stages if stage.running)

    @property
    def runnable_tasks(self) -> int:
        """Tasks that run or could run now."""
        return sum(stage.tasks - stage.complete for stage in self.stages if stage.running)


@dataclass(frozen=True, kw_only=True)
class StageProfile:
    """What one stage cost in earlier runs."""

    key: str
    """The stage's name and how many of that name came before it, such as ``"count at job.py:12#0"``."""
    core_s: float
    """Core-seconds metered on all its processes, Python workers included."""
    tasks: int
    gap_s: float = 0.0
    """Seconds before it in which no stage ran: the driver was busy, and no core could shorten that."""
    input_bytes: int = 0
    records: int = 0
    kind: str = ""
    """One of `KINDS`: stages of a kind are wrong together, if the profile is."""
    after: tuple[str, ...] = ()
    """Keys of the stages whose end it waited for; none for one that began with the application."""
    longest_core_s: float = 0.0
    """Work of its longest task: no share shortens it below that."""
    elasticity: float = 1.0
    """Work grows with the input to this power."""
    curve: tuple[float, ...] = ()
    """Part of the work that was done when each of so many equal parts of the tasks had finished: the first ones
    cost more, while code is being compiled. Empty for all tasks alike."""
    busy: float = 1.0
    """Part of the time from the launch of its tasks to their end in which they ran: the rest is on the way."""

    def part_done(self, complete: int, tasks: int) -> float:
        """Part of its work in ``complete`` of ``tasks`` tasks, by its curve."""
        at = min(1.0, complete / max(1, tasks))
        if not self.curve:
            return at
        points = (0.0, *self.curve)
        place = min(len(self.curve) - 1, int(at * len(self.curve)))
        return points[place] + (points[place + 1] - points[place]) * (at * len(self.curve) - place)


UNKNOWN_SURPRISE = 3.0
"""A straggler takes up to four times as long as it should, where nothing is known."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One course that an application takes."""

    stages: tuple[StageProfile, ...]
    startup_core_s: float = 0.0
    """Core-seconds of the executors before their first stage."""
    lead_s: float = 0.0
    """Seconds from submission to the first stage."""
    tail_s: float = 0.0
    """Seconds from the end of the last stage to the end of the application."""
    runs: int = 1
    """Runs that it was learned from."""
    spread: float | None = None
    """Relative standard deviation of the work from run to run; None after a single run."""

    others_since: int = 0
    """Runs of other courses that were learned since this one was last taken."""
    surprise: float = UNKNOWN_SURPRISE
    """By how many lengths of its longest task a stage took longer for a straggler lately, at worst."""

    @property
    def signature(self) -> str:
        """Names the course: the same stages in the same order have the same one."""
        return sha256("\n".join(stage.key for stage in self.stages).encode()).hexdigest()[:8]

    @property
    def stages_core_s(self) -> float:
        return sum(stage.core_s for stage in self.stages)

    @property
    def core_s(self) -> float:
        return self.startup_core_s + self.stages_core_s

    @property
    def gaps_s(self) -> float:
        return self.lead_s + sum(stage.gap_s for stage in self.stages) + self.tail_s

    @property
    def input_bytes(self) -> int:
        return sum(stage.input_bytes for stage in self.stages)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Everything learned about an application: one plan for each course it has taken."""

    key: str
    plans: tuple[Plan, ...]


@dataclass(frozen=True, kw_only=True)
class Promise:
    """The deadline as absolute times, shared by all tries of a task."""

    started_at: float
    """Seconds since the epoch from which the deadline counts."""
    deadline_at: float

    @property
    def duration_s(self) -> float:
        return self.deadline_at - self.started_at


@dataclass(frozen=True)
class Tally:
    """What a stage of the running application has cost so far."""

    core_s: float = 0.0
    task_s: float = 0.0
    """Seconds that its tasks have run in total, running ones included."""
    last_wave_core_s: float = 0.0
    """What each running task has got since the last one began: the longest has that much less to do."""
    marks: tuple[float, ...] = ()
    """`while_told` each time another equal part of the tasks had finished; see `ledger`."""
    noted_part: float = 0.0
    """Part of the tasks that had finished at the last note."""
    noted_core_s: float = 0.0
    """`while_told` then."""

    def busy(self, stage: Stage) -> float:
        """Part of the time since its tasks were launched that finished ones have told to have run."""
        return min(1.0, stage.run_time_s / self.task_s) if self.task_s > 0 else 1.0

    def while_told(self, stage: Stage) -> float:
        """Core-seconds of that part: of finished tasks without their way."""
        return self.core_s * self.busy(stage)

    def finished_core_s(self, stage: Stage, known: StageProfile | None = None) -> float:
        """The part of its finished tasks: as much of the cost as of the time that all have run.

        Spark tells run times when tasks end, and tasks that run at the same time get equal parts of a share.
        How much time was lost on the way, the profile of the stage tells, if it is ``known``.
        """
        if stage.over:
            return self.core_s
        return min(self.core_s, self.while_told(stage) / (known.busy if known else 1.0))


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one control step sees."""

    now: float
    progress: Progress | None
    """The last reading of the REST API; None before the first. It may be older than this step."""
    used_core_s: float
    """Core-seconds the group has used since it was opened."""
    elapsed_s: float
    """Seconds since the application was submitted."""
    by_stage: Mapping[int, Tally] = field(default_factory=dict)
    """What stages have cost, by their ids."""
    driver_used_core_s: float = 0.0
    """Core-seconds the driver's own group has used; 0 when it has none."""
    granted_cores: float | None = None
    """Guarantee of the executors since the last step, when that is less than was asked for; None when it is not."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What one control step decides."""

    guaranteed_cores: float
    ceiling_cores: float | None
    needed_cores: float
    """What the deadline needs from now on; above the maximum when it is at risk."""
    progress: float | None
    """Part of the profiled work that is done; None without a profile."""
    finish_at: float | None
    """Predicted end at the full share, or at what there is while the host's cores are promised to others;
    None without a profile."""
    finish_low_at: float | None = None
    """Optimistic end of the prediction's interval."""
    finish_high_at: float | None = None
    """Pessimistic end of it."""
    outlook: Outlook | None = None
    """None when nothing can be said: no profile yet."""
    reason: str
    driver_cores: float = 0.0
    """Guaranteed to the driver, beside the executors."""


def numbered(stages: Sequence[Stage]) -> Mapping[str, Stage]:
    """Stages by the key that profiles use: ids shift between runs, names and their order do not."""
    seen: dict[str, int] = {}
    found: dict[str, Stage] = {}
    for stage in sorted(stages, key=lambda stage: stage.stage_id):
        nth = seen.get(stage.name, 0)
        seen[stage.name] = nth + 1
        found[f"{stage.name}#{nth}"] = stage
    return found


def keyed(stages: Sequence[Stage]) -> Mapping[str, Stage]:
    """As `numbered`, without those that were skipped (their output was still there) or failed."""
    gone = (StageStatus.SKIPPED, StageStatus.FAILED)
    return {key: stage for key, stage in numbered(stages).items() if stage.status not in gone}
