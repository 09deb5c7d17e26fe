"""Server optimisers: the combined update as a gradient that the model follows.

Reddi et al., *Adaptive Federated Optimization*, ICLR 2021, algorithm 2. With x the model, Δ the combined update
(answers minus x), η the server's learning rate, m and v the moments, β₁ and β₂ their memories and τ the adaptivity::

    m ← β₁·m + (1 − β₁)·Δ
    v ← v + Δ²                               FedAdagrad
    v ← β₂·v + (1 − β₂)·Δ²                   FedAdam
    v ← v − (1 − β₂)·Δ²·sign(v − Δ²)         FedYogi
    x ← x + η·m / (√v + τ)

m begins at 0, v at τ². FedAvgM (Hsu et al., 2019) is m ← β₁·m + Δ, x ← x + η·m; FedAvg is x ← x + η·Δ.

Weights that are not trained by gradients (moving means and variances, counters) just become what the answers say: an
adaptive step could make a variance negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from airflow_mlscale.federated.combination import ServerOptimiser

Weights = Sequence[Any]


@dataclass(frozen=True)
class Moments:
    """What a server optimiser remembers from round to round: one array of each kind per trained array of the model."""

    first: tuple[Any, ...] = ()
    """The paper's m; empty before the first round and for FedAvg."""
    second: tuple[Any, ...] = ()
    """The paper's v; empty before the first round and for FedAvg and FedAvgM."""

    def to_arrays(self) -> list[Any]:
        """Both kinds in one row, for a checkpoint."""
        return [*self.first, *self.second]

    @classmethod
    def from_arrays(cls, settings: ServerOptimiser, arrays: Sequence[Any]) -> Moments:
        """From a checkpoint that the same optimiser wrote; an empty one is the beginning."""
        if settings.name in ("fedavg", "fedavgm"):
            return cls(first=tuple(arrays))
        return cls(first=tuple(arrays[: len(arrays) // 2]), second=tuple(arrays[len(arrays) // 2 :]))


def step(
    settings: ServerOptimiser, weights: Weights, answer: Weights, moments: Moments, *, trained: Sequence[bool]
) -> tuple[list[Any], Moments]:
    """The next model and what to remember.

    Args:
        settings: of the optimiser.
        weights: the model that the sites were given.
        answer: what their combined answers say it should be.
        moments: from the last round.
        trained: for each array of the model, whether gradients train it.

    Raises:
        ValueError: the moments are of another model.
    """
    chosen = [i for i, yes in enumerate(trained) if yes and np.issubdtype(weights[i].dtype, np.floating)]
    updates = [answer[i] - weights[i] for i in chosen]
    moments = _remember(settings, updates, moments)
    moved = list(answer)
    for i, update, change in zip(chosen, updates, _changes(settings, updates, moments), strict=True):
        moved[i] = (weights[i] + settings.rate * change).astype(update.dtype)
    return moved, moments


def _remember(settings: ServerOptimiser, updates: Sequence[Any], before: Moments) -> Moments:
    if settings.name == "fedavg":
        return Moments()
    old = before.first or tuple(np.zeros_like(update) for update in updates)
    beta = settings.momentum
    fresh = 1.0 if settings.name == "fedavgm" else 1 - beta
    first = tuple(beta * m + fresh * d for m, d in zip(old, updates, strict=True))
    if settings.name == "fedavgm":
        return Moments(first=first)
    start = before.second or tuple(np.full_like(update, settings.adaptivity**2) for update in updates)
    second = tuple(_second(settings, v, np.square(d)) for v, d in zip(start, updates, strict=True))
    return Moments(first=first, second=second)


def _second(settings: ServerOptimiser, v: Any, square: Any) -> Any:
    beta = settings.second_moment
    match settings.name:
        case "fedadagrad":
            return v + square
        case "fedadam":
            return beta * v + (1 - beta) * square
        case _:
            return v - (1 - beta) * square * np.sign(v - square)


def _changes(settings: ServerOptimiser, updates: Sequence[Any], moments: Moments) -> Sequence[Any]:
    if settings.name == "fedavg":
        return updates
    if settings.name == "fedavgm":
        return moments.first
    tau = settings.adaptivity
    return [m / (np.sqrt(v) + tau) for m, v in zip(moments.first, moments.second, strict=True)]
