"""Who is compared on which hosts and loads, and one row per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from airflow_mlscale.control import smoothing
from benchmarks.serving_sim import closed_loop, workload

HOSTS: Mapping[str, tuple[float, int]] = {"8x10": (8.0, 10), "16x30": (16.0, 30), "64x100": (64.0, 100)}
"""Cores and models."""
LOADS = (0.5, 0.75, 0.9, 1.2)
"""Mean work ÷ cores; peaks are higher."""
NOISY = "noisy"
"""Half load, and then the first model at three times its rate: what that does to the others."""


@dataclass(frozen=True)
class Cell:
    """One condition."""

    system: str
    host: str
    shape: str
    load: float

    @property
    def name(self) -> str:
        return f"{self.system}/{self.host}/{self.shape}/{self.load:g}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run."""

    system: str
    host: str
    shape: str
    load: float
    seed: int
    requests: int
    violations_pct: float
    """Answered after the objective, or shed."""
    shed_pct: float
    goodput_per_s: float
    """Answered within the objective."""
    models_on_target: int
    """That kept theirs for 95 % of their requests."""
    models: int
    p50_ratio: float
    """Latency ÷ objective, over all answered requests."""
    p95_ratio: float
    p99_ratio: float
    granted_core_s: float
    """Integral of the guarantees."""
    cap_core_s: float
    """Integral of the ceilings, at most the host's."""
    used_core_s: float
    raised_pct: float | None = None
    """Of a noisy run: percentage points by which the violations of the worst other model rose."""


def cells(only: Sequence[str] = ()) -> list[Cell]:
    """All conditions that match one of the patterns of system/host/shape/load; all of them without patterns."""
    found = [
        Cell(system, size, shape, load)
        for size in HOSTS
        for shape in ("steps", "diurnal", NOISY)
        for load in (LOADS if shape != NOISY else (0.5,))
        for system in closed_loop.systems()
    ]
    return [cell for cell in found if not only or any(fnmatchcase(cell.name, pattern) for pattern in only)]


def row(cell: Cell, seed: int, length_s: float) -> Row:
    """Run one condition."""
    cores, models = HOSTS[cell.host]
    found = workload.profiles(seed, count=models, cores=cores, load=cell.load)
    shape = "steps" if cell.shape == NOISY else cell.shape
    outcomes = closed_loop.simulate(cell.system, found, cores=cores, length_s=length_s, shape=shape, seed=seed)
    raised = None
    if cell.shape == NOISY:
        louder = closed_loop.noisy(found, times=3.0)
        noisy = closed_loop.simulate(cell.system, louder, cores=cores, length_s=length_s, shape=shape, seed=seed)
        raised = max(
            _percent(noisy.tallies[one.spec.name]) - _percent(outcomes.tallies[one.spec.name]) for one in found[1:]
        )
        outcomes = noisy
    return _row(cell, seed, outcomes, raised)


def _percent(tally: closed_loop.Tally) -> float:
    return 100 * tally.violations / max(1, tally.requests)


def _row(cell: Cell, seed: int, outcomes: closed_loop.Outcomes, raised: float | None) -> Row:
    tallies = outcomes.tallies
    requests = sum(tally.requests for tally in tallies.values())
    violations = sum(tally.violations for tally in tallies.values())
    ratios = sorted(each / outcomes.objectives_s[name] for name, tally in tallies.items() for each in tally.latencies_s)
    return Row(
        system=cell.system,
        host=cell.host,
        shape=cell.shape,
        load=cell.load,
        seed=seed,
        requests=requests,
        violations_pct=100 * violations / max(1, requests),
        shed_pct=100 * sum(tally.shed for tally in tallies.values()) / max(1, requests),
        goodput_per_s=(requests - violations) / outcomes.length_s,
        models_on_target=sum(_percent(tally) <= 5 for tally in tallies.values()),
        models=len(tallies),
        p50_ratio=smoothing.percentile(ratios, 50) or 0.0,
        p95_ratio=smoothing.percentile(ratios, 95) or 0.0,
        p99_ratio=smoothing.percentile(ratios, 99) or 0.0,
        granted_core_s=outcomes.granted_core_s,
        cap_core_s=outcomes.cap_core_s,
        used_core_s=outcomes.used_core_s,
        raised_pct=raised,
    )
