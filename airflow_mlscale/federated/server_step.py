"""From the answers of a round to the next model: believe, combine, follow. Pure; the settings say how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from airflow_mlscale.federated import aggregation, model, optimisers, privacy, site_quality
from airflow_mlscale.federated.settings import RunSettings

Weights = Sequence[Any]


def needs_trained(run: RunSettings) -> bool:
    """Whether it matters which arrays of the model gradients train."""
    return run.privacy is not None or not run.server_optimiser.plain


def believed(
    run: RunSettings, answers: Sequence[model.SiteAnswer], sent: Weights, *, trained: Sequence[bool]
) -> list[model.SiteAnswer]:
    """The answers, with those that must not be combined turned into errors that say why.

    Under privacy no site is judged by what others sent: that would let its data decide about theirs.
    """
    told = [aggregation.refused(answer, site_quality.fault(run, answer)) for answer in answers]
    seen = aggregation.believed(told, sent, run.aggregation, compare=run.privacy is None)
    if run.privacy is None or run.privacy.noise_at != "sites":
        return seen
    coordinates = sum(given.size for given, yes in zip(sent, trained, strict=True) if yes)
    most = privacy.longest(run.privacy, quorum=run.min_nodes, coordinates=coordinates)

    def too_long(answer: model.SiteAnswer) -> str | None:
        if answer.error is not None:
            return None
        long = privacy.norm(privacy.update_of(answer.weights, sent, trained))
        return f"sent an update of length {long:.3g}, clip and noise allow {most:.3g}" if long > most else None

    return [aggregation.refused(answer, too_long(answer)) for answer in seen]


def to_send(run: RunSettings, kept: Weights, memory: Sequence[Any]) -> Weights:
    """The weights that the sites get next: those kept, or where an average is kept, the last ones of the average."""
    return list(memory)[-len(kept) :] if run.server_optimiser.averaging and memory else kept


def caught_up(answer: model.SiteAnswer, was_sent: Weights, sent: Weights, *, rounds_late: int) -> model.SiteAnswer:
    """A late answer as one to this round: its update, made smaller by √(1 + rounds late), on this round's weights.

    Nguyen et al., *Federated Learning with Buffered Asynchronous Aggregation*, AISTATS 2022, weigh staleness so.
    """
    share = (1 + rounds_late) ** -0.5
    moved = [
        (now + share * (new - old)).astype(now.dtype) if np.issubdtype(now.dtype, np.floating) else now
        for new, old, now in zip(answer.weights, was_sent, sent, strict=True)
    ]
    return replace(answer, weights=moved)


def step(
    run: RunSettings,
    answers: Sequence[model.SiteAnswer],
    kept: Weights,
    memory: Sequence[Any],
    *,
    trained: Sequence[bool],
) -> tuple[list[Any], list[Any]]:
    """The next model to keep and the arrays that the server remembers for the next step.

    Args:
        run: settings.
        answers: of the round, after `believed`.
        kept: the model that the last step returned; the sites were given `to_send` of it.
        memory: arrays that the last step returned; empty at the beginning.
        trained: for each array, whether gradients train it; not looked at unless `needs_trained`.

    Raises:
        ValueError: too few good answers for the rule, or none.
    """
    sent = to_send(run, kept, memory)
    if run.privacy is None:
        answer = aggregation.combined(answers, run.aggregation)
    else:
        parts = [each.weights for each in answers if each.error is None]
        answer = privacy.combined(run.privacy, parts, sent, trained)
    optimiser = run.server_optimiser
    if optimiser.plain:
        return answer, []
    ours = len(memory) - len(kept) if optimiser.averaging and memory else len(memory)
    moments = optimisers.Moments.from_arrays(optimiser, memory[:ours])
    moved, moments = optimisers.step(optimiser, sent, answer, moments, trained=trained)
    if not optimiser.averaging:
        return moved, moments.to_arrays()
    average = _averaged(optimiser.averaging, kept, moved) if memory else list(moved)
    return average, [*moments.to_arrays(), *moved]


def _averaged(share: float, kept: Weights, moved: Weights) -> list[Any]:
    """Real numbers are averaged, counters just move on."""
    return [
        (share * old + (1 - share) * new).astype(new.dtype) if np.issubdtype(new.dtype, np.floating) else new
        for old, new in zip(kept, moved, strict=True)
    ]
