"""A federation without sites, for tests of DAGs (`ports.FederationAdmin`): each job is one local process.

The process plays the run with the real controller on simulated time (`simulated_run`) and records it as a real
federation does. It ends with the run, when it is aborted, or when nobody has followed it for a while.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import checks, labels, simulation
from airflow_mlscale.federated.adapters import environment
from airflow_mlscale.federated.settings import SITE, RunSettings
from airflow_mlscale.runtime import processes

log = logging.getLogger(__name__)

SERVICE = "simulated-run-"
FILE = "simulation.json"
"""Beside the rendered job: what `simulated_run` has to know beyond it."""


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """Sites that are simulated, out of a connection's extras; as of `simulation.drawn` where nothing else is said."""

    sites: tuple[str, ...]
    """Their names."""
    seed: int = 0
    """The same one draws the same sites and the same luck."""
    overhead_s: float = 4.0
    epoch_s: float = 4.0
    speed_spread: float = 0.8
    flaky: float = 0.15
    flaky_answers: float = 0.5
    straggles: float = 0.05
    labels: Mapping[str, labels.Labels] = field(default_factory=dict)
    """Of sites that have some, by name."""
    patience_s: float = 120.0
    """How long a run goes on that nobody follows."""

    def __post_init__(self) -> None:
        named = all(isinstance(site, str) and SITE.fullmatch(site) for site in self.sites)
        good = self.sites and named and len(set(self.sites)) == len(self.sites)
        checks.check(good, "simulated_sites", list(self.sites), "list names of sites, each once")
        checks.whole(self.seed, "seed", 0)
        for name in ("overhead_s", "epoch_s", "speed_spread"):
            checks.number(getattr(self, name), name, 0.0)
        for name in ("flaky", "flaky_answers", "straggles"):
            checks.number(getattr(self, name), name, 0.0, 1.0)
        checks.number(self.patience_s, "patience_s", 1.0)
        for site, each in self.labels.items():
            checks.one_of(site, "labels", self.sites)
            labels.check("labels", each)

    @classmethod
    def from_extra(cls, extra: Mapping[str, Any]) -> Simulation:
        """Out of the extras of a connection; the ones of others are passed over.

        Raises:
            InvalidInputError: one of them is wrong.
        """
        told = extra["simulated_sites"]
        sites = [site.strip() for site in told.split(",") if site.strip()] if isinstance(told, str) else told
        checks.check(isinstance(sites, list | tuple), "simulated_sites", told, "list names of sites")
        known = {each.name for each in fields(cls)} - {"sites"}
        checks.check(isinstance(extra.get("labels", {}), Mapping), "labels", extra.get("labels"), "map sites to labels")
        return cls(sites=tuple(sites), **{name: value for name, value in extra.items() if name in known})

    def drawn(self, names: Sequence[str]) -> list[simulation.SimulatedSite]:
        """How those of the sites behave that take part in a run."""
        everybody = simulation.drawn(
            self.sites, self.seed, overhead_s=self.overhead_s, epoch_s=self.epoch_s, speed_spread=self.speed_spread,
            flaky=self.flaky, flaky_answers=self.flaky_answers, straggles=self.straggles,
        )  # fmt: skip
        return [site for site in everybody if site.name in names]


@dataclass(frozen=True)
class SimulatedAdmin:
    """Starts, looks at and ends the processes."""

    plays: Simulation

    def submit(self, job: Path, token: str) -> str:
        config = json.loads((job / "app" / "config" / "config_fed_server.json").read_text(encoding="utf-8"))
        arguments = config["workflows"][0]["args"]
        run = RunSettings.from_json(arguments["run"])
        if run.client_data is None:
            raise errors.InvalidInputError("client_script", run.client_script, "cannot be simulated; use client_data")
        known = {site: self.plays.labels.get(site, {}) for site in self.plays.sites}
        names = labels.must_choose(run.sites, known)
        kept = Path(arguments["run_dir"]) / "jobs" / f"{arguments['segment']:04d}"
        if (kept / FILE).exists():
            return token  # submitted before; nobody lived to record it
        shutil.copytree(job, kept, dirs_exist_ok=True)
        found = {
            "sites": [asdict(site) for site in self.plays.drawn(names)],
            "seed": self.plays.seed,
            "began_at": time.time(),
            "patience_s": self.plays.patience_s,
            "service": SERVICE + token,
        }
        (kept / FILE).write_text(json.dumps(found), encoding="utf-8")
        log.info("run %s is simulated: sites %s exist in name only", run.run_id, ", ".join(names))
        self._start(kept, token)
        return token

    def job_status(self, job_id: str) -> str | None:
        return "RUNNING" if processes.service(SERVICE + job_id) else "FINISHED"

    def abort(self, job_id: str) -> None:
        processes.end_service(SERVICE + job_id)

    def sites(self) -> Sequence[str]:
        return sorted(self.plays.sites)

    def sites_without(self, job_id: str) -> Sequence[str]:
        return ()

    def _start(self, job: Path, token: str) -> None:
        env = environment.of_participant(threads=1, python_path=[job / "app" / "custom"])
        processes.detach(
            SERVICE + token,
            [sys.executable, "-m", "airflow_mlscale.federated.adapters.simulated_run", str(job)],
            details={"job": str(job)},
            env={**env, "CUDA_VISIBLE_DEVICES": "-1"},
            cwd=job,
            log_path=job / "log",
            grace_s=2.0,
        )
