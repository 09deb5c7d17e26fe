"""A session: uncontrolled runs first, from which deadlines and profiles follow, then the race, interleaved."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark.adapters import cluster as clusters
from benchmarks.deadline import apps, results, trial
from benchmarks.deadline.rivals import RIVALS, Rival

CORES = 2
"""Slots of the cluster: the applications are sized for it."""
FAR_S = 1800.0
"""A deadline for runs that have none."""
AROUND_S = 4.0
"""Between two runs, and for the last executor to end."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a session covers.

    Raises:
        InvalidInputError: an unknown application or rival, or a number out of its range.
    """

    apps: Sequence[str] = apps.NAMES
    rivals: Sequence[str] = tuple(RIVALS)
    factors: Sequence[float] = (1.2, 1.5, 2.0)
    seeds: int = 5
    baselines: int = 3
    """Uncontrolled runs of each application before the race."""
    scale: float = 1.0
    """Size of the applications."""

    def __post_init__(self) -> None:
        for field, known in (("apps", apps.NAMES), ("rivals", tuple(RIVALS))):
            for name in getattr(self, field):
                if name not in known:
                    raise errors.InvalidInputError(field, name, f"choose from {', '.join(known)}")
        for factor in self.factors:
            if not 0.5 <= factor <= 100:
                raise errors.InvalidInputError("factors", factor, "must be between 0.5 and 100")
        for field, low, high in (("seeds", 0, 1000), ("baselines", 1, 100), ("scale", 0.001, 100)):
            if not low <= getattr(self, field) <= high:
                raise errors.InvalidInputError(field, getattr(self, field), f"must be between {low} and {high}")


QUICK = Scope(
    apps=("aggregate", "kmeans"),
    rivals=("fixed", "dynamic_allocation", "paper", "ours_reserve", "ours_work_conserving_greedy"),
    factors=(1.5,),
    seeds=1,
    baselines=2,
)
"""One application of Python workers and one of JVM tasks, each rival once at 1.5×."""
FULL = Scope()


@dataclass(frozen=True)
class Run:
    """One run of the race and the rows that it makes."""

    app: str
    rival: Rival
    seed: int
    factors: tuple[float, ...]

    @property
    def keys(self) -> tuple[results.Key, ...]:
        return tuple(results.Key(self.rival.name, self.app, self.seed, factor) for factor in self.factors)

    def __str__(self) -> str:
        factors = ", ".join(f"{factor:g}×" for factor in self.factors)
        return f"{self.rival.name} of {self.app}, seed {self.seed}, {factors}"


def race(scope: Scope) -> Iterator[Run]:
    """All runs: seed by seed, shuffled within a seed, so that noise hits all rivals alike."""
    for seed in range(1, scope.seeds + 1):
        found = []
        for app in scope.apps:
            for name in scope.rivals:
                rival = RIVALS[name]
                each = [(factor,) for factor in scope.factors] if rival.knows_deadline else [tuple(scope.factors)]
                found += [Run(app, rival, seed, factors) for factors in each]
        random.Random(seed).shuffle(found)
        yield from found


LEARNER = replace(RIVALS["none"], profile=1.0)
"""An uncontrolled run that goes on learning where the one before left off."""


class Session:
    """Runs what of a scope is not in the results yet; use as a context manager, which holds the cluster."""

    def __init__(self, scope: Scope, found: results.Results, *, home: Path, allocator: str = "auto") -> None:
        """Go on with ``found``; logs, steps and the cluster's files are in ``home``."""
        self.scope = scope
        self.results = found
        self.home = home
        self.allocator = allocator

    def __enter__(self) -> Session:
        known = processes.service(clusters.MASTER)  # of a session that was killed
        port = int(known.details["master"].rpartition(":")[2]) if known else processes.free_port()
        master = clusters.up(clusters.ClusterSettings(workers=1, cores=CORES, memory="3g", port=port))
        self.cluster = trial.Cluster(
            master_url=master.details["master"], web_url=master.details["web_url"], cores=CORES
        )
        return self

    def __exit__(self, *_: object) -> None:
        clusters.down()

    def baselines(self) -> Iterator[str]:
        """Uncontrolled runs, the applications in turn; says what came out of each."""
        for number in range(self.scope.baselines):
            for app in self.scope.apps:
                if self.results.raced(app) or len(self.results.baselines.get(app, ())) > number:
                    continue
                outcome = self._run(app, LEARNER, results.BASELINE_SEED + number, FAR_S)
                self.results.add_baseline(app, outcome)
                self.results.save()
                yield f"{app} alone: {outcome.finish_s:.1f} s, {outcome.used_core_s:.1f} core-s"

    def race(self) -> Iterator[str]:
        """The runs that are left; says what came out of each. One that fails is a row like any other."""
        for app in self.scope.apps:
            self.results.count_baselines(app, self.scope.factors)
        self.results.save()
        for each in race(self.scope):
            keys = [key for key in each.keys if not self.results.has(key)]
            if keys:
                yield f"{each}: {self._row(each, keys)}"

    def complete(self) -> bool:
        """Whether nothing is left to run."""
        return all(map(self.results.raced, self.scope.apps)) and not self.left()

    def left(self) -> int:
        """Runs of the race that are still to be made."""
        return sum(1 for each in race(self.scope) if not all(map(self.results.has, each.keys)))

    def left_s(self) -> float:
        """Roughly how long they will take: a controlled run takes what it may."""
        runs = [each for each in race(self.scope) if not all(map(self.results.has, each.keys))]
        lasting = (max(each.factors) if each.rival.knows_deadline else 1.0 for each in runs)
        return sum(
            factor * self.results.median_s(each.app) + AROUND_S for each, factor in zip(runs, lasting, strict=True)
        )

    def _row(self, each: Run, keys: Sequence[results.Key]) -> str:
        deadline_s = max(self.results.deadline_s(key.app, key.factor) for key in keys)
        try:
            outcome = self._run(each.app, each.rival, each.seed, deadline_s)
        except errors.MlscaleError as exc:
            self.results.add(keys, None, error=str(exc))
            self.results.save()
            return f"FAILED: {exc}"
        self.results.add(keys, outcome)
        if each.rival.name == "ours_reserve" and each.app not in self.results.burn_down and 1.5 in each.factors:
            self.results.burn_down[each.app] = {"deadline_s": deadline_s, "finish_s": outcome.finish_s}
            self.results.burn_down[each.app]["points"] = list(outcome.series)
        self.results.save()
        if not each.rival.knows_deadline:
            return f"{outcome.finish_s:.1f} s"
        off = 100 * (outcome.finish_s - deadline_s) / deadline_s
        return f"{outcome.finish_s:.1f} s of {deadline_s:.1f} s ({off:+.1f} %), {outcome.mean_cores:.2f} cores"

    def _run(self, app: str, rival: Rival, seed: int, deadline_s: float) -> trial.Outcome:
        one = trial.Trial(
            app=app,
            rival=rival,
            seed=seed,
            deadline_s=deadline_s,
            half_way_s=(self.results.median_s(app) if self.results.baselines.get(app) else deadline_s) / 2,
            scale=self.scope.scale,
            profile=self.results.profile(app),
        )
        log_path = self.home / "logs" / f"{app}-{rival.name}.log"
        outcome = trial.run(one, self.cluster, log_path=log_path, allocator=self.allocator)
        if outcome.series:  # for whoever wants to know why a run ended as it did
            steps = self.home / "steps" / f"{app}-{rival.name}-{seed}-{deadline_s:.0f}s.jsonl"
            steps.parent.mkdir(parents=True, exist_ok=True)
            steps.write_text("".join(json.dumps(point) + "\n" for point in outcome.series))
        return outcome
