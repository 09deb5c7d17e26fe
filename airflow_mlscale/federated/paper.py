"""The published self-adaptive policies: only the local epochs are controlled, all sites of the cohort are waited for.

Baresi, Quattrocchi, Rasi, *Federated Machine Learning as a Self-Adaptive Problem*, SEAMS 2021. A line through the
last two points (cumulative epochs, accuracy) says how many epochs bring the accuracy to the next set-point. The
set-point rises from the first accuracy to the target with the share of the limit that is used: linearly or
quadratically (fast at first), in rounds or in network traffic.

Kept as published, with its known behaviour: a dip of the accuracy asks for one epoch, two equal accuracies for the
most there can be (1024 in the paper, `RunSettings.max_local_epochs` here), and a slow site holds everybody up.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, inf

from airflow_mlscale.federated import model, policy, static
from airflow_mlscale.federated.settings import RunSettings

_ROUNDING = 1e-6
Shape = Callable[[float], float]
"""Share of the limit that is used → share of the way to the target, both from 0 to 1."""


def linear(share: float) -> float:
    """Equal steps."""
    return share


def quadratic(share: float) -> float:
    """Large steps first: 1 − (1 − u)²."""
    return 1 - (1 - share) ** 2


def rounds_used(run: RunSettings, state: model.RunState) -> float:
    """Share of `max_rounds` that is used once the next round is done."""
    return (len(state.rounds) + 1) / run.max_rounds


def network_used(run: RunSettings, state: model.RunState) -> float:
    """Share of the budget of bytes that is used once the next round is done; of the rounds where there is none."""
    most = run.budget.gigabytes
    if most is None or not state.rounds:
        return rounds_used(run, state)
    return (state.gigabytes + state.gigabytes / len(state.rounds)) / most


def controlled(shape: Shape, used: Callable[[RunSettings, model.RunState], float]) -> policy.Policy:
    """One of the paper's policies."""

    def plan(run: RunSettings, seen: policy.Seen) -> policy.RoundPlan:
        names = [site.name for site in seen.sites]
        static.draw(run, seen).shuffle(names)
        asked = names[: run.cohort or len(names)]
        epochs = next_epochs(run, seen.state, shape(min(1.0, used(run, seen.state))))
        return policy.plan(
            run, seen, dict.fromkeys(asked, epochs), enough=len(asked), patience_s=inf, reason=f"{epochs} epochs"
        )

    return plan


def next_epochs(run: RunSettings, state: model.RunState, share: float) -> int:
    """Epochs that the line through the last two rounds gives for the set-point at ``share`` of the way."""
    first = run.local_epochs or 1
    if len(state.rounds) < 2:
        return first
    before, last = state.rounds[-2:]
    done = max(1, max(last.epochs.values(), default=first))
    gain = (last.value - before.value) * (1 if run.target.higher_is_better else -1)
    wanted = state.rounds[0].value + (run.target.value - state.rounds[0].value) * share
    lacking = (wanted - last.value) * (1 if run.target.higher_is_better else -1)
    if gain < 0:
        return 1
    if gain == 0:
        return run.max_local_epochs
    return max(1, min(run.max_local_epochs, ceil(lacking * done / gain - _ROUNDING)))
