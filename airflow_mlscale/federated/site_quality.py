"""The quality of a model where no held-out data is on the server: what the sites measure of it. Pure.

Each site measures the model *that it is sent*, before it trains on it, on data that it never trains on, and tells the
value with its answer. So a round's value belongs to the weights that it began with, and it is those that are kept
beside it, can become the best, and are exported; the weights that a round makes are measured in the next one. The other
way, a task of its own after each round that asks sites to evaluate, would cost every round a second trip and a second
start of the slowest site, and would make a client script of NVFlare's convention, which evaluates the model that it
receives and then trains, train twice. The price of ours is one round at the end of a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from statistics import median

from airflow_mlscale.federated import model
from airflow_mlscale.federated.settings import RunSettings


def fault(run: RunSettings, answer: model.SiteAnswer) -> str | None:
    """Why an answer says nothing of the model's quality where it must; None for a good one or one that is an error.

    A site that tells no value, or one that cannot be, has no part in the round: who measures and who trains are the
    same, so the quorum is one of both.
    """
    if answer.error is not None or not run.measured_by_sites:
        return None
    scale = run.target.scale
    if answer.value is None:
        return f"told no {scale.name} of the model that it was sent; a script tells it by FLModel(metrics=...)"
    if not scale.possible(answer.value):
        return f"told {scale.name} {answer.value!r}, which it cannot be"
    bad = not isinstance(answer.value_samples, int) or answer.value_samples < 0
    return f"told a bad number {answer.value_samples!r} of samples that it measured on" if bad else None


def combined(run: RunSettings, answers: Sequence[model.SiteAnswer]) -> dict[str, float | None]:
    """The target's metric and ``loss`` of the model that was sent, out of a round's good answers.

    The mean of the sites' values, weighted by the samples that they measured on; their median with the robust rules of
    aggregation, which count each site once.
    """
    good = [answer for answer in answers if answer.error is None and answer.value is not None]
    values = {answer.site: answer.value for answer in good if answer.value is not None}
    losses = {each.site: each.value_loss for each in good if each.value_loss is not None and isfinite(each.value_loss)}
    weights = {answer.site: answer.value_samples or answer.samples for answer in good}
    scale, middle = run.target.scale, _median if run.aggregation.rule != "mean" else _mean
    value = min(max(middle(values, weights), scale.least), scale.most)
    return {"loss": middle(losses, weights) if losses else None, scale.name: value}


def _mean(values: Mapping[str, float], weights: Mapping[str, int]) -> float:
    total = sum(weights[site] for site in values)
    return sum(value * weights[site] for site, value in values.items()) / total


def _median(values: Mapping[str, float], weights: Mapping[str, int]) -> float:
    return float(median(values.values()))
