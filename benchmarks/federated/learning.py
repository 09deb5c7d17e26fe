"""Real data on simulated sites, and a small network in NumPy: fast enough for thousands of federated runs."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airflow_mlscale.federated import ports, simulation
from benchmarks.federated import data

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Learner:
    """A network with one hidden layer, trained by plain SGD: `simulation.Trainer` and `ports.Evaluator`."""

    federation: data.Federation
    seed: int
    hidden: int = 32
    rate: float = 0.1
    proximal: float = 0.0
    """µ of FedProx's term µ/2·‖w − w_t‖²."""
    _held_out: tuple[Array, NDArray[np.int64]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_held_out", self.federation.held_out)

    def names(self) -> Sequence[str]:
        return list(self.federation.sites)

    def samples(self, site: str) -> int:
        return len(self.federation.sites[site][1])

    def initial_weights(self) -> list[Array]:
        """Glorot-uniform, as Keras does it."""
        draw = np.random.default_rng([self.seed, 1])
        inputs, classes = self._held_out[0].shape[1], self.federation.classes
        weights: list[Array] = []
        for rows, columns in ((inputs, self.hidden), (self.hidden, classes)):
            bound = (6 / (rows + columns)) ** 0.5
            weights += [draw.uniform(-bound, bound, (rows, columns)).astype("f4"), np.zeros(columns, "f4")]
        return weights

    def train(
        self, site: str, weights: Sequence[Array], *, epochs: int, batch_size: int, number: int
    ) -> simulation.Trained:
        """Weights after so many epochs, the mean loss of the last, and the RMS loss of the first epoch's samples."""
        x, y = self.federation.sites[site]
        draw = np.random.default_rng([self.seed, number, zlib.crc32(site.encode())])
        w1, b1, w2, b2 = (w.copy() for w in weights)
        utility = last = 0.0
        for epoch in range(epochs):
            losses = 0.0
            squares = 0.0
            order = draw.permutation(len(y))
            for begin in range(0, len(y), batch_size):
                rows = order[begin : begin + batch_size]
                xs, ys = x[rows], y[rows]
                hidden = xs @ w1 + b1
                active = np.maximum(hidden, 0)
                scores = active @ w2 + b2
                scores -= scores.max(1, keepdims=True)
                np.exp(scores, out=scores)
                scores /= scores.sum(1, keepdims=True)
                each = -np.log(np.maximum(scores[np.arange(len(ys)), ys], 1e-12))
                losses += float(each.sum())
                squares += float((each * each).sum())
                scores[np.arange(len(ys)), ys] -= 1
                scores /= len(ys)
                back = scores @ w2.T
                back[hidden <= 0] = 0
                pulls = [(w, s) for w, s in zip((w1, b1, w2, b2), weights, strict=True)] if self.proximal else []
                for w, sent in pulls:
                    w -= self.rate * self.proximal * (w - sent)
                w2 -= self.rate * (active.T @ scores)
                b2 -= self.rate * scores.sum(0)
                w1 -= self.rate * (xs.T @ back)
                b1 -= self.rate * back.sum(0)
            last = losses / len(y)
            if epoch == 0:
                utility = (squares / len(y)) ** 0.5
        return simulation.Trained([w1, b1, w2, b2], samples=len(y), loss=last, first_loss=utility)

    def evaluate(self, weights: Sequence[Array]) -> Mapping[str, float]:
        """Accuracy and loss on the held-out data."""
        x, y = self._held_out
        w1, b1, w2, b2 = weights
        scores = np.maximum(x @ w1 + b1, 0) @ w2 + b2
        scores -= scores.max(1, keepdims=True)
        chosen = scores[np.arange(len(y)), y] - np.log(np.exp(scores).sum(1))
        return {"accuracy": float((scores.argmax(1) == y).mean()), "loss": float(-chosen.mean())}

    def trained(self) -> Sequence[bool]:
        return [True] * 4

    def export(self, weights: ports.Weights, directory: Path) -> ports.Exported:
        return ports.Exported(keras_model="", saved_model="")
