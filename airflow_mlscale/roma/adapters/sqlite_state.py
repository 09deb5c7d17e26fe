"""The desired state in SQLite: a crash of the daemon at any moment leaves either the old or the new state."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import model

_SCHEMA = """
CREATE TABLE IF NOT EXISTS models (
    name TEXT PRIMARY KEY, active TEXT, candidate TEXT, loaded INTEGER NOT NULL, failure TEXT, failed_version TEXT,
    canary TEXT, previous TEXT, highest TEXT
) STRICT
"""

_COLUMNS = "name, active, candidate, loaded, failure, failed_version, canary, previous, highest"

_SAVE = f"INSERT OR REPLACE INTO models ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 (constants)

_LATER = ("canary", "previous", "highest")
"""Columns, all TEXT, that files of earlier versions lack; a version may be a number that no integer column holds."""


class SqliteState:
    """One row for each model. Writes are rare and take under a millisecond, so they block."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        self._database.execute(_SCHEMA)
        there = {row[1] for row in self._database.execute("PRAGMA table_info(models)")}
        for column in _LATER:
            if column not in there:
                self._database.execute(f"ALTER TABLE models ADD COLUMN {column} TEXT")

    def load(self) -> list[model.Desired]:
        rows = self._database.execute(f"SELECT {_COLUMNS} FROM models ORDER BY name")  # noqa: S608 (a constant)
        return [
            model.Desired(
                name=name,
                active=_read(active),
                candidate=_read(candidate),
                loaded=bool(loaded),
                failure=failure,
                failed_version=failed_version,
                canary=None if trial is None else model.canary_from_json(json.loads(trial)),
                previous=_read(previous),
                highest=int(highest or 0),
            )
            for name, active, candidate, loaded, failure, failed_version, trial, previous, highest in rows
        ]

    def save(self, desired: model.Desired) -> None:
        row = (
            desired.name,
            _write(desired.active),
            _write(desired.candidate),
            int(desired.loaded),
            desired.failure,
            desired.failed_version,
            None if desired.canary is None else json.dumps(asdict(desired.canary)),
            _write(desired.previous),
            str(desired.highest),
        )
        with _writing():
            self._database.execute(_SAVE, row)

    def remove(self, name: str) -> None:
        with _writing():
            self._database.execute("DELETE FROM models WHERE name = ?", (name,))

    def close(self) -> None:
        self._database.close()


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as exc:  # a full disk, mostly
        raise errors.TransientError(f"the desired state cannot be saved: {exc}", retry_after_s=60) from exc


def _write(spec: model.ModelSpec | None) -> str | None:
    return None if spec is None else json.dumps(spec.as_json())


def _read(text: Any) -> model.ModelSpec | None:
    return None if text is None else model.spec_from_json(json.loads(text))
