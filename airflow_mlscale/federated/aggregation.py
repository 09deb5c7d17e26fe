"""Which answers of a round are believed, and how those become one: pure functions on arrays.

Belongs here: checks that keep one bad site from spoiling the model, and the rules of `combination.RULES`. Does not
belong here: how far the model then follows (`optimisers`), and noise (`privacy`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from airflow_mlscale.federated import model
from airflow_mlscale.federated.combination import Aggregation

Weights = Sequence[Any]
LEAST_TO_JUDGE = 3
"""Updates without which none can be called longer than the others."""


def believed(
    answers: Sequence[model.SiteAnswer], sent: Weights, settings: Aggregation, *, compare: bool = True
) -> list[model.SiteAnswer]:
    """The answers, with those that must not be combined turned into errors that say why.

    Args:
        answers: good ones and errors of one round.
        sent: the weights that the sites were given.
        settings: the longest update that is believed.
        compare: whether updates are judged by each other's length. What one site sends then decides about another
            one, which differential privacy does not allow.
    """
    seen = [refused(answer, fault(answer, sent)) for answer in answers]
    good = [answer for answer in seen if answer.error is None]
    if not compare or settings.max_norm_ratio is None or len(good) < LEAST_TO_JUDGE:
        return seen
    lengths = {answer.site: length(answer.weights, sent) for answer in good}
    middle = float(np.median(list(lengths.values())))
    if middle == 0:
        return seen
    ratios = {site: long / middle for site, long in lengths.items()}
    return [
        refused(answer, f"sent an update {ratios[answer.site]:.0f} times as long as the round's median one")
        if ratios.get(answer.site, 0.0) > settings.max_norm_ratio
        else answer
        for answer in seen
    ]


def fault(answer: model.SiteAnswer, sent: Weights) -> str | None:
    """Why an answer cannot be combined whatever the others say; None for a good one or one that is an error."""
    if answer.error is not None:
        return None
    if not isinstance(answer.samples, int) or isinstance(answer.samples, bool) or answer.samples < 1:
        return f"sent a bad sample count {answer.samples!r}"
    if [getattr(weight, "shape", None) for weight in answer.weights] != [weight.shape for weight in sent]:
        return "sent weights of other shapes than it was given"
    for weight, given in zip(answer.weights, sent, strict=True):
        if not np.can_cast(weight.dtype, given.dtype, casting="same_kind"):
            return f"sent weights of type {weight.dtype} for {given.dtype}"
        if not np.isfinite(weight).all():
            return "sent weights that are not finite"
    return None


def refused(answer: model.SiteAnswer, why: str | None) -> model.SiteAnswer:
    """The answer as an error, if there is a reason to; an error has no weights."""
    return answer if why is None else replace(answer, error=why, weights=())


def length(weights: Weights, sent: Weights) -> float:
    """L2 norm of an update over all arrays of real numbers."""
    return float(np.sqrt(_squared(weights, sent)))


def _squared(one: Weights, other: Weights) -> float:
    """Squared distance over all arrays of real numbers, in double precision."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if np.issubdtype(b.dtype, np.floating)]
    return sum(float(np.square(np.subtract(a, b, dtype=np.float64)).sum()) for a, b in pairs)


def combined(answers: Sequence[model.SiteAnswer], settings: Aggregation) -> list[Any]:
    """One set of weights out of the good answers; arrays in the model's order and types.

    The order of the answers makes no difference.

    Raises:
        ValueError: fewer good answers than the rule needs (`Aggregation.least_answers`).
    """
    good = sorted((answer for answer in answers if answer.error is None), key=lambda answer: answer.site)
    if len(good) < settings.least_answers:
        raise ValueError(f"{settings.rule} needs {settings.least_answers} answers, there are {len(good)}")
    if settings.rule == "mean":
        total = sum(answer.samples for answer in good)
        return mean([answer.weights for answer in good], [answer.samples / total for answer in good])
    return _ROBUST[settings.rule]([answer.weights for answer in good], settings.tolerated)


def mean(parts: Sequence[Weights], shares: Sequence[float]) -> list[Any]:
    """Weighted average, array by array; the shares sum to 1."""
    return [
        _as(sum(np.multiply(array, share, dtype=np.float64) for array, share in zip(layer, shares, strict=True)), layer)
        for layer in zip(*parts, strict=True)
    ]


def trimmed_mean(parts: Sequence[Weights], tolerated: int) -> list[Any]:
    """Average of each coordinate without its ``tolerated`` least and greatest values.

    Yin et al., *Byzantine-Robust Distributed Learning*, ICML 2018, definition 2; n > 2·tolerated.
    """
    last = len(parts) - tolerated
    return [
        _as(np.partition(stacked, (tolerated, last - 1), axis=0)[tolerated:last].mean(axis=0), layer)
        for layer, stacked in _stacked(parts)
    ]


def median(parts: Sequence[Weights], tolerated: int = 0) -> list[Any]:
    """Median of each coordinate (Yin et al., ICML 2018, definition 1), whatever number is tolerated."""
    return [_as(np.median(stacked, axis=0), layer) for layer, stacked in _stacked(parts)]


def krum(parts: Sequence[Weights], tolerated: int) -> list[Any]:
    """The part that is nearest to its n − f − 2 nearest others (Blanchard et al., NeurIPS 2017); n ≥ 2f + 3."""
    return list(parts[int(np.argmin(krum_scores(parts, tolerated)))])


def multi_krum(parts: Sequence[Weights], tolerated: int) -> list[Any]:
    """Average of the n − f − 2 parts with the best Krum scores (Damaskinos et al., MLSys 2019, for n ≥ 2f + 3)."""
    kept = np.argsort(krum_scores(parts, tolerated), kind="stable")[: len(parts) - tolerated - 2]
    return mean([parts[i] for i in kept], [1 / len(kept)] * len(kept))


def krum_scores(parts: Sequence[Weights], tolerated: int) -> Any:
    """Sum of each part's squared distances to its n − f − 2 nearest others; less is better."""
    apart = np.zeros((len(parts), len(parts)))
    for i, one in enumerate(parts):
        for j, other in enumerate(parts[:i]):
            apart[i, j] = apart[j, i] = _squared(one, other)
    nearest = np.sort(apart, axis=1)[:, 1 : len(parts) - tolerated - 1]  # the first is the part itself
    return nearest.sum(axis=1)


_ROBUST: Mapping[str, Callable[[Sequence[Weights], int], list[Any]]] = {
    "trimmed_mean": trimmed_mean,
    "median": median,
    "krum": krum,
    "multi_krum": multi_krum,
}


def _stacked(parts: Sequence[Weights]) -> list[tuple[Any, Any]]:
    return [(layer, np.stack([np.asarray(array, np.float64) for array in layer])) for layer in zip(*parts, strict=True)]


def _as(values: Any, layer: Sequence[Any]) -> Any:
    """In the type of a layer's arrays; whole numbers are rounded, not cut off."""
    kind = layer[0].dtype
    return np.asarray(values if np.issubdtype(kind, np.floating) else np.rint(values)).astype(kind)
