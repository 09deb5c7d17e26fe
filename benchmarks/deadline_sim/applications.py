"""Random Spark applications: graphs of stages with work, skew, driver gaps and a start-up.

Here is what an application *is*, the same in every run of it. What differs from run to run (noise, stragglers,
failures) is in `draws`; how it runs on given cores is in `engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp, log
from random import Random

_BYTES_PER_CORE_S = 8 << 20
_LONGEST_MEAN_TASK = 0.02
"""Of the time that the application takes: who cuts his data coarser has no deadline to talk of."""
_SHORTEST_MEAN_TASK_S = 0.04
_MOST_TASKS = 200


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage."""

    name: str
    works: tuple[float, ...]
    """Core-seconds of each task, skew included."""
    job: int
    parents: tuple[int, ...] = ()
    """Stages whose shuffle output it reads, of its own job or of earlier ones."""
    skipped: bool = False
    """Listed with its job, but never run: its output is still there."""

    @property
    def kind(self) -> str:
        return "exchange" if self.parents else "scan"

    @property
    def input_bytes(self) -> int:
        return int(sum(self.works) * _BYTES_PER_CORE_S)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One action of the driver: its stages are listed when it is submitted."""

    after: tuple[int, ...] = ()
    gap_s: float = 0.0
    """What the driver does between their end and the submission; no core of the executors shortens it."""


@dataclass(frozen=True, kw_only=True)
class Application:
    """What is the same in all runs."""

    shape: str
    stages: tuple[Stage, ...]
    """In topological order."""
    jobs: tuple[Job, ...]
    executors: int
    cores_each: int
    lead_s: float
    """From submission until the driver submits its first job."""
    startup_core_s: float
    """Of one executor."""
    warm_up: float
    """Part by which the first tasks cost more, while the executors' code is being compiled."""
    tail_s: float
    slow_cost: float
    """Part by which a task costs more the closer to zero its speed is: caches, timers, heartbeats."""
    speculation: bool

    @property
    def slots(self) -> int:
        return self.executors * self.cores_each

    @property
    def work_core_s(self) -> float:
        return sum(sum(stage.works) for stage in self.stages if not stage.skipped)


@dataclass
class _Sketch:
    """Stages by relative weight, before they get their work."""

    rng: Random
    weights: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    parents: list[tuple[int, ...]] = field(default_factory=list)
    stage_jobs: list[int] = field(default_factory=list)
    serial: list[bool] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def job(self, *after: int, gap_s: float | None = None) -> int:
        gap = self.rng.uniform(0.02, 0.5) if gap_s is None else gap_s
        self.jobs.append(Job(after=after, gap_s=gap))
        return len(self.jobs) - 1

    def stage(
        self,
        job: int,
        *parents: int,
        name: str = "",
        weight: float | None = None,
        serial: bool = False,
        skipped: bool = False,
    ) -> int:
        """Add a stage; ``serial``: it has few tasks; returns its position."""
        place = len(self.weights)
        self.weights.append(self.rng.lognormvariate(0, 0.9) if weight is None else weight)
        self.names.append(name or f"step at job.py:{10 + place}")
        self.parents.append(parents)
        self.stage_jobs.append(job)
        self.serial.append(serial)
        self.skipped.append(skipped)
        return place


def _chain(sketch: _Sketch) -> None:
    """Stages one after the other, in one job or in several."""
    rng = sketch.rng
    job, last = sketch.job(gap_s=0.0), None
    for _ in range(rng.randint(2, 14)):
        if last is not None and rng.random() < 0.5:
            job = sketch.job(job)
        last = sketch.stage(job, *(() if last is None else (last,)))


def _fan(sketch: _Sketch) -> None:
    """Several inputs read in parallel, then joined step by step (a star join)."""
    adaptive = sketch.rng.random() < 0.5
    first = sketch.job(gap_s=0.0)
    jobs = [first, *(sketch.job(gap_s=0.05) if adaptive else first for _ in range(sketch.rng.randint(1, 7)))]
    leaves = [sketch.stage(job) for job in jobs]
    joined, last = leaves[0], jobs[0]
    for job, leaf in zip(jobs[1:], leaves[1:], strict=True):
        last = sketch.job(last, job, gap_s=0.05) if adaptive else first
        joined = sketch.stage(last, joined, leaf)
    sketch.stage(last if not adaptive else sketch.job(last, gap_s=0.05), joined, weight=0.2)


def _diamonds(sketch: _Sketch) -> None:
    """Split, parallel branches, join, and again."""
    rng = sketch.rng
    job = sketch.job(gap_s=0.0)
    top = sketch.stage(job)
    for _ in range(rng.randint(1, 5)):
        if rng.random() < 0.4:
            job = sketch.job(job)
        branches = [sketch.stage(job, top) for _ in range(rng.randint(2, 4))]
        top = sketch.stage(job, *branches)


def _iterations(sketch: _Sketch) -> None:
    """As KMeans: the input is prepared once, then the same two stages again and again, the driver in between."""
    rng = sketch.rng
    job = sketch.job(gap_s=0.0)
    sketch.stage(job, weight=rng.uniform(0.5, 4))
    gap_s, step, small = rng.uniform(0.02, 1.5), rng.uniform(0.5, 1.5), rng.uniform(0.02, 0.3)
    for _ in range(rng.randint(4, 13)):
        job = sketch.job(job, gap_s=gap_s)
        mapped = sketch.stage(job, name="mapPartitions at KMeans.scala:330", weight=step)
        sketch.stage(job, mapped, name="collect at KMeans.scala:350", weight=small, serial=True)


def _page_rank(sketch: _Sketch) -> None:
    """Each job lists all stages of its lineage, most of them skipped."""
    rng = sketch.rng
    job = sketch.job(gap_s=0.0)
    links = sketch.stage(job, name="distinct at rank.py:20", weight=3.0)
    lineage = [links]
    step = rng.uniform(0.5, 1.5)
    for _ in range(rng.randint(3, 7)):
        job = sketch.job(job)
        for place in lineage[-2:]:
            sketch.stage(job, name=sketch.names[place], weight=0.0, skipped=True)
        contribs = sketch.stage(job, lineage[-1], name="join at rank.py:30", weight=step)
        ranks = sketch.stage(job, contribs, name="reduceByKey at rank.py:33", weight=0.5 * step)
        lineage += [contribs, ranks]


def _layers(sketch: _Sketch) -> None:
    """A graph without any pattern."""
    rng = sketch.rng
    job = sketch.job(gap_s=0.0)
    before = [sketch.stage(job) for _ in range(rng.randint(1, 4))]
    for _ in range(rng.randint(1, 6)):
        if rng.random() < 0.3:
            job = sketch.job(job)
        before = [sketch.stage(job, *rng.sample(before, rng.randint(1, len(before)))) for _ in range(rng.randint(1, 4))]


def _serial_end(sketch: _Sketch) -> None:
    """Much work in parallel, then a stage of a task or two."""
    job = sketch.job(gap_s=0.0)
    last = sketch.stage(job, weight=sketch.rng.uniform(4, 10))
    sketch.stage(sketch.job(job), last, weight=sketch.rng.uniform(0.1, 0.6), serial=True)


def _many_short(sketch: _Sketch) -> None:
    """As a notebook: many small jobs, the driver at work between them."""
    job = sketch.job(gap_s=0.0)
    for _ in range(sketch.rng.randint(15, 30)):
        sketch.stage(job, weight=sketch.rng.lognormvariate(0, 0.4))
        job = sketch.job(job, gap_s=sketch.rng.uniform(0.05, 1.0))
    sketch.stage(job, weight=0.3)


SHAPES: dict[str, Callable[[_Sketch], None]] = {
    "chain": _chain,
    "fan": _fan,
    "diamonds": _diamonds,
    "iterations": _iterations,
    "page_rank": _page_rank,
    "layers": _layers,
    "serial_end": _serial_end,
    "many_short": _many_short,
}


def random_application(shape: str, rng: Random, *, length_s: tuple[float, float] = (60.0, 300.0)) -> Application:
    """An application whose uncontrolled run takes about so many seconds.

    Args:
        shape: one of `SHAPES`.
        rng: the only source of chance.
        length_s: least and most seconds of work at full share, start and gaps not counted.
    """
    sketch = _Sketch(rng)
    SHAPES[shape](sketch)
    executors, cores_each = rng.choice([(1, 2), (2, 1), (2, 2), (1, 4), (4, 1), (4, 2), (2, 4)])
    seconds = exp(rng.uniform(log(length_s[0]), log(length_s[1])))
    return Application(
        shape=shape,
        stages=_stages(sketch, executors * cores_each, seconds),
        jobs=tuple(sketch.jobs),
        executors=executors,
        cores_each=cores_each,
        lead_s=rng.uniform(4, 10),
        startup_core_s=rng.uniform(3, 7),
        warm_up=rng.uniform(0.1, 0.5),
        tail_s=rng.uniform(0.3, 2.5),
        slow_cost=rng.uniform(0.03, 0.10),
        speculation=rng.random() < 0.3,
    )


def _stages(sketch: _Sketch, slots: int, seconds: float) -> tuple[Stage, ...]:
    """The sketched stages with work for so many seconds; those of a name have as many tasks."""
    rng = sketch.rng
    unit = seconds * slots * rng.uniform(0.7, 0.95) / sum(sketch.weights)
    common = rng.choice([1, 2, 4]) * slots
    counts: dict[str, int] = {}
    stages = []
    for place, (name, weight) in enumerate(zip(sketch.names, sketch.weights, strict=True)):
        work = weight * unit
        count = rng.randint(1, min(slots, 4)) if sketch.serial[place] else _task_count(rng, work, common, seconds)
        works = _works(rng, work, counts.setdefault(name, count))
        stages.append(
            Stage(
                name=name,
                works=works,
                job=sketch.stage_jobs[place],
                parents=sketch.parents[place],
                skipped=sketch.skipped[place],
            )
        )
    return tuple(stages)


def _task_count(rng: Random, work: float, common: int, seconds: float) -> int:
    """As many as everywhere in the application (``spark.default.parallelism``), or as its own input has splits."""
    count = common if rng.random() < 0.5 else int(exp(rng.uniform(0, log(_MOST_TASKS))))
    count = max(count, int(work / (_LONGEST_MEAN_TASK * seconds)))
    return max(1, min(_MOST_TASKS, count, int(work / _SHORTEST_MEAN_TASK_S)))


def _works(rng: Random, work: float, count: int) -> tuple[float, ...]:
    """The work of each task: even, skewed as keys of a Zipf law are, or with one long task."""
    kind = rng.random()
    if kind < 0.7 or count < 3:
        parts = [rng.lognormvariate(0, 0.15) for _ in range(count)]
    elif kind < 0.85:
        power = rng.uniform(0.3, 0.8)
        parts = [(n + 1) ** -power for n in range(count)]
        rng.shuffle(parts)
    else:
        parts = [rng.lognormvariate(0, 0.15) for _ in range(count)]
        parts[rng.randrange(count)] *= rng.uniform(2, 5)
    return _to_sum(parts, work)


def _to_sum(parts: Sequence[float], work: float) -> tuple[float, ...]:
    total = sum(parts)
    return tuple(part * work / total for part in parts)
