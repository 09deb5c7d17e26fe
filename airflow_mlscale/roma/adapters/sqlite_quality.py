"""The counts of feedback in SQLite: what was counted survives a crash of the daemon."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.roma import feedback

_SCHEMA = """
CREATE TABLE IF NOT EXISTS quality (
    name TEXT, version TEXT, slot INTEGER, records INTEGER NOT NULL, judged INTEGER NOT NULL,
    correct INTEGER NOT NULL, measured INTEGER NOT NULL, error_sum REAL NOT NULL, PRIMARY KEY (name, version, slot)
) STRICT
"""

_ADD = """
INSERT INTO quality VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    records = records + excluded.records, judged = judged + excluded.judged, correct = correct + excluded.correct,
    measured = measured + excluded.measured, error_sum = error_sum + excluded.error_sum
"""

_SINCE = """
SELECT version, sum(records), sum(judged), sum(correct), sum(measured), sum(error_sum) FROM quality
WHERE name = ? AND slot >= ? GROUP BY version
"""


class SqliteQuality:
    """A `ports.QualityPort`. Writes do not wait for the disk: only a power cut can lose the last ones."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute(_SCHEMA)

    def add(self, name: str, at: float, counted: Mapping[str, feedback.Tally]) -> None:
        slot, oldest = feedback.slot(at), feedback.slot(at - feedback.KEEP_S)
        rows = [
            (name, version, slot, each.records, each.judged, each.correct, each.measured, each.error_sum)
            for version, each in counted.items()
        ]
        try:
            with self._database:
                self._database.execute("BEGIN")
                self._database.executemany(_ADD, rows)
                self._database.execute("DELETE FROM quality WHERE name = ? AND slot < ?", (name, oldest))
        except sqlite3.OperationalError as exc:  # a full disk, mostly
            raise errors.TransientError(f"the feedback cannot be kept: {exc}", retry_after_s=60) from exc

    def since(self, name: str, at: float) -> dict[str, feedback.Tally]:
        return {
            version: feedback.Tally(
                records=records, judged=judged, correct=correct, measured=measured, error_sum=error_sum
            )
            for version, records, judged, correct, measured, error_sum in self._database.execute(
                _SINCE, (name, feedback.slot(at))
            )
        }

    def forget(self, name: str) -> None:
        self._database.execute("DELETE FROM quality WHERE name = ?", (name,))

    def close(self) -> None:
        self._database.close()
