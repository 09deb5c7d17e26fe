"""Differential privacy of sites: clipping and Gaussian noise. What it costs is in `account`.

The mechanism is DP-FedAvg with a fixed clip (McMahan et al., *Learning Differentially Private Recurrent Language
Models*, ICLR 2018) without its sampling: the controller chooses sites by how fast and reliable they are, so the
amplification that a random choice would give cannot be claimed. Each site counts the same, whatever its samples.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import pi
from typing import Any

import numpy as np

from airflow_mlscale.federated.combination import Privacy

Weights = Sequence[Any]
BLOCK = 1 << 16
"""Numbers that are drawn at once: a bound on memory, not on how many there may be."""


def update_of(weights: Weights, sent: Weights, trained: Sequence[bool]) -> list[Any]:
    """What a site changed, array by array in double precision; only arrays of real numbers that gradients train.

    Everything else that a site sends (moving means, counters) is not used under privacy.
    """
    return [
        np.asarray(weight, np.float64) - given if yes and np.issubdtype(given.dtype, np.floating) else None
        for weight, given, yes in zip(weights, sent, trained, strict=True)
    ]


def norm(update: Sequence[Any]) -> float:
    """L2 norm over all arrays of an update."""
    return float(np.sqrt(sum(float(np.square(part).sum()) for part in update if part is not None)))


def clipped(update: Sequence[Any], clip_norm: float) -> list[Any]:
    """The update, shortened to ``clip_norm`` if it is longer: Δ·min(1, S/‖Δ‖)."""
    long = norm(update)
    scale = 1.0 if long <= clip_norm else clip_norm / long
    return [None if part is None else part * scale for part in update]


def noisy(update: Sequence[Any], deviation: float) -> list[Any]:
    """The update with independent Gaussian noise on every coordinate."""
    return [None if part is None else part + deviation * gaussian(part.shape) for part in update]


def applied(sent: Weights, update: Sequence[Any], share: float = 1.0) -> list[Any]:
    """The weights moved by a share of an update, in their own types."""
    return [
        given if part is None else (given + share * part).astype(given.dtype)
        for given, part in zip(sent, update, strict=True)
    ]


def leaving(settings: Privacy, weights: Weights, sent: Weights, trained: Sequence[bool], *, quorum: int) -> list[Any]:
    """The weights that a site may send: clipped, and with its part of the noise where sites add it."""
    update = clipped(update_of(weights, sent, trained), settings.clip_norm)
    deviation = settings.site_noise(quorum)
    return applied(sent, noisy(update, deviation) if deviation else update)


def combined(settings: Privacy, parts: Sequence[Weights], sent: Weights, trained: Sequence[bool]) -> list[Any]:
    """The sites' weights as one: sent + (Σ clipped updates + noise) / n.

    A site is not trusted with its own clipping where the server can check it. Where sites add noise it cannot: noise is
    longer than any clip; `longest` bounds those.
    """
    updates = [update_of(part, sent, trained) for part in parts]
    if settings.noise_at == "server":
        updates = [clipped(update, settings.clip_norm) for update in updates]
    total = [None if layer[0] is None else sum(layer) for layer in zip(*updates, strict=True)]
    if settings.noise_at == "server":
        total = noisy(total, settings.noise_multiplier * settings.clip_norm)
    return applied(sent, total, 1 / len(parts))


def longest(settings: Privacy, *, quorum: int, coordinates: int) -> float:
    """The longest update that an honest site sends, but for one in 10⁹.

    The norm of n standard Gaussians exceeds √n + 6.5 with a probability below e^(−6.5²/2).
    """
    return settings.clip_norm + settings.site_noise(quorum) * (float(np.sqrt(coordinates)) + 6.5)


def gaussian(shape: tuple[int, ...]) -> Any:
    """Standard Gaussian numbers out of the operating system's cryptographic generator.

    A seeded generator would let whoever guesses the seed subtract the noise. Each number is the sum of four, halved, so
    that the gaps between floating-point numbers do not give the sum away (Holohan & Braghin, *Secure Random Sampling
    in Differential Privacy*, ESORICS 2021).
    """
    drawn = np.empty(int(np.prod(shape, dtype=np.int64)))
    for start in range(0, len(drawn), BLOCK):
        part = drawn[start : start + BLOCK]
        bits = np.frombuffer(os.urandom(8 * 8 * len(part)), np.uint64).reshape(8, len(part))
        uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53  # in (0, 1)
        radius, angle = np.sqrt(-2 * np.log(uniform[:4])), 2 * pi * uniform[4:]
        part[:] = (radius * np.cos(angle)).sum(axis=0) / 2  # Box and Muller's numbers
    return drawn.reshape(shape)
