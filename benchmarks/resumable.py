"""What a benchmark has measured, kept in one file that is whole after every run, so that a session can be resumed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from airflow_mlscale import errors

VERSION = 1


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class Resumable:
    """Rows of a session and what they rest on; `save` writes them."""

    path: Path
    started: str = field(default_factory=now)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The results of an earlier session.

        Raises:
            InvalidInputError: there is no such file, or it is not one of results.
        """
        try:
            value = json.loads(path.read_text())
            if value.pop("version") != VERSION:
                raise ValueError("another version")
            return cls(path=path, **value)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise errors.InvalidInputError(
                "results", str(path), f"not a file of results ({exc}); leave --resume"
            ) from exc

    def save(self) -> None:
        """Write everything in one step."""
        value = {"version": VERSION, **{name: each for name, each in asdict(self).items() if name != "path"}}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(value, indent=1) + "\n")
        partial.replace(self.path)
