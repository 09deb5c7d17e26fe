"""The rows of a session, and the uncontrolled runs that they rest on."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.spark import profile as profiles
from airflow_mlscale.spark.model import Profile
from benchmarks import resumable
from benchmarks.deadline.trial import Outcome

BASELINE = "none"
"""System of uncontrolled runs."""
BASELINE_SEED = 1000
"""Runs before the race draw other data than the race does: profiles must hold for new data."""
_NOT_IN_ROWS = ("series", "learned")


@dataclass(frozen=True, order=True)
class Key:
    """Names one row."""

    system: str
    app: str
    seed: int
    factor: float


@dataclass
class Results(resumable.Resumable):
    """Rows of a session and what they rest on."""

    scale: float = 1.0
    baselines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Uncontrolled runs before the race, by application: deadlines and the work follow from them."""
    profiles: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What those runs taught, by application."""
    burn_down: dict[str, dict[str, Any]] = field(default_factory=dict)
    """One warm reserve run of each application, for the picture."""

    def has(self, key: Key) -> bool:
        """Whether that row was made, by a run that failed too."""
        return any(key_of(row) == key for row in self.rows)

    def median_s(self, app: str) -> float:
        """Median time of the uncontrolled runs."""
        return float(statistics.median(run["finish_s"] for run in self.baselines[app]))

    def work_core_s(self, app: str) -> float:
        """Median core-seconds that the executors of uncontrolled runs used."""
        return float(statistics.median(run["used_core_s"] for run in self.baselines[app]))

    def deadline_s(self, app: str, factor: float) -> float:
        return round(factor * self.median_s(app), 2)

    def add_baseline(self, app: str, outcome: Outcome) -> None:
        if outcome.learned is None:
            raise errors.TransientError(f"nothing was learned from {app}: the driver's web page never answered")
        self.baselines.setdefault(app, []).append({**_plain(outcome), "at": resumable.now()})
        self.profiles[app] = profiles.to_json(outcome.learned)

    def profile(self, app: str) -> Profile | None:
        """The warm profile; None before the first uncontrolled run."""
        return profiles.from_json(self.profiles[app]) if app in self.profiles else None

    def raced(self, app: str) -> bool:
        """Whether the race of that application has begun: its deadlines and its profile are fixed from then on."""
        return any(row["app"] == app for row in self.rows)

    def count_baselines(self, app: str, factors: Iterable[float]) -> None:
        """Let the runs before the race count as runs of no control to each of these deadlines."""
        for number, run in enumerate(self.baselines[app]):
            for factor in factors:
                key = Key(BASELINE, app, BASELINE_SEED + number, factor)
                if not self.has(key):
                    met = run["finish_s"] <= self.deadline_s(app, factor)
                    self.rows.append({**self._promised(key), **run, "met": met, "error": None})

    def add(self, keys: Iterable[Key], outcome: Outcome | None, error: str | None = None) -> None:
        """Append a run's rows, one for each key that it counts for."""
        for key in keys:
            self.rows.append(
                {
                    **self._promised(key),
                    **self._measured(key, outcome),
                    "error": error,
                    "at": resumable.now(),
                    "law": self.versions.get("law"),
                }
            )

    def _promised(self, key: Key) -> Mapping[str, Any]:
        deadline_s, work_core_s = self.deadline_s(key.app, key.factor), self.work_core_s(key.app)
        return {**asdict(key), "deadline_s": deadline_s, "work_core_s": round(work_core_s, 2)}

    def _measured(self, key: Key, outcome: Outcome | None) -> Mapping[str, Any]:
        if outcome is None:
            return {"finish_s": None, "met": False}
        return {**_plain(outcome), "met": outcome.finish_s <= self.deadline_s(key.app, key.factor)}


def key_of(row: Mapping[str, Any]) -> Key:
    return Key(row["system"], row["app"], int(row["seed"]), float(row["factor"]))


def finished(rows: Iterable[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Rows of runs that did not fail."""
    return [row for row in rows if row["finish_s"] is not None]


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {each.name: getattr(outcome, each.name) for each in fields(outcome) if each.name not in _NOT_IN_ROWS}
