"""The decision journal in Airflow's task state store, where the UI and the REST API read it while a task runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_mlscale.runtime import journal

log = logging.getLogger(__name__)

JOURNAL_KEY = "mlscale_journal"
SUMMARY_KEY = "mlscale_summary"


@dataclass
class TaskStateJournal:
    """Publishes a thinned journal (≤ 500 points, ≤ 60 kB) and a summary, at most every ``every_s`` seconds.

    ``store`` is ``context["task_state_store"]``; None (outside a real task, as in some tests) publishes nothing.
    """

    store: Any
    every_s: float = 2.0
    _published: float = field(default=-1e9, init=False)

    def earlier(self) -> list[journal.Record]:
        """What this task published before it was deferred; a deferred task cannot write."""
        return journal.from_rows(self.store.get(JOURNAL_KEY) or []) if self.store is not None else []

    def publish(self, records: list[journal.Record], summary: Mapping[str, Any], *, now: bool = False) -> None:
        """Write both keys; ``now`` ignores the rate limit (for the last state of a task)."""
        if self.store is None or (not now and time.monotonic() - self._published < self.every_s):
            return
        self._published = time.monotonic()
        try:
            self.store.set(JOURNAL_KEY, journal.thin(records))
            self.store.set(SUMMARY_KEY, dict(summary))
        except Exception as exc:  # the chart is worth less than the task
            log.warning("cannot publish the decision journal: %s", exc)
