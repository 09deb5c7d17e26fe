"""When requests arrive: the same times for every system of a seed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from benchmarks.serving.models import Served
from benchmarks.serving_sim import workload as shapes

SHAPES = ("steps", "diurnal", "steady")
NEIGHBOUR = "efficientnet"
"""Who misbehaves."""
NEIGHBOUR_TIMES = 3.0


def arrivals(
    served: Sequence[Served], *, shape: str, load: float, seed: int, lead_s: float, length_s: float, times: float = 1.0
) -> list[tuple[float, int]]:
    """All requests in order, as (seconds, index of the model).

    Poisson around a rate that `serving_sim.workload.SHAPES` draws for each model: ``steps`` of level every 15 s with
    bursts, ``diurnal`` or ``steady``. Each model's mean over what is measured is ``load`` times its rate; the lead
    before that goes by the same shape. With ``times`` the neighbour alone has so many times its rate, and the
    requests of the others stay what they were.
    """
    found: list[tuple[float, int]] = []
    for index, one in enumerate(served):
        rng = Random(f"serving/{seed}/{one.model.name}/{shape}")
        rate = shapes.SHAPES[shape](rng, length_s)
        grid = [rate(0.25 * step) for step in range(int(4 * length_s) + 1)]
        factor = times if one.model.name == NEIGHBOUR else 1.0
        scale = factor * load * one.rate_per_s * len(grid) / sum(grid)
        highest = max(grid)
        t = -lead_s + rng.expovariate(scale * highest)
        while t < length_s:  # thinning (Lewis & Shedler, 1979)
            if rng.random() * highest < rate(max(0.0, t)):
                found.append((t + lead_s, index))
            t += rng.expovariate(scale * highest)
    return sorted(found)
