"""What the controller needs of the world, and what Airflow needs of a federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from airflow_mlscale.federated import limits, model, policy

Weights = Sequence[Any]
"""NumPy arrays in the model's own order."""


class Sites(Protocol):
    """The sites of one segment."""

    def names(self) -> Sequence[str]:
        """Sites that can be asked."""

    def train(self, plan: policy.RoundPlan, weights: Weights) -> list[model.SiteAnswer]:
        """Play one round: returns when `policy.seconds_to_close` is 0, or when the run is told to stop."""

    def late(self) -> list[model.SiteAnswer]:
        """Answers to rounds that had closed, as far as the engine hears of them; each is told once."""

    def returned(self) -> Sequence[str]:
        """Sites that are connected and no part of this segment, as far as anybody who follows the run has looked."""


@dataclass(frozen=True)
class Exported:
    """Where a model went."""

    keras_model: str | None = None
    saved_model: str | None = None
    weights_file: str | None = None
    """Arrays by name, where there is no Keras model."""


class Evaluator(Protocol):
    """The model on the server with its held-out data."""

    def initial_weights(self) -> Weights:
        """Weights of the freshly built model."""

    def trained(self) -> Sequence[bool]:
        """For each array of the model whether gradients train it; asked only where `server_step.needs_trained`."""

    def evaluate(self, weights: Weights) -> Mapping[str, float]:
        """The target's metric and ``loss`` on the held-out data; never asked where `RunSettings.measured_by_sites`."""

    def export(self, weights: Weights, directory: Path) -> Exported:
        """Write the model with these weights; all of it or nothing."""


class RunStore(Protocol):
    """The durable side of one run, as its controller uses it."""

    def begin(self, segment: int) -> tuple[model.RunState | None, Weights | None]:
        """Take the run over for a segment; returns the last complete state and its weights."""

    def memory(self) -> Weights:
        """The arrays that the server optimiser remembered after the last complete round; empty before the first."""

    def checkpoint(
        self, state: model.RunState, weights: Weights | None = None, memory: Weights = (), measured: Weights = ()
    ) -> None:
        """Make a state durable, and with it the weights of its last round and the optimiser's memory; atomic.

        ``measured`` are the weights that the round's evaluation is about, where those are others.

        Raises:
            RunFailedError: a later segment has taken the run over.
        """

    def best_weights(self, state: model.RunState) -> Weights:
        """The weights that the best round's evaluation is about."""

    def changes(self) -> Sequence[limits.Change]:
        """All changes of limits and target since the run's first submission, in order."""

    def note(self, state: model.RunState, number: int, change: limits.Change, told: str) -> None:
        """Record that the run has heard of a change, the first being number 1."""

    def stop_asked(self) -> bool:
        """Whether the round loop has to end: somebody asked the run to end, or the engine ends this job."""

    def end_asked(self) -> str | None:
        """Who asked the run to end with the best model that it has, and why; None if nobody did."""

    def interrupted(self) -> bool:
        """Whether it is the engine that ends this job, with nobody asking: a later segment may go on."""


class FederationAdmin(Protocol):
    """The federation from outside: submit, look, abort. Calls block for up to some seconds.

    All raise `UnreachableError` when the server does not answer.
    """

    def submit(self, job: Path, token: str) -> str:
        """Submit a job folder; the same token returns the same job id. Returns the id."""

    def job_status(self, job_id: str) -> str | None:
        """Status in the engine's own words; None for an unknown job, and for one that nobody plays any more."""

    def abort(self, job_id: str) -> None:
        """End a job; nothing happens if it has ended."""

    def sites(self) -> Sequence[str]:
        """Sites that are connected now."""

    def sites_without(self, job_id: str) -> Sequence[str]:
        """Connected sites that say that they have no part in a job; may take some seconds if one does not answer."""
