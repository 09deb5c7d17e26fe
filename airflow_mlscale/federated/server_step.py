"""From the answers of a round to the next model: believe, combine, follow. Pure; the settings say how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_mlscale.federated import aggregation, model, optimisers, privacy
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
    seen = aggregation.believed(answers, sent, run.aggregation, compare=run.privacy is None)
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


def step(
    run: RunSettings,
    answers: Sequence[model.SiteAnswer],
    sent: Weights,
    memory: Sequence[Any],
    *,
    trained: Sequence[bool],
) -> tuple[list[Any], list[Any]]:
    """The next model and the arrays that the server optimiser remembers.

    Args:
        run: settings.
        answers: of the round, after `believed`.
        sent: the weights that the sites were given.
        memory: arrays that the last step returned; empty at the beginning.
        trained: for each array, whether gradients train it; not looked at unless `needs_trained`.

    Raises:
        ValueError: too few good answers for the rule, or none.
    """
    if run.privacy is None:
        answer = aggregation.combined(answers, run.aggregation)
    else:
        parts = [each.weights for each in answers if each.error is None]
        answer = privacy.combined(run.privacy, parts, sent, trained)
    if run.server_optimiser.plain:
        return answer, []
    moments = optimisers.Moments.from_arrays(run.server_optimiser, memory)
    moved, moments = optimisers.step(run.server_optimiser, sent, answer, moments, trained=trained)
    return moved, moments.to_arrays()
