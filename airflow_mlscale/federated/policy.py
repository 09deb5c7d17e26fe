"""One round: what is planned, when it closes, what it changes. And what a policy is. No clock, no I/O.

Belongs here: what all policies share. The policies themselves have a module each (`adaptive`, `static`, `oort`,
`paper`), `policies` knows them by name. A round has a quorum, over-selection and a deadline (Bonawitz et al.,
*Towards Federated Learning at Scale*, MLSys 2019, §4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

from airflow_mlscale.federated import model
from airflow_mlscale.federated.forecast import Forecast
from airflow_mlscale.federated.settings import RunSettings
from airflow_mlscale.federated.sites import Site

PATIENCE = 3.0
"""A round with a quorum waits at most this many times as long as the last round took, …"""
LEAST_PATIENCE_S = 5.0
"""… and at least this long: a dead site costs one such wait, not a whole round timeout."""


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
    local_epochs: Mapping[str, int]
    """Of each site that is asked."""
    batch_size: int
    reason: str = ""
    """Why this round looks as it does, for people."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All that a policy decides from."""

    state: model.RunState
    sites: tuple[Site, ...]
    """Those that can be asked now."""
    now: float
    """Seconds since the epoch."""
    last_round_s: float | None = None
    """How long the last round of this segment was open; None if the sites still have to start."""
    forecast: Forecast | None = None
    """What was predicted after the last round."""

    @property
    def number(self) -> int:
        """Of the round to be planned, from 1."""
        return len(self.state.rounds) + 1

    def left_s(self, run: RunSettings) -> float:
        """Seconds to the run's deadline, possibly infinite."""
        return inf if run.deadline_at is None else run.deadline_at - self.now


class Policy(Protocol):
    """Plans a round. Pure: the same arguments give the same plan."""

    def __call__(self, run: RunSettings, seen: Seen) -> RoundPlan: ...


def plan(
    run: RunSettings,
    seen: Seen,
    epochs: Mapping[str, int],
    *,
    enough: int,
    patience_s: float | None = None,
    grace_fraction: float | None = None,
    reason: str = "",
) -> RoundPlan:
    """The plan that asks these sites; times and the quorum from the settings where nothing else is said."""
    timeout_s = run.round_timeout_s + (run.start_allowance_s if seen.last_round_s is None else 0.0)
    if seen.last_round_s is None:
        patience_s = inf
    elif patience_s is None:
        patience_s = max(LEAST_PATIENCE_S, PATIENCE * seen.last_round_s)
    return RoundPlan(
        number=seen.number,
        asked=tuple(sorted(epochs)),
        enough=max(enough, run.min_nodes),
        quorum=run.min_nodes,
        timeout_s=max(0.0, min(timeout_s, seen.left_s(run))),
        patience_s=patience_s,
        grace_fraction=run.grace_fraction if grace_fraction is None else grace_fraction,
        local_epochs=dict(epochs),
        batch_size=run.batch_size,
        reason=reason,
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


def with_round(state: model.RunState, target: model.Quality, done: model.Round) -> model.RunState:
    """The state after one more complete round."""
    best = done.number if target.better(done.value, state.best_value) else state.best_round
    return replace(state, rounds=(*state.rounds, done), best_round=best or done.number, failed_rounds=0, reason="")
