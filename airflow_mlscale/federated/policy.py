"""The choices of a run, made without clock or I/O: whom to ask, when a round closes, how answers combine, when to stop.

The cohort rule is quorum plus over-selection plus a round deadline (Bonawitz et al., *Towards Federated Learning
at Scale*, MLSys 2019, §4.2), the combination is weighted averaging (McMahan et al., AISTATS 2017).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Any

from airflow_mlscale.federated import model
from airflow_mlscale.federated.settings import RunSettings

PATIENCE = 3.0
"""A round with a quorum waits at most this many times as long as the last round took, …"""
LEAST_PATIENCE_S = 5.0
"""… and at least this long: a dead site costs one such wait, not a whole round timeout."""
SILENT_AFTER = 1
"""Unanswered rounds in a row after which a site no longer counts for what is `enough`; it is still asked."""


@dataclass(frozen=True, kw_only=True)
class RoundPlan:
    """One round, before it is played."""

    number: int
    asked: tuple[str, ...]
    """Sites that get the model."""
    enough: int
    """Answers after which stragglers only get a grace time."""
    quorum: int
    """Answers without which the round does not count."""
    timeout_s: float
    """Seconds after which it closes in any case."""
    patience_s: float = inf
    """Seconds after which it closes if it has its quorum."""
    grace_fraction: float
    """Part of the time to `enough` answers that stragglers get on top."""
    local_epochs: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class SiteRecord:
    """What the controller remembers of a site in this segment."""

    name: str
    unanswered: int = 0
    """Rounds in a row in which it was asked and did not answer."""


def remember(sites: Sequence[SiteRecord], plan: RoundPlan, heard: Sequence[str]) -> list[SiteRecord]:
    """The records after a round in which the sites ``heard`` answered, well or with an error."""
    after = []
    for site in sites:
        missed = site.unanswered + 1 if site.name in plan.asked else site.unanswered
        after.append(SiteRecord(name=site.name, unanswered=0 if site.name in heard else missed))
    return after


def plan_round(
    settings: RunSettings, sites: Sequence[SiteRecord], *, number: int, last_round_s: float | None, left_s: float
) -> RoundPlan:
    """Whom to ask in the next round.

    Without a cohort everybody is asked and ``n / over_selection`` answers are enough; with a cohort K,
    ``K · over_selection`` sites are asked and K answers are enough. Silent sites are asked last and not counted on.

    Args:
        settings: of the run.
        sites: all sites of the segment.
        number: of the round, from 1; with the seed it decides the random choice.
        last_round_s: how long the last round of this segment was open; None if the sites still have to start.
        left_s: seconds to the run's deadline, possibly infinite; a round never lasts longer.
    """
    lively = [site.name for site in sites if site.unanswered < SILENT_AFTER]
    silent = [site.name for site in sites if site.unanswered >= SILENT_AFTER]
    draw = random.Random(f"{settings.seed}/{number}")  # noqa: S311 - a reproducible choice, not a secret
    draw.shuffle(lively)
    draw.shuffle(silent)
    if settings.cohort is None:
        asked = lively + silent
        enough = ceil(len(lively) / settings.over_selection)
    else:
        asked = (lively + silent)[: ceil(settings.cohort * settings.over_selection)]
        enough = min(settings.cohort, sum(name in lively for name in asked))
    timeout_s = settings.round_timeout_s + (settings.start_allowance_s if last_round_s is None else 0.0)
    patience_s = inf if last_round_s is None else max(LEAST_PATIENCE_S, PATIENCE * last_round_s)
    return RoundPlan(
        number=number,
        asked=tuple(sorted(asked)),
        enough=max(enough, settings.min_nodes),
        quorum=settings.min_nodes,
        timeout_s=max(0.0, min(timeout_s, left_s)),
        patience_s=patience_s,
        grace_fraction=settings.grace_fraction,
        local_epochs=settings.local_epochs,
        batch_size=settings.batch_size,
    )


def seconds_to_close(plan: RoundPlan, *, answered_after_s: Sequence[float], failed: int, elapsed_s: float) -> float:
    """How long to keep the round open from now; 0 closes it.

    Args:
        plan: the round.
        answered_after_s: when each good answer came, in seconds from the start of the round.
        failed: sites that answered with an error.
        elapsed_s: seconds since the start of the round.
    """
    if len(answered_after_s) + failed >= len(plan.asked):
        return 0.0
    closes_at = plan.timeout_s
    if len(answered_after_s) >= plan.quorum:
        closes_at = min(closes_at, plan.patience_s)
    if len(answered_after_s) >= plan.enough:
        enough_at = sorted(answered_after_s)[plan.enough - 1]
        closes_at = min(closes_at, enough_at + max(1.0, plan.grace_fraction * enough_at))
    return max(0.0, closes_at - elapsed_s)


def counts(plan: RoundPlan, answers: Sequence[model.SiteAnswer]) -> bool:
    """Whether the good answers make the quorum."""
    return sum(answer.error is None for answer in answers) >= plan.quorum


def combine(answers: Sequence[model.SiteAnswer]) -> list[Any]:
    """Average of the sites' weights, weighted by their samples; arrays in the model's order and types."""
    good = [answer for answer in answers if answer.error is None and answer.samples > 0]
    if not good:
        raise ValueError("no answer with samples to combine")
    total = sum(answer.samples for answer in good)
    layers = zip(*(answer.weights for answer in good), strict=True)
    shares = [answer.samples / total for answer in good]
    return [sum(w * s for w, s in zip(layer, shares, strict=True)).astype(layer[0].dtype) for layer in layers]


@dataclass(frozen=True)
class Verdict:
    """Whether the run ends here."""

    status: model.Status
    reason: str

    @property
    def ends(self) -> bool:
        """Whether no further round is played."""
        return self.status != model.Status.RUNNING


def verdict(settings: RunSettings, state: model.RunState, *, now: float) -> Verdict:
    """Go on, or stop and why. A run that holds its target when a limit comes has reached it."""
    if settings.target.held(state.values):
        return Verdict(model.Status.REACHED, f"{settings.target} held {settings.target.in_a_row} evaluations in a row")
    if settings.deadline_at is not None and now >= settings.deadline_at:
        if not state.rounds:
            return Verdict(model.Status.FAILED, "the deadline passed before the first round was complete")
        return Verdict(model.Status.LIMIT, f"the deadline passed at {state.metric} {state.value:.4f}")
    if len(state.rounds) >= settings.max_rounds:
        return Verdict(
            model.Status.LIMIT, f"max_rounds={settings.max_rounds} reached at {state.metric} {state.value:.4f}"
        )
    if state.failed_rounds >= settings.max_failed_rounds:
        return Verdict(
            model.Status.INTERRUPTED, f"{state.failed_rounds} rounds in a row without {settings.min_nodes} answers"
        )
    return Verdict(model.Status.RUNNING, "")


def with_round(state: model.RunState, target: model.Quality, done: model.Round) -> model.RunState:
    """The state after one more complete round."""
    best = done.number if target.better(done.value, state.best_value) else state.best_round
    return replace(state, rounds=(*state.rounds, done), best_round=best or done.number, failed_rounds=0, reason="")
