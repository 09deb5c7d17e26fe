"""The rows of a session, and what the machine can do."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import airflow_mlscale
from benchmarks import resumable
from benchmarks.serving import models, setup
from benchmarks.serving.trial import Outcome

_LAW = (
    "control/*.py",
    *(
        f"roma/{name}.py"
        for name in (
            *("batching", "controller", "dispatch", "laws", "lending", "line", "measurement", "policy"),
            *("queueing", "replica", "service_time", "settings"),
        )
    ),
)


@dataclass(frozen=True, order=True)
class Key:
    """Names one row."""

    system: str
    shape: str
    load: float
    seed: int
    neighbour_times: float = 1.0
    """The neighbour's rate relative to its own part of the load."""


@dataclass
class Results(resumable.Resumable):
    """Rows of a session and what they rest on."""

    scope: dict[str, Any] = field(default_factory=dict)
    capacity: dict[str, Any] = field(default_factory=dict)
    """What the machine can do: ``requests_per_s`` of the mix, and by model ``alone_ms``, ``alone_per_s``,
    ``rate_per_s`` (at load 1) and ``objective_ms``."""

    @property
    def journal(self) -> Path:
        """Of the run that is shown, beside the results."""
        return self.path.with_name(f"{self.path.stem}-run.jsonl")

    def has(self, key: Key) -> bool:
        """Whether that row was made; one that failed is made again."""
        return any(key_of(row) == key and row["error"] is None for row in self.rows)

    def add(self, key: Key, outcome: Outcome | None, error: str | None = None) -> None:
        """Append a row, in place of one of the same key that failed."""
        self.rows = [row for row in self.rows if key_of(row) != key]
        measured = asdict(outcome) if outcome else {}
        self.rows.append(
            {**asdict(key), **measured, "error": error, "at": resumable.now(), "law": self.versions.get("law")}
        )

    def served(self) -> list[models.Served]:
        """The models with their objectives and rates, as the capacity was measured."""
        return [
            models.Served(model=models.MODELS[name], objective_ms=one["objective_ms"], rate_per_s=one["rate_per_s"])
            for name, one in self.capacity["models"].items()
        ]


def key_of(row: Mapping[str, Any]) -> Key:
    return Key(row["system"], row["shape"], float(row["load"]), int(row["seed"]), float(row["neighbour_times"]))


def finished(rows: Iterable[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Rows of runs that did not fail."""
    return [row for row in rows if row["error"] is None]


def versions() -> dict[str, str]:
    """Of everything that was compared."""
    rivals = {name: wanted[0].partition("==")[2] for name, wanted in setup.RIVALS.items() if setup.has(name)}
    return {"python": platform.python_version(), "tensorflow": version("tensorflow-cpu"), **rivals, "law": law()}


def law() -> str:
    """Names the policies' code: rows of different laws are not to be compared."""
    package, digest = Path(airflow_mlscale.__file__).parent, sha256()
    for path in sorted(found for name in _LAW for found in package.glob(name)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
