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
        wanted = np.eye(self.federation.classes, dtype="f4")[y]
        draw = np.random.default_rng([self.seed, number, zlib.crc32(site.encode())])
        net = [w.copy() for w in weights]
        first = last = np.zeros(0)
        for epoch in range(epochs):
            order = draw.permutation(len(y))
            seen = self._epoch(net, x[order], wanted[order], batch_size, weights)
            first, last = (seen, seen) if epoch == 0 else (first, seen)
        first_loss = float(np.sqrt(np.mean(np.square(first))))
        return simulation.Trained(net, samples=len(y), loss=float(np.mean(last)), first_loss=first_loss)

    def _epoch(
        self, net: list[Array], x: Array, wanted: Array, batch_size: int, sent: Sequence[Array]
    ) -> NDArray[np.float64]:
        """One pass over shuffled samples, in place; returns each sample's loss before its step."""
        w1, b1, w2, b2 = net
        right = np.empty(len(x), "f4")
        for begin in range(0, len(x), batch_size):
            part = slice(begin, begin + batch_size)
            xs, ys = x[part], wanted[part]
            hidden = xs @ w1
            hidden += b1
            np.maximum(hidden, 0, out=hidden)
            scores = hidden @ w2
            scores += b2
            scores -= scores.max(1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(1, keepdims=True)
            np.einsum("ij,ij->i", scores, ys, out=right[part])
            scores -= ys
            scores *= self.rate / len(xs)
            back = scores @ w2.T
            back *= hidden > 0
            if self.proximal:
                for w, was in zip(net, sent, strict=True):
                    w -= self.rate * self.proximal * (w - was)
            w2 -= hidden.T @ scores
            b2 -= scores.sum(0)
            w1 -= xs.T @ back
            b1 -= back.sum(0)
        return -np.log(np.maximum(right, 1e-12))

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
