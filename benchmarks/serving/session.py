"""A session: the machine's capacity first, from which rates and objectives follow, then the race, interleaved."""

from __future__ import annotations

import random
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from airflow_mlscale import errors
from benchmarks.serving import models, results, setup, systems, trial, workload
from benchmarks.serving.results import Key

AROUND_S, AROUND_RAY_S = 14.0, 32.0
"""To start a system with its models and to end it, for estimates."""
SETTLE_S = 1.0
"""At the beginning of each measurement of the capacity, before anything counts."""
BESIDE = "steady"
"""Shape of the load beside a noisy neighbour, and of no other."""
NEIGHBOUR_LOAD = 0.6
"""Promises for that fit the host; at three times its rate the neighbour, 0.3 of the load, takes the whole to what
saturates the machine in a closed loop."""
PROMISED_FACTOR = 1.25
"""Beside a noisy neighbour ours promise each model so many times the cores that its own rate takes."""
PROMISED_PART = 0.85
"""Of the host's cores, at most, that all promises take."""

SHOWN = Key("ours_reserve", "steps", 0.9, 1)
"""The run whose journal is kept, for a picture."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a session covers.

    Raises:
        InvalidInputError: an unknown model, system or shape, or a number out of its range.
    """

    models: Sequence[str] = tuple(models.MODELS)
    systems: Sequence[str] = tuple(systems.SYSTEMS)
    shapes: Sequence[str] = ("steps", "diurnal")
    loads: Sequence[float] = (0.5, 0.9, 1.2)
    seeds: int = 3
    neighbours: Sequence[str] = ("sharing", "ours_work_conserving", "ours_reserve")
    """Systems that are run beside a noisy neighbour too."""
    lead: float = 10.0
    """Seconds of load before anything is measured."""
    length: float = 60.0
    """Seconds that are measured."""
    capacity: float = 6.0
    """Seconds of each of the measurements before the race."""

    def __post_init__(self) -> None:
        known = {
            "models": tuple(models.MODELS),
            "systems": tuple(systems.SYSTEMS),
            "neighbours": tuple(systems.SYSTEMS),
            "shapes": workload.SHAPES,
        }
        for field, names in known.items():
            for name in getattr(self, field):
                if name not in names:
                    raise errors.InvalidInputError(field, name, f"choose from {', '.join(names)}")
        for load in self.loads:
            if not 0.01 <= load <= 10:
                raise errors.InvalidInputError("loads", load, "must be between 0.01 and 10")
        for field, low, high in (("seeds", 0, 1000), ("lead", 0, 600), ("length", 1, 86400), ("capacity", 0.5, 60)):
            if not low <= getattr(self, field) <= high:
                raise errors.InvalidInputError(field, getattr(self, field), f"must be between {low} and {high}")


FULL = Scope()
QUICK = Scope(
    systems=(
        *("static", "sharing", "rules", "ct", "hpa", "ray_serve"),
        *("ours_work_conserving", "ours_reserve"),
    ),
    shapes=("steps",),
    seeds=1,
    neighbours=("ours_work_conserving",),
    lead=5.0,
    length=18.0,
    capacity=2.5,
)
SMOKE = Scope(
    models=("mobilenet", "flight_delay"),
    systems=("static", "ours_reserve"),
    shapes=("steps",),
    loads=(0.5,),
    seeds=1,
    neighbours=(),
    lead=1.0,
    length=4.0,
    capacity=1.0,
)


def race(scope: Scope) -> Iterator[Key]:
    """All runs: the same arrivals for all systems one after the other, in an order shuffled each time."""
    for seed in range(1, scope.seeds + 1):
        rng = random.Random(seed)
        for shape in scope.shapes:
            for load in scope.loads:
                block = [Key(name, shape, load, seed) for name in scope.systems]
                yield from rng.sample(block, len(block))
        times = (1.0, workload.NEIGHBOUR_TIMES)
        beside = [Key(name, BESIDE, NEIGHBOUR_LOAD, seed, each) for name in scope.neighbours for each in times]
        yield from rng.sample(beside, len(beside))


def promised(
    served: Sequence[models.Served], alone_s: Mapping[str, float], *, load: float, host_cores: float
) -> list[models.Served]:
    """Guarantees for the rates that are agreed on, whatever rates come.

    Args:
        served: models with their rates at load 1.
        alone_s: by model, seconds of a request that has a core to itself.
        load: that is agreed on.
        host_cores: that all guarantees must fit, with room for the gateway.
    """
    takes = [load * one.rate_per_s * alone_s[one.model.name] for one in served]
    factor = min(PROMISED_FACTOR, PROMISED_PART * host_cores / sum(takes))
    return [replace(one, min_cores=round(factor * cores, 3)) for one, cores in zip(served, takes, strict=True)]


class Session:
    """Runs what of a scope is not in the results yet."""

    def __init__(self, scope: Scope, found: results.Results, *, home: Path) -> None:
        """Go on with ``found``; what the runs leave is in ``home`` until they have ended well."""
        self.scope = scope
        self.results = found
        self.home = home

    def prepare(self) -> Iterator[str]:
        """Models, environments and the capacity, as far as they are missing; a line for each.

        Raises:
            TransientError: a model could not be made, or the capacity not be measured.
        """
        setup.models(self.scope.models)
        if "ray_serve" in (*self.scope.systems, *self.scope.neighbours):
            try:
                setup.rival("ray")
            except errors.TransientError as exc:  # its runs will fail and say so; the others go on
                yield str(exc)
        if not self.results.capacity:
            self.results.capacity = self._capacity()
            self.results.save()
        found = self.results.capacity
        for name, one in found["models"].items():
            yield (
                f"{name}: {one['alone_ms']:.1f} ms alone, {one['alone_per_s']:.1f}/s at most; objective "
                f"{one['objective_ms']:.0f} ms, {one['rate_per_s']:.2f}/s at load 1"
            )
        yield f"all together: {found['requests_per_s']:.1f} requests/s saturate the machine"

    def left(self) -> list[Key]:
        """Runs that are not in the results."""
        return [key for key in race(self.scope) if not self.results.has(key)]

    def left_s(self) -> float:
        around = sum(AROUND_RAY_S if key.system == "ray_serve" else AROUND_S for key in self.left())
        return around + len(self.left()) * (self.scope.lead + self.scope.length)

    def go(self) -> Iterator[str]:
        """Run what is left; a line for each run."""
        for number, key in enumerate(self.left()):
            folder = self.home / f"run-{number}-{key.system}"
            shutil.rmtree(folder, ignore_errors=True)
            name = f"{key.system} {key.shape} × {key.load:g}, seed {key.seed}"
            name += f", neighbour × {key.neighbour_times:g}" if key.neighbour_times != 1 else ""
            try:
                outcome = self._run(key, folder)
            except (errors.MlscaleError, httpx.HTTPError) as exc:  # one run that fails must not end the session
                self.results.add(key, None, str(exc))
                yield f"{name}: {exc}"
            else:
                self.results.add(key, outcome)
                if key == SHOWN:
                    shutil.copy(folder / systems.JOURNAL, self.results.journal)
                shutil.rmtree(folder)
                yield (
                    f"{name}: {outcome.violations_pct:.2f} % of {outcome.requests} violated; core-s granted "
                    f"{outcome.granted_core_s:.1f}, caps {outcome.cap_core_s:.1f}, used {outcome.used_core_s:.1f}"
                )
            self.results.save()

    def _run(self, key: Key, folder: Path) -> trial.Outcome:
        served = self.results.served()
        arrivals = workload.arrivals(
            served,
            shape=key.shape,
            load=key.load,
            seed=key.seed,
            lead_s=self.scope.lead,
            length_s=self.scope.length,
            times=key.neighbour_times,
        )
        system = systems.SYSTEMS[key.system]
        if system.ours and key.shape == BESIDE:
            measured = self.results.capacity["models"]
            alone_s = {name: one["alone_ms"] / 1000 for name, one in measured.items()}
            served = promised(served, alone_s, load=key.load, host_cores=psutil.cpu_count() or 1)
        return trial.run(system, served, arrivals, folder, lead_s=self.scope.lead, length_s=self.scope.length)

    def _capacity(self) -> dict[str, Any]:
        """Each model alone, with one client and with many, then all in the mix that the race will have."""
        chosen = [models.MODELS[name] for name in self.scope.models]
        unbound = [models.Served(model=one, objective_ms=1000.0, rate_per_s=0.0) for one in chosen]
        folder = self.home / "capacity"
        shutil.rmtree(folder, ignore_errors=True)
        with systems.running(systems.PLAIN, unbound, folder) as found:

            def throughput(clients: int, weights: Sequence[float]) -> tuple[float, list[float]]:
                end_s = SETTLE_S + self.scope.capacity
                report = trial.closed(
                    found.port, found.targets, folder, clients=clients, seconds=end_s, weights=weights
                )
                latencies = trial.answered(report, after_s=SETTLE_S, before_s=end_s)
                if not latencies:
                    raise errors.TransientError("no request was answered while the capacity was measured")
                return len(latencies) / self.scope.capacity, latencies

            alone = {one.name: _only(index, len(chosen)) for index, one in enumerate(chosen)}
            alone_s = {name: statistics.median(throughput(1, weights)[1]) for name, weights in alone.items()}
            alone_per_s = {name: throughput(8, weights)[0] for name, weights in alone.items()}
            whole = sum(one.part for one in chosen)
            mix = {one.name: one.part / whole * alone_per_s[one.name] for one in chosen}
            # Rates at which each model alone would keep its part busy; together they may fit less well, or better.
            reached, _ = throughput(16, list(mix.values()))
        shutil.rmtree(folder)
        scale = reached / sum(mix.values())
        by_model = {
            one.name: {
                "alone_ms": round(1000 * alone_s[one.name], 3),
                "alone_per_s": round(alone_per_s[one.name], 3),
                "rate_per_s": round(scale * mix[one.name], 3),
                "objective_ms": models.objective_ms(one, alone_s[one.name]),
            }
            for one in chosen
        }
        return {"requests_per_s": round(reached, 3), "models": by_model}

    def described(self) -> dict[str, Any]:
        return asdict(self.scope)


def joined(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Two scopes of one session: everything that either has asked for; what is no list is the later one's."""
    return {
        name: list(dict.fromkeys([*earlier.get(name, ()), *value])) if isinstance(value, list | tuple) else value
        for name, value in later.items()
    }


def _only(index: int, count: int) -> list[float]:
    return [float(index == each) for each in range(count)]
