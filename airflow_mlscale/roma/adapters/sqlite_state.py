"""The desired state in SQLite: a crash of the daemon at any moment leaves either the old or the new state."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from airflow_mlscale.roma import model

_SCHEMA = """
CREATE TABLE IF NOT EXISTS models (
    name TEXT PRIMARY KEY, active TEXT, candidate TEXT, loaded INTEGER NOT NULL, failure TEXT, failed_version TEXT
) STRICT
"""


class SqliteState:
    """One row for each model. Writes are rare and take under a millisecond, so they block."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute(_SCHEMA)

    def load(self) -> list[model.Desired]:
        columns = "name, active, candidate, loaded, failure, failed_version"
        return [
            model.Desired(
                name=name,
                active=_read(active),
                candidate=_read(candidate),
                loaded=bool(loaded),
                failure=failure,
                failed_version=failed_version,
            )
            for name, active, candidate, loaded, failure, failed_version in self._database.execute(
                f"SELECT {columns} FROM models ORDER BY name"  # noqa: S608 (a constant)
            )
        ]

    def save(self, desired: model.Desired) -> None:
        row = (
            desired.name,
            _write(desired.active),
            _write(desired.candidate),
            int(desired.loaded),
            desired.failure,
            desired.failed_version,
        )
        self._database.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?)", row)

    def remove(self, name: str) -> None:
        self._database.execute("DELETE FROM models WHERE name = ?", (name,))

    def close(self) -> None:
        self._database.close()


def _write(spec: model.ModelSpec | None) -> str | None:
    return None if spec is None else json.dumps(spec.as_json())


def _read(text: Any) -> model.ModelSpec | None:
    return None if text is None else model.spec_from_json(json.loads(text))
