"""A federation without processes: sites that move a weight towards one, an evaluator that reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from airflow_mlscale.federated import model, policy, ports
from airflow_mlscale.federated.settings import RunSettings
from airflow_mlscale.federated.sites import Site


def settings(**changes) -> RunSettings:
    """Settings of a run that reaches accuracy 0.9."""
    return RunSettings(
        **{
            "run_id": "run",
            "model": "module:build",
            "client_data": "module:of_site",
            "evaluation_data": "module:held_out",
            "target": model.Quality("accuracy", 0.9),
            **changes,
        }
    )


def state(*values: float, **changes) -> model.RunState:
    """A run with these values after its rounds."""
    rounds = tuple(
        model.Round(number=i + 1, value=v, loss=1 - v, asked=(), answered=(), samples=1, seconds=1, segment=1)
        for i, v in enumerate(values)
    )
    best = max(range(len(values)), key=lambda i: values[i]) + 1 if values else 0
    return model.RunState(**{"run_id": "run", "rounds": rounds, "best_round": best, **changes})


def seen(*names: str, silent: str = "", values: Sequence[float] = (), now: float = 1000.0, **changes) -> policy.Seen:
    """What a policy sees: sites of which some were silent, and a run with these values."""
    records = tuple(Site(name=name, unanswered=int(name in silent)) for name in names)
    return policy.Seen(**{"state": state(*values), "sites": records, "now": now, "last_round_s": 2.0, **changes})


@dataclass
class Sites:
    """Each round halves the distance of the one weight to 1, whoever answers."""

    sites: Sequence[str] = ("a", "b", "c")
    play: Callable[[policy.RoundPlan, str], model.SiteAnswer | None] | None = None
    """What a site answers instead; None for silence."""
    plans: list[policy.RoundPlan] = field(default_factory=list)
    back: Sequence[str] = ()

    def names(self) -> Sequence[str]:
        return self.sites

    def train(self, plan: policy.RoundPlan, weights: ports.Weights) -> list[model.SiteAnswer]:
        self.plans.append(plan)
        if self.play:
            return [answer for site in plan.asked if (answer := self.play(plan, site))]
        return [good(site, weights) for site in plan.asked]

    def late(self) -> list[model.SiteAnswer]:
        return []

    def returned(self) -> Sequence[str]:
        return self.back


def good(site: str, weights: ports.Weights) -> model.SiteAnswer:
    """An honest answer."""
    return model.SiteAnswer(site=site, samples=10, weights=[(weight + 1) / 2 for weight in weights])


@dataclass
class Evaluator:
    """The accuracy is the weight itself."""

    exported: list[float] = field(default_factory=list)

    def initial_weights(self) -> ports.Weights:
        return [np.zeros(1, "float32")]

    def trained(self) -> Sequence[bool]:
        return [True]

    def evaluate(self, weights: ports.Weights) -> Mapping[str, float]:
        return {"accuracy": float(weights[0][0]), "loss": 1 - float(weights[0][0])}

    def export(self, weights: ports.Weights, directory: Path) -> ports.Exported:
        self.exported.append(float(weights[0][0]))
        return ports.Exported(keras_model=str(directory / "model.keras"), saved_model=str(directory / "saved_model"))


@dataclass
class Admin:
    """An engine that accepts every job and runs none."""

    connected: Sequence[str] = ("a", "b", "c")
    jobs: dict[str, str] = field(default_factory=dict)
    """Job ids by token."""
    statuses: dict[str, str] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    without: Sequence[str] = ()
    """Sites that have no part in any job."""
    contents: list[dict[str, bytes]] = field(default_factory=list)
    """Files of each submission."""

    def submit(self, job: Path, token: str) -> str:
        self.contents.append({str(p.relative_to(job)): p.read_bytes() for p in sorted(job.rglob("*")) if p.is_file()})
        return self.jobs.setdefault(token, f"job-{len(self.jobs) + 1}")

    def job_status(self, job_id: str) -> str | None:
        return self.statuses.get(job_id, "RUNNING")

    def abort(self, job_id: str) -> None:
        self.aborted.append(job_id)

    def sites(self) -> Sequence[str]:
        return self.connected

    def sites_without(self, job_id: str) -> Sequence[str]:
        return self.without
