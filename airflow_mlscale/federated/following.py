"""Following one segment of one run: does it live, what is new, who could join its next segment."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_mlscale import errors
from airflow_mlscale.federated import model, ports, watch
from airflow_mlscale.federated.adapters import run_directory
from airflow_mlscale.federated.settings import RunSettings
from airflow_mlscale.runtime import journal

STATUS_EVERY_S = 5.0
"""How often the engine is asked about a job that has not begun."""
MISSING_EVERY_S, RETURNED_EVERY_S = 10.0, 60.0
"""How often it is asked for sites that could join the next segment: while one is missed, and otherwise."""


@dataclass(frozen=True)
class News:
    """What a follower had not seen yet."""

    run: RunSettings
    """The settings that hold."""
    state: model.RunState
    records: Sequence[journal.Record]
    """Of the decision journal; at most those of the state."""


@dataclass
class Follower:
    """Looks at one segment of one run."""

    admin: ports.FederationAdmin
    directory: run_directory.RunDirectory
    seen: watch.Watch
    job_id: str | None
    keeps_alive: bool = False
    """Whether the run ends when nobody follows it."""
    records_seen: int = 0
    _status_asked_s: float = 0.0
    _returned_asked_s: float | None = None

    def look(self) -> watch.Look:
        """One look; blocks for up to a few seconds while the segment has not begun."""
        directory = self.directory
        if self.keeps_alive:
            directory.needed()
        now_s = time.monotonic()
        job_over = self._job_over(now_s)  # first: a run that ends while the engine answers must not look lost
        state = directory.state()
        found, self.seen = watch.look(
            self.seen,
            state=state,
            beat=_beat(directory.heartbeat()),
            job_over=job_over,
            now_s=now_s,
        )
        if found.progress == watch.Progress.LIVES and state is not None:
            self._look_for_returned(directory, state, now_s)
        return found

    def _look_for_returned(self, directory: run_directory.RunDirectory, state: model.RunState, now_s: float) -> None:
        """Tell the controller which sites could join the next segment: it cannot see them itself."""
        began = state.rounds and state.rounds[-1].segment == self.seen.segment
        if self.job_id is None or not (began or state.failed_rounds):
            return
        if self._returned_asked_s is None:
            self._returned_asked_s = now_s
        missed = any(site.unanswered for site in state.sites)
        if now_s - self._returned_asked_s < (MISSING_EVERY_S if missed else RETURNED_EVERY_S):
            return
        self._returned_asked_s = now_s
        with contextlib.suppress(errors.MlscaleError):  # it is asked again
            returned = self.admin.sites_without(self.job_id)
            if sorted(returned) != sorted(directory.returned(self.seen.segment)):
                directory.tell_returned(self.seen.segment, returned)

    def news(self) -> News | None:
        """What the journal tells since the last call; None while the run has not begun."""
        directory = self.directory
        records = directory.records()
        run, state = directory.settings(), directory.state()
        if state is None or run is None:
            return None
        new, self.records_seen = records[self.records_seen :], len(records)
        return News(run, state, new)

    def _job_over(self, now_s: float) -> bool:
        asked_lately = now_s - self._status_asked_s < STATUS_EVERY_S
        if self.job_id is None or asked_lately or not watch.in_doubt(self.seen, now_s=now_s):
            return False
        self._status_asked_s = now_s
        try:
            status = self.admin.job_status(self.job_id)
        except errors.TransientError:  # a server that restarts says all kinds of things
            return False
        return status is None or status.startswith("FINISHED")


def _beat(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    try:
        return int(json.loads(text)["segment"]), text
    except (ValueError, KeyError, TypeError):
        return None
