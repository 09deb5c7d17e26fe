"""What chance makes of an application in one run, drawn beforehand: rivals meet the same noise and the same mishaps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random

from benchmarks.deadline_sim.applications import Application, Stage

DERATING_PERIOD_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Chance:
    """How rough the runs are."""

    run_sd: float = 0.03
    """Relative, of the work of all stages together."""
    stage_sd: float = 0.04
    task_sd: float = 0.10
    gap_sd: float = 0.20
    edge_sd: float = 0.10
    """Of the time before the first job and after the last."""
    scale_range: tuple[float, float] = (0.95, 1.05)
    """Of the input, and with it of the work, against the application as it is described."""
    straggler: float = 0.004
    """Probability per task of needing 2–4 times its work."""
    failure: float = 0.003
    """Probability per task that its first attempt fails on the way."""
    fetch_failure: float = 0.004
    """Probability per stage that a part of its input is lost and must be made again."""
    lost_executor: float = 0.02
    """Probability per run."""
    replan: float = 0.05
    """Probability per stage that its number of tasks is another one than last time."""
    dropped: float = 0.0
    """Probability per stage that it does not come."""
    added: float = 0.0
    """Probability per stage that one more comes after it, with as much as a third of its work."""
    derating: tuple[float, float] = (0.87, 1.0)
    """Delivered ÷ granted."""


USUAL = Chance()
OTHER_PLAN = Chance(replan=0.3, dropped=0.06, added=0.06)
"""A run whose plan is partly another one than the profile's."""


@dataclass(frozen=True)
class FetchFailure:
    """Noticed when so many tasks are complete: these tasks of the parent are run again first."""

    complete: int
    parent: int
    missing: tuple[int, ...]


@dataclass(frozen=True)
class Lost:
    """One executor ends when so much of the work is done; another takes its place after a while."""

    at_fraction: float
    back_after_s: float


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One run of an application, as far as chance decides it."""

    application: Application
    """As it is this time: works with noise, the plan as it came."""
    calm_works: tuple[tuple[float, ...], ...]
    """Of a task's speculative copy: elsewhere it does not straggle."""
    failures: Mapping[tuple[int, int], float]
    """Part of its work after which the first attempt of a task fails, by stage and task."""
    fetch_failures: Mapping[int, FetchFailure]
    lost: Lost | None
    derating: tuple[float, ...]
    """Delivered ÷ granted in each `DERATING_PERIOD_S`, repeated."""
    seed: int
    """For what is drawn on the way: the age of readings, which tasks ran on a lost executor."""
    mishaps: frozenset[str] = field(default=frozenset())
    """What happened out of the ordinary, by name."""

    def derating_at(self, t_s: float) -> float:
        return self.derating[int(t_s / DERATING_PERIOD_S) % len(self.derating)]


def draw(application: Application, rng: Random, chance: Chance = USUAL) -> Draw:
    """One run."""
    planned = _replanned(application, rng, chance)
    overall = rng.lognormvariate(0, chance.run_sd) * rng.uniform(*chance.scale_range)
    works, calm, stages = [], [], []
    mishaps = {"replan"} if planned is not application else set()
    for stage in planned.stages:
        factor = overall * rng.lognormvariate(0, chance.stage_sd)
        own = tuple(work * factor * rng.lognormvariate(0, chance.task_sd) for work in stage.works)
        slow = tuple(work * (rng.uniform(2, 4) if rng.random() < chance.straggler else 1.0) for work in own)
        if slow != own and not stage.skipped:
            mishaps.add("straggler")
        works.append(slow)
        calm.append(own)
        stages.append(replace(stage, works=slow))
    jobs = tuple(replace(job, gap_s=job.gap_s * rng.lognormvariate(0, chance.gap_sd)) for job in planned.jobs)
    actual = replace(
        planned,
        stages=tuple(stages),
        jobs=jobs,
        lead_s=planned.lead_s * rng.lognormvariate(0, chance.edge_sd),
        tail_s=planned.tail_s * rng.lognormvariate(0, chance.edge_sd),
    )
    failures = {
        (place, task): rng.random()
        for place, stage in enumerate(stages)
        for task in range(len(stage.works))
        if rng.random() < chance.failure and not stage.skipped
    }
    fetches = {
        place: _fetch_failure(stage, stages, rng)
        for place, stage in enumerate(stages)
        if stage.parents and not stage.skipped and rng.random() < chance.fetch_failure
    }
    lost = Lost(rng.uniform(0.05, 0.95), rng.uniform(1, 5)) if rng.random() < chance.lost_executor else None
    names = {"failed_task": failures, "fetch_failure": fetches, "lost_executor": lost}
    return Draw(
        application=actual,
        calm_works=tuple(calm),
        failures=failures,
        fetch_failures=fetches,
        lost=lost,
        derating=_derating(rng, chance),
        seed=rng.getrandbits(32),
        mishaps=frozenset(mishaps | {name for name, found in names.items() if found}),
    )


def _fetch_failure(stage: Stage, stages: list[Stage], rng: Random) -> FetchFailure:
    parent = rng.choice(stage.parents)
    tasks = len(stages[parent].works)
    missing = rng.sample(range(tasks), max(1, int(tasks * rng.uniform(0.02, 0.3))))
    return FetchFailure(rng.randrange(len(stage.works)), parent, tuple(missing))


def _derating(rng: Random, chance: Chance) -> tuple[float, ...]:
    """Wanders between its bounds."""
    low, high = chance.derating
    value, values = rng.uniform(low, high), []
    for _ in range(64):
        value = min(high, max(low, value + rng.gauss(0, 0.02)))
        values.append(value)
    return tuple(values)


def _replanned(application: Application, rng: Random, chance: Chance) -> Application:
    """The application with a plan that differs here and there: other numbers of tasks, stages less or more."""
    stages: list[Stage] = []
    place_of: dict[int, int] = {}
    counts: dict[str, int] = {}
    changed = False
    for place, stage in enumerate(application.stages):
        parents = tuple(sorted({place_of[parent] for parent in stage.parents}))
        stage = replace(stage, parents=parents)
        exchange = parents and not stage.skipped
        if exchange and len(parents) == 1 and rng.random() < chance.dropped and _alone(application, place):
            place_of[place] = parents[0]
            changed = True
            continue
        if exchange and stage.name not in counts and rng.random() < chance.replan:
            counts[stage.name] = max(1, min(200, int(len(stage.works) * rng.choice([0.5, 0.7, 1.5, 2.0]))))
        if stage.name in counts and not stage.skipped and counts[stage.name] != len(stage.works):
            stage = replace(stage, works=_redistributed(stage.works, counts[stage.name]))
            changed = True
        place_of[place] = len(stages)
        stages.append(stage)
        if exchange and rng.random() < chance.added:
            works = tuple(work * rng.uniform(0.05, 0.33) for work in stage.works)
            stages.append(
                Stage(name=f"new step at job.py:{500 + place}", works=works, job=stage.job, parents=(place_of[place],))
            )
            place_of[place] = len(stages) - 1
            changed = True
    return replace(application, stages=tuple(stages)) if changed else application


def _alone(application: Application, place: int) -> bool:
    """Whether it can be left out: its job has another stage, and no list of a lineage names it."""
    stage = application.stages[place]
    same_job = [each for each in application.stages if each.job == stage.job and not each.skipped]
    return len(same_job) > 1 and not any(each.skipped for each in application.stages)


def _redistributed(works: tuple[float, ...], count: int) -> tuple[float, ...]:
    """The same work in another number of tasks."""
    drawn = [works[n * len(works) // count] for n in range(count)]
    factor = sum(works) / sum(drawn)
    return tuple(work * factor for work in drawn)
