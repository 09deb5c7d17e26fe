"""A stock Spark application as a discrete-event simulation: from cores to progress, task by task.

Running tasks share the delivered cores equally, at most one core each, so that all advance alike: a task's
end is a point on one common scale of work, and an advance costs one heap operation per event, not per task.
Scheduling is FIFO by stage, as Spark's own. Knows nothing of deadlines.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from statistics import median

from airflow_mlscale.spark.model import Progress, Stage, StageStatus
from benchmarks.deadline_sim.draws import Draw, FetchFailure

START = 1_000_000.0
"""Time of submission: an epoch far from zero, as real ones are."""
_EXECUTOR = -1
"""Stage of a task that stands for an executor that starts."""
_NOTHING = 1e-9
_SPECULATION_QUANTILE = 0.75
_SPECULATION_MULTIPLIER = 1.5


@dataclass(eq=False)
class _Task:
    """One attempt that runs."""

    stage: int
    index: int
    begun_at: float
    fails: bool = False
    copy: bool = False
    gone: bool = False
    """Killed: its entry in the heap is void."""


@dataclass
class _Live:
    """One stage as it stands."""

    stage_id: int
    tasks: int
    waiting: deque[int]
    done: set[int] = field(default_factory=set)
    running: dict[int, list[_Task]] = field(default_factory=dict)
    status: StageStatus = StageStatus.PENDING
    submitted_at: float | None = None
    completed_at: float | None = None
    run_time_s: float = 0.0
    longest_s: float = 0.0
    run_times: list[float] = field(default_factory=list)
    read_bytes: float = 0.0
    attempted: set[int] = field(default_factory=set)
    fetch_failure: FetchFailure | None = None
    blocked_by: int | None = None
    """The parent that makes lost output again."""
    shown: Stage | None = None
    """As last told; None when it has changed since."""

    @property
    def active(self) -> int:
        return sum(len(attempts) for attempts in self.running.values())


class Run:
    """One run of a drawn application, from submission to the end of its driver."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.application = draw.application
        self.now = START
        self.used_core_s = 0.0
        self.finished_at: float | None = None
        self.slots = 0
        self._rng = Random(draw.seed)
        self._scale = 0.0
        """Work that each task running all the time would have done."""
        self._heap: list[tuple[float, int, _Task]] = []
        self._count = count()
        self._running = 0
        self._busy_slots = 0
        self._timers: list[tuple[float, int, str, int]] = []
        self._live: dict[int, _Live] = {}
        self._ready: list[int] = []
        self._jobs_over: set[int] = set()
        self._jobs_timed: set[int] = set()
        self._done_core_s = 0.0
        self._works = tuple(stage.works for stage in self.application.stages)
        self._lost = draw.lost
        self._warm_left = 2 * self.application.slots
        self._timer(self.application.lead_s * 0.5, "executors", self.application.executors)
        self._jobs_begin(self.application.lead_s)

    @property
    def elapsed_s(self) -> float:
        return self.now - START

    def advance(self, until: float, cores: float) -> None:
        """Let time pass until ``until`` with ``cores`` cores delivered; stops at the end of the application."""
        while self.finished_at is None:
            self._launch()
            running = self._running
            speed = min(1.0, cores / running) if running else 0.0
            rate = speed / (1 + self.application.slow_cost * (1 - speed))
            seconds = until - self.now
            if self._timers:
                seconds = min(seconds, self._timers[0][0] - self.now)
            while self._heap and self._heap[0][2].gone:
                heappop(self._heap)
            if rate > 0 and self._heap:
                seconds = min(seconds, (self._heap[0][0] - self._scale) / rate)
            seconds = max(0.0, seconds)
            self._scale += rate * seconds
            self.used_core_s += speed * running * seconds
            self.now += seconds
            if not self._fire() and self.now >= until - _NOTHING:
                self.now = until
                return

    def progress(self) -> Progress | None:
        """What the driver's REST API tells now; None before it answers."""
        if self.elapsed_s < self.application.lead_s * 0.5:
            return None
        stages = tuple(live.shown or self._show(place, live) for place, live in self._live.items())
        return Progress(at=self.now, application_id="app-1", stages=stages, slots=self.slots)

    def _fire(self) -> bool:
        """Handle everything that is due; returns whether there was anything."""
        any_due = False
        while self._timers and self._timers[0][0] <= self.now + _NOTHING:
            _, _, what, which = heappop(self._timers)
            any_due = True
            self._on_timer(what, which)
        while self._heap and (self._heap[0][2].gone or self._heap[0][0] <= self._scale + _NOTHING):
            _, _, task = heappop(self._heap)
            if not task.gone:
                any_due = True
                self._on_end(task)
        return any_due

    def _timer(self, after_s: float, what: str, which: int) -> None:
        heappush(self._timers, (self.now + after_s, next(self._count), what, which))

    def _on_timer(self, what: str, which: int) -> None:
        if what == "job":
            self._submit(which)
        elif what == "executors":
            for _ in range(which):
                self._run(_Task(_EXECUTOR, 0, self.now), self.application.startup_core_s)
        else:
            self.finished_at = self.now

    # Jobs and stages

    def _jobs_begin(self, after_s: float | None = None) -> None:
        jobs = self.application.jobs
        for number, job in enumerate(jobs):
            if number not in self._jobs_timed and self._jobs_over.issuperset(job.after):
                self._jobs_timed.add(number)
                self._timer(job.gap_s if after_s is None else after_s, "job", number)
        if len(self._jobs_over) == len(jobs):
            self._timer(self.application.tail_s, "end", 0)

    def _submit(self, job: int) -> None:
        for place, stage in enumerate(self.application.stages):
            if stage.job == job:
                tasks = len(stage.works)
                self._live[place] = _Live(len(self._live), tasks, deque(range(tasks)))
                self._live[place].fetch_failure = self.draw.fetch_failures.get(place)
        self._begin_stages()

    def _begin_stages(self) -> None:
        for place, live in self._live.items():
            stage = self.application.stages[place]
            if live.status is StageStatus.PENDING and not stage.skipped and self._complete(stage.parents):
                live.status, live.submitted_at, live.shown = StageStatus.ACTIVE, self.now, None
                self._queue(place)

    def _queue(self, place: int) -> None:
        self._ready.append(place)
        self._ready.sort(key=lambda each: self._live[each].stage_id)

    def _complete(self, places: tuple[int, ...]) -> bool:
        return all(place in self._live and self._live[place].status is StageStatus.COMPLETE for place in places)

    def _stage_over(self, place: int, live: _Live) -> None:
        live.status, live.completed_at, live.shown = StageStatus.COMPLETE, self.now, None
        if place in self._ready:
            self._ready.remove(place)
        for other_place, other in self._live.items():
            if other.blocked_by == place:
                other.blocked_by, other.shown = None, None
                other.status, other.completed_at = StageStatus.ACTIVE, None
                self._queue(other_place)
        self._begin_stages()
        job = self.application.stages[place].job
        mine = [(p, e) for p, e in self._live.items() if self.application.stages[p].job == job]
        if job not in self._jobs_over and all(
            self.application.stages[p].skipped or e.status is StageStatus.COMPLETE for p, e in mine
        ):
            for p, e in mine:
                if self.application.stages[p].skipped:
                    e.status, e.shown = StageStatus.SKIPPED, None
            self._jobs_over.add(job)
            self._jobs_begin()

    # Tasks

    def _launch(self) -> None:
        if self._busy_slots >= self.slots:
            return
        for place in list(self._ready):
            live = self._live[place]
            while live.waiting and self._busy_slots < self.slots:
                self._attempt(place, live, live.waiting.popleft())
            if not live.waiting and place in self._ready:
                self._ready.remove(place)
            if self._busy_slots >= self.slots:
                return
        if self.application.speculation:
            self._speculate()

    def _attempt(self, place: int, live: _Live, index: int, *, copy: bool = False) -> None:
        work = (self.draw.calm_works if copy else self._works)[place][index]
        if self._warm_left > 0:
            self._warm_left -= 1
            work *= 1 + self.application.warm_up
        fails = not copy and (place, index) in self.draw.failures and index not in live.attempted
        if fails:
            work *= self.draw.failures[place, index]
        live.attempted.add(index)
        task = _Task(place, index, self.now, fails=fails, copy=copy)
        live.running.setdefault(index, []).append(task)
        live.shown = None
        self._busy_slots += 1
        self._run(task, work)

    def _run(self, task: _Task, work: float) -> None:
        self._running += 1
        heappush(self._heap, (self._scale + work, next(self._count), task))

    def _drop(self, task: _Task) -> None:
        """It runs no more, for whatever reason."""
        task.gone = True
        self._running -= 1
        if task.stage == _EXECUTOR:
            return
        self._busy_slots -= 1
        live = self._live[task.stage]
        attempts = live.running[task.index]
        attempts.remove(task)
        if not attempts:
            del live.running[task.index]
        seconds = self.now - task.begun_at
        live.run_time_s += seconds
        live.shown = None

    def _on_end(self, task: _Task) -> None:
        self._drop(task)
        if task.stage == _EXECUTOR:
            self.slots += self.application.cores_each
            return
        live = self._live[task.stage]
        if task.fails:
            self._again(task.stage, live, task.index)
            return
        for other in list(live.running.get(task.index, ())):
            self._drop(other)
        work = self._works[task.stage][task.index]
        live.done.add(task.index)
        live.run_times.append(self.now - task.begun_at)
        live.longest_s = max(live.longest_s, self.now - task.begun_at)
        stage = self.application.stages[task.stage]
        live.read_bytes += stage.input_bytes * work / max(_NOTHING, sum(stage.works))
        self._done_core_s += work
        self._mishaps(task.stage, live)
        if len(live.done) == live.tasks:
            self._stage_over(task.stage, live)

    def _again(self, place: int, live: _Live, index: int) -> None:
        if index in live.done or index in live.running or index in live.waiting:
            return
        live.waiting.append(index)
        if place not in self._ready and live.status is StageStatus.ACTIVE:
            self._queue(place)

    def _speculate(self) -> None:
        for place, live in self._live.items():
            if live.status is not StageStatus.ACTIVE or len(live.done) < _SPECULATION_QUANTILE * live.tasks:
                continue
            if not live.run_times or live.waiting:
                continue
            limit_s = _SPECULATION_MULTIPLIER * median(live.run_times)
            for index, attempts in list(live.running.items()):
                if self._busy_slots >= self.slots:
                    return
                if len(attempts) == 1 and self.now - attempts[0].begun_at > max(0.1, limit_s):
                    self._attempt(place, live, index, copy=True)

    # Mishaps

    def _mishaps(self, place: int, live: _Live) -> None:
        failure = live.fetch_failure
        if failure and len(live.done) > failure.complete:
            live.fetch_failure = None
            self._fetch_failed(place, live, failure.parent, failure.missing)
        if self._lost and self._done_core_s >= self._lost.at_fraction * self.application.work_core_s:
            lost, self._lost = self._lost, None
            self._lose_executor(lost.back_after_s)

    def _fetch_failed(self, place: int, live: _Live, parent: int, missing: tuple[int, ...]) -> None:
        above = self._live[parent]
        if len(live.done) == live.tasks or above.status is not StageStatus.COMPLETE:
            return
        for index, attempts in list(live.running.items()):
            for task in list(attempts):
                self._drop(task)
            live.waiting.append(index)
        if place in self._ready:
            self._ready.remove(place)
        live.status, live.completed_at, live.blocked_by, live.shown = StageStatus.FAILED, self.now, parent, None
        above.status, above.completed_at, above.shown = StageStatus.ACTIVE, None, None
        for index in missing:
            if index in above.done:
                above.done.discard(index)
                above.waiting.append(index)
                self._done_core_s -= self._works[parent][index]
        self._queue(parent)

    def _lose_executor(self, back_after_s: float) -> None:
        cores = self.application.cores_each
        tasks = [t for live in self._live.values() for attempts in live.running.values() for t in attempts]
        self.slots -= cores
        for task in self._rng.sample(tasks, min(len(tasks), max(0, self._busy_slots - self.slots))):
            self._drop(task)
            self._again(task.stage, self._live[task.stage], task.index)
        self._timer(back_after_s, "executors", 1)
        part = 1 / self.application.executors
        for place, live in list(self._live.items()):
            parents = [p for p in self.application.stages[place].parents if not self.application.stages[p].skipped]
            if live.status is StageStatus.ACTIVE and parents:
                tasks_above = self._live[parents[-1]].tasks
                missing = self._rng.sample(range(tasks_above), max(1, int(tasks_above * part)))
                self._fetch_failed(place, live, parents[-1], tuple(missing))

    def _show(self, place: int, live: _Live) -> Stage:
        stage = self.application.stages[place]
        complete = len(live.done)
        over = live.status is StageStatus.COMPLETE
        live.shown = Stage(
            stage_id=live.stage_id,
            name=stage.name,
            status=live.status,
            tasks=live.tasks,
            active=max(0, min(live.active, live.tasks - complete)),
            complete=complete,
            run_time_s=live.run_time_s,
            longest_s=live.longest_s if over else None,
            input_bytes=int(live.read_bytes),
            records=int(live.read_bytes / 100),
            kind=stage.kind if complete else "",
            submitted_at=live.submitted_at,
            completed_at=live.completed_at,
        )
        return live.shown
