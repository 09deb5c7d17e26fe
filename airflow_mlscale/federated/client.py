"""Runs as seen by whoever wants one: begin or re-attach, follow, go on after a loss, stop, read the result.

Talks to the federation through its admin port and to the run through its directory; knows no Airflow.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import checks, following, labels, limits, model, ports, stopping, summary, watch
from airflow_mlscale.federated.adapters import job_folder, run_directory
from airflow_mlscale.federated.settings import RunSettings, check_run_id
from airflow_mlscale.runtime import deadlines

log = logging.getLogger(__name__)

RETRY_S = 3.0
"""Between two tries to reach a federation that restarts."""


@dataclass
class RunClient:
    """One federation and its run store."""

    admin: ports.FederationAdmin
    run_store: Path
    max_segments: int = 5
    """Segments of one run, the first included and those begun for returning sites not; a run lost more often fails."""
    keeps_alive: bool = False
    """Whether following a run keeps it alive: a simulated one ends when nobody follows it."""
    gather_s: float = 10.0
    """How long a next segment waits for the sites of the last one to find a server that was restarted."""
    restart_patience_s: float = 120.0
    """How long a federation may take to come back before a lost run's next segment cannot be submitted."""

    def directory(self, run_id: str) -> run_directory.RunDirectory:
        """Where a run is recorded.

        Raises:
            InvalidInputError: this is no run's id, and must not become a path.
        """
        return run_directory.RunDirectory(self.run_store / check_run_id(run_id))

    def begin(self, run: RunSettings) -> RunSettings:
        """Submit a run, or re-attach to it if it is known; returns the settings that hold.

        A known run keeps its settings, its deadline among them. One that was aborted, interrupted or failed goes
        on at its last complete round; one that ended otherwise is left as it is.

        Raises:
            InvalidInputError: a module of the run cannot be found, or too few of its sites are known.
            UnreachableError: the federation does not answer, or too few of its sites are connected.
        """
        directory = self.directory(run.run_id)
        self._check(run)
        first = directory.first_settings()
        if first is not None and _comparable(first) != _comparable(run):
            log.warning("run %s is known with other settings; it keeps those it began with", run.run_id)
        known = directory.settings()
        run = known or run
        state, (segment, job_id) = directory.state(), directory.last_segment()
        if state is not None and state.status.usable:
            log.info("run %s has already ended: %s", run.run_id, state.reason)
        elif job_id is not None and not directory.stop_asked() and not _halted(state, segment):
            done = len(state.rounds) if state else 0
            log.info("re-attached to run %s, segment %d, job %s, %d rounds done", run.run_id, segment, job_id, done)
        else:
            if known is None:
                job_folder.check(run)
            directory.withdraw_end()  # whoever begins it again wants it to go on
            self._submit(directory, directory.create(run), segment + 1)
        return run

    def next_segment(self, run_id: str, reason: str, *, after: int | None = None) -> int:
        """Let a run whose segment is over go on in a new one; returns its number.

        Args:
            run_id: the run.
            reason: why the segment is over.
            after: the segment; if a later one has begun meanwhile, nothing happens. Default is the last one.

        Raises:
            FederatedRunFailedError: the run was lost too often, or asked to stop.
            UnreachableError: the federation does not come back in `restart_patience_s`; tells what there is so far.
        """
        directory = self.directory(run_id)
        run, (segment, job_id) = directory.first_settings(), directory.last_segment()
        if run is None:
            raise self._unknown(run_id)
        if after is not None and segment > after:
            return segment
        if directory.stop_asked():  # its job was aborted before its controller could say so
            raise errors.FederatedRunFailedError(f"run {run_id} aborted: asked to stop{self._so_far(directory)}")
        state = directory.state()
        lost = segment - (state.renewals if state else 0)
        if lost >= self.max_segments:
            told = f"run {run_id} was lost {lost} times, last because: {reason}{self._so_far(directory)}"
            raise errors.FederatedRunFailedError(told)
        log.warning("segment %d of run %s is over (%s); submitting segment %d", segment, run_id, reason, segment + 1)
        self._submit_patiently(directory, run, segment + 1)
        if job_id:  # only now: that takes the engine ten seconds, in which the next segment starts
            with contextlib.suppress(errors.MlscaleError):  # a job that is gone cannot be aborted
                self.admin.abort(job_id)
        return segment + 1

    def stop(self, run_id: str, *, patience_s: float = 2.0) -> None:
        """Ask a run to end, and abort its job if it has not ended after ``patience_s``.

        Raises:
            UnreachableError: the job had to be aborted and the federation does not answer.
        """
        directory = self.directory(run_id)
        directory.ask_to_stop()
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            state = directory.state()
            if state is not None and state.status.ended:
                return
            time.sleep(0.1)  # another process writes the state: there is no event to wait for
        _, job_id = directory.last_segment()
        if job_id:
            self.admin.abort(job_id)

    def end(self, run_id: str, *, by: str, why: str) -> bool:
        """Ask a run to end with the best model that it has; asking twice is asking once.

        Its controller does so within a second, the next segment's if it has none at the moment.

        Args:
            run_id: the run.
            by: who asks.
            why: in words.

        Returns:
            Whether there was something to end.

        Raises:
            InvalidInputError: there is no such run.
        """
        directory = self.directory(run_id)
        if not directory.exists():
            raise self._unknown(run_id)
        state = directory.state()
        if state is not None and state.status.ended:
            return False
        directory.ask_to_end(by, why)
        return True

    def change(self, run_id: str, *, by: str = "", **values: Any) -> RunSettings:
        """Change limits or target of a run that is under way; its controller hears of it within a round.

        A deadline that is brought forward closes an open round in time.

        Args:
            run_id: the run.
            by: who changes it; default is this process's user.
            values: ``deadline`` (as the operator takes it; a duration counts from now), ``max_rounds``, ``target``
                (the value), ``node_seconds`` and ``gigabytes`` (of the budget). None takes a limit away.

        Returns:
            The settings that hold now.

        Raises:
            InvalidInputError: there is no such run, it has ended, or a value is wrong or lies behind the run already.
        """
        directory = self.directory(run_id)
        run, state = directory.settings(), directory.state()
        if run is None:
            raise self._unknown(run_id)
        now = state.updated_at if state is not None and state.simulated else time.time()
        change = limits.Change(what=_changed(values, now), by=by or who(), at=now)
        after = limits.check(run, state, change, now=now)
        directory.change(change)
        return after

    def known(self) -> list[tuple[RunSettings, model.RunState | None]]:
        """All runs of the store with the settings that hold, the latest ones last."""
        found = [run_directory.RunDirectory(path.parent) for path in self.run_store.glob("*/settings.json")]
        found.sort(key=lambda directory: (directory.path / "settings.json").stat().st_mtime)
        return [(run, each.state()) for each in found if (run := each.settings()) is not None]

    def result(self, run_id: str) -> dict[str, Any]:
        """What a run came to, as JSON; empty of models while it is under way.

        Raises:
            InvalidInputError: there is no such run.
        """
        directory = self.directory(run_id)
        run, state = directory.settings(), directory.state()
        if run is None:
            raise self._unknown(run_id)
        return summary.summary(run, state)

    def met(self, run_id: str, condition: stopping.Condition) -> dict[str, Any] | None:
        """The round in which a run met a condition, as JSON; None while it may still.

        A run that is not known yet may still come.

        Raises:
            InvalidInputError: this is no run's id, or the condition does not fit the run's metric.
            FederatedRunFailedError: the run failed or was aborted before it met the condition.
            TargetNotReachedError: the run ended without meeting the condition.
        """
        directory = self.directory(run_id)
        run, state = directory.settings(), directory.state()
        if run is None or state is None:
            return None
        number = condition.met_in(run, state)
        if number is None:
            if missed := condition.out_of_question(run, state):
                raise missed
            return None
        value = next((done.value for done in state.rounds if done.number == number), None)
        told = condition.told(run)
        return {"run_id": run_id, "metric": run.target.metric, "value": value, "round": number, "condition": told}

    def awaited(self, run_id: str, condition: stopping.Condition) -> str:
        """What is waited for, for a person: the run itself while it is not known, then the condition."""
        run = self.directory(run_id).settings()
        if run is None:
            return f"run {run_id}: there is no such run yet in {self.run_store}; waiting for it"
        return f"run {run_id}: waiting for {condition.told(run)}"

    def follower(self, run_id: str, *, told: int | None = None) -> following.Follower:
        """Something to look at the run with, again and again, and to hear its news from.

        Args:
            run_id: the run.
            told: records of its journal that are no news; default is all that there are.
        """
        directory = self.directory(run_id)
        segment, job_id = directory.last_segment()
        seen = watch.Watch(segment=segment, began_s=time.monotonic())
        told = len(directory.records()) if told is None else told
        return following.Follower(self.admin, directory, seen, job_id, self.keeps_alive, records_seen=told)

    def _unknown(self, run_id: str) -> errors.InvalidInputError:
        return errors.InvalidInputError("run_id", run_id, f"there is no such run in {self.run_store}")

    def _check(self, run: RunSettings) -> None:
        if not self.run_store.is_dir():
            raise errors.InvalidInputError(
                "run_store",
                str(self.run_store),
                "is not a directory here; Airflow and the federation's server share it",
            )
        connected = set(self.admin.sites())
        # whom labels choose is known to the server alone
        wanted = connected if run.sites is None or labels.selects(run.sites) else set(run.sites)
        if len(wanted & connected) < run.min_nodes:
            known = ", ".join(sorted(connected)) or "none"
            raise errors.UnreachableError(
                f"{run.min_nodes} of the run's sites",
                "the federation",
                f"connected are {known}; start sites or lower min_nodes",
            )

    def _submit_patiently(self, directory: run_directory.RunDirectory, run: RunSettings, segment: int) -> None:
        """Submit to a federation that may be restarting: the server, and then enough of its sites, come back."""
        until = time.monotonic() + self.restart_patience_s
        while True:
            try:
                self._check(run)
                self._gather(directory)
                return self._submit(directory, run, segment)
            except errors.TransientError as exc:
                if (left_s := until - time.monotonic()) <= 0:
                    raise errors.TransientError(f"{exc}{self._so_far(directory)}") from exc
                log.info("waiting for the federation: %s", exc)
                time.sleep(min(exc.retry_after_s, RETRY_S, left_s))  # no event tells that a server is back

    def _gather(self, directory: run_directory.RunDirectory) -> None:
        """Wait a moment for those who took part until now: sites find a server that was restarted one by one."""
        state, until = directory.state(), time.monotonic() + self.gather_s
        lively = {site.name for site in state.sites if site.answered and not site.unanswered} if state else set()
        while lively - set(self.admin.sites()) and time.monotonic() < until:
            time.sleep(0.5)  # no event tells that a site has registered

    def _so_far(self, directory: run_directory.RunDirectory) -> str:
        """What a run that cannot go on now has come to, and where it is; empty before its first complete round."""
        state = directory.state()
        if state is None or not state.rounds:
            return ""
        return (
            f"; run {state.run_id} has {len(state.rounds)} complete rounds, the best is round {state.best_round} with "
            f"{state.metric} {state.best_value:.4f}, its weights are {directory.weights_path(state.best_round)}; "
            "a retry goes on there"
        )

    def _submit(self, directory: run_directory.RunDirectory, run: RunSettings, segment: int) -> None:
        directory.withdraw_stop()
        if self.keeps_alive:
            directory.needed()
        with tempfile.TemporaryDirectory(prefix="mlscale-job-") as scratch:
            folder = Path(scratch) / f"{run.run_id}.{segment}"
            job_folder.render(run, segment=segment, run_dir=directory.path.resolve(), folder=folder)
            job_id = self.admin.submit(folder, f"{run.run_id}.{segment}")
        directory.submitted(segment, job_id)
        log.info("submitted run %s, segment %d, as job %s", run.run_id, segment, job_id)


def _changed(values: Mapping[str, Any], now: float) -> dict[str, float | int | None]:
    """A change by the names of `limits`, out of what a person writes."""
    for name in values:
        checks.one_of(name, "limits", limits.ASKED)
    found = dict(values)
    if "deadline" in found and (deadline := found.pop("deadline")) is not None:
        deadlines.check(deadline)
        found["deadline_at"] = deadlines.resolve(deadline, started_at=datetime.fromtimestamp(now, UTC)).timestamp()
    elif "deadline" in values:
        found["deadline_at"] = None
    return found


def who() -> str:
    """The user and the machine of this process."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


def _halted(state: model.RunState | None, segment: int) -> bool:
    """Whether the last segment's work has come to a halt without an end that counts."""
    halts = (model.Status.ABORTED, model.Status.FAILED, model.Status.INTERRUPTED)
    return state is not None and state.segment >= segment and state.status in halts


def _comparable(run: RunSettings) -> Mapping[str, Any]:
    return {name: value for name, value in run.to_json().items() if name != "deadline_at"}
