"""What the log tells of a running application."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from airflow_mlscale.runtime.journal import Record
from airflow_mlscale.spark.model import Outlook, Promise

log = logging.getLogger(__name__)

PROGRESS_EVERY_S = 10.0


@dataclass
class Narrator:
    """Logs each decision that changed something, and the progress now and then."""

    promise: Promise
    _told_at: float = field(default=0.0, init=False)

    def __call__(self, record: Record) -> None:
        if not record.changed and record.at - self._told_at < PROGRESS_EVERY_S:
            return
        self._told_at = record.at
        progress, decided = record.seen["progress"], record.decided
        done = f"{100 * float(progress):.0f} % done" if progress is not None else f"{record.seen['stages']} stages done"
        ceiling = decided["ceiling_cores"]
        share = f"{decided['guaranteed_cores']} cores guaranteed, " + (
            "no ceiling" if ceiling is None else f"ceiling {ceiling}"
        )
        risk = "" if decided["outlook"] in (None, Outlook.ON_TRACK) else f"{decided['outlook']}, "
        log.info(
            "%s, %.0f s left of %.0f s, %s%s: %s",
            done,
            record.seen["left_s"],
            self.promise.duration_s,
            risk,
            share,
            record.reason,
        )
