"""Models that exist only as numbers, and when their requests arrive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log, pi, sin
from random import Random

from airflow_mlscale.roma import model


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One model: what its executions cost and what is promised."""

    spec: model.ModelSpec
    alone_s: float
    """CPU seconds of a single request."""
    shared_part: float
    """Part of that which a batch pays once: 0 where joining gains nothing."""
    spread: float
    """Of the logarithm of an execution's cost."""
    mean_per_s: float
    """Requests per second over the whole run."""

    def work_core_s(self, size: int, rng: Random) -> float:
        """CPU seconds of one execution."""
        mean = self.alone_s * (self.shared_part + (1 - self.shared_part) * size)
        return mean * rng.lognormvariate(-(self.spread**2) / 2, self.spread)


def profiles(seed: int, *, count: int, cores: float, load: float, min_cores: float = 0.05) -> list[Profile]:
    """Models from a multilayer perceptron to a large convolutional network; together they need ``load`` · cores."""
    rng = Random(f"models/{seed}/{count}")
    weights = [rng.lognormvariate(0, 0.7) for _ in range(count)]
    # Nobody needs more than a third of a small host, or one model would decide everything.
    parts = [min(0.34, weight / sum(weights)) for weight in weights]
    found = []
    for index, part in enumerate(parts):
        alone_s = exp(rng.uniform(log(0.004), log(0.060)))
        objective_s = max(0.030, alone_s * rng.uniform(5, 12))
        spec = model.ModelSpec(
            name=f"m{index}",
            version="1",
            artefact="/simulated",
            objective=model.Objective(milliseconds=1000 * objective_s),
            min_cores=min_cores,
            max_batch=16,
        )
        found.append(
            Profile(
                spec=spec,
                alone_s=alone_s,
                shared_part=rng.choice((0.0, 0.0, 0.15, 0.6)),
                spread=0.15,
                mean_per_s=part / sum(parts) * load * cores / alone_s,
            )
        )
    return found


Shape = Callable[[Random, float], Callable[[float], float]]
"""From a source of chance and the seconds of a run to the rate at a time, relative to the mean."""


def steps(rng: Random, length_s: float) -> Callable[[float], float]:
    """Another level every 15 s, and bursts of two to four seconds at three times the level."""
    levels = [rng.uniform(0.4, 1.4) for _ in range(int(length_s // 15) + 1)]
    begins = [rng.uniform(0, length_s) for _ in range(max(1, round(length_s / 30)))]
    bursts = [(begin, begin + rng.uniform(2, 4)) for begin in begins]

    def rate(t: float) -> float:
        burst = any(begin <= t < end for begin, end in bursts)
        return levels[int(t // 15)] * (3.0 if burst else 1.0)

    return rate


def diurnal(rng: Random, length_s: float) -> Callable[[float], float]:
    """One day in the length of a run, every model with an hour of its own."""
    phase = rng.uniform(0, 2 * pi)
    return lambda t: 1 + 0.8 * sin(2 * pi * t / length_s + phase)


def steady(rng: Random, length_s: float) -> Callable[[float], float]:
    """Poisson and nothing else."""
    return lambda t: 1.0


SHAPES: Mapping[str, Shape] = {"steps": steps, "diurnal": diurnal, "steady": steady}


def arrivals(seed: int, found: list[Profile], *, length_s: float, shape: str) -> list[tuple[float, int]]:
    """All arrivals in order, as (seconds, index of the model); each model's mean rate is what its profile says."""
    all_of_them = []
    for index, profile in enumerate(found):
        rng = Random(f"arrivals/{seed}/{index}/{shape}")
        rate = SHAPES[shape](rng, length_s)
        grid = [rate(0.25 * i) for i in range(int(4 * length_s) + 1)]
        scale, highest = profile.mean_per_s * len(grid) / sum(grid), max(grid)
        t = rng.expovariate(scale * highest)
        while t < length_s:  # thinning (Lewis & Shedler, 1979)
            if rng.random() * highest < rate(t):
                all_of_them.append((t, index))
            t += rng.expovariate(scale * highest)
    all_of_them.sort()
    return all_of_them
