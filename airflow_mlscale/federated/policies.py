"""The policies by name."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_mlscale.federated import adaptive, oort, paper, policy, static
from airflow_mlscale.federated.settings import RunSettings

POLICIES: Mapping[str, policy.Policy] = {
    "adaptive": adaptive.plan,
    "over_selection": static.over_selection,
    "fedavg": static.fedavg,
    "oort": oort.plan,
    "linear_rounds": paper.controlled(paper.linear, paper.rounds_used),
    "linear_network": paper.controlled(paper.linear, paper.network_used),
    "quadratic_rounds": paper.controlled(paper.quadratic, paper.rounds_used),
    "quadratic_network": paper.controlled(paper.quadratic, paper.network_used),
}
"""All of `settings.POLICIES`."""


def plan_round(run: RunSettings, seen: policy.Seen) -> policy.RoundPlan:
    """The next round, by the run's policy."""
    return POLICIES[run.policy](run, seen)
