"""Runs as seen by whoever wants one: begin or re-attach, follow, go on after a loss, stop, read the result.

Talks to the federation through its admin port and to the run through its directory; knows no Airflow.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import card, labels, model, ports, stopping, watch
from airflow_mlscale.federated.adapters import job_folder, run_directory
from airflow_mlscale.federated.settings import RunSettings, check_run_id

log = logging.getLogger(__name__)

STATUS_EVERY_S = 5.0
"""How often the engine is asked about a job that has not begun."""


@dataclass
class RunClient:
    """One federation and its run store."""

    admin: ports.FederationAdmin
    run_store: Path
    max_segments: int = 5
    """Segments of one run, the first included; a run that is lost more often fails."""
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
        known = directory.settings()
        if known is not None and _comparable(known) != _comparable(run):
            log.warning("run %s is known with other settings; it keeps those it began with", run.run_id)
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
            self._submit(directory, directory.create(run), segment + 1)
        return run

    def next_segment(self, run_id: str, reason: str) -> int:
        """Let a lost run go on in a new segment; returns its number.

        Raises:
            FederatedRunFailedError: the run was lost too often.
            UnreachableError: the federation does not answer.
        """
        directory = self.directory(run_id)
        run, (segment, job_id) = directory.settings(), directory.last_segment()
        if run is None:
            raise errors.InvalidInputError("run_id", run_id, f"there is no such run in {self.run_store}")
        if segment >= self.max_segments:
            raise errors.FederatedRunFailedError(f"run {run_id} was lost {segment} times, last because: {reason}")
        log.warning("segment %d of run %s is lost (%s); submitting segment %d", segment, run_id, reason, segment + 1)
        if job_id:
            with contextlib.suppress(errors.MlscaleError):  # a job that is gone cannot be aborted
                self.admin.abort(job_id)
        self._submit_patiently(directory, run, segment + 1)
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

    def result(self, run_id: str) -> dict[str, Any]:
        """What a run came to, as JSON; empty of models while it is under way.

        Raises:
            InvalidInputError: there is no such run.
        """
        directory = self.directory(run_id)
        run, state = directory.settings(), directory.state()
        if run is None:
            raise errors.InvalidInputError("run_id", run_id, f"there is no such run in {self.run_store}")
        return summary(run, state)

    def met(self, run_id: str, condition: stopping.Condition) -> dict[str, Any] | None:
        """The round in which a run met a condition, as JSON; None while it may still.

        A run that is not known yet may still come.

        Raises:
            InvalidInputError: this is no run's id, or the run is measured by another metric.
            FederatedRunFailedError: the run failed or was aborted before it met the condition.
            TargetNotReachedError: the run ended without meeting the condition.
        """
        directory = self.directory(run_id)
        run, state = directory.settings(), directory.state()
        if run is None or state is None:
            return None
        metric = condition.quality.metric
        if condition.awaited == stopping.Awaited.AT_LEAST and run.target.metric != metric:
            raise errors.InvalidInputError(
                "metric", metric, f"run {run_id} is measured by its target's metric {run.target.metric!r}; use that"
            )
        number = condition.met_in(state)
        if number is None:
            if missed := condition.out_of_question(state):
                raise missed
            return None
        value = next((done.value for done in state.rounds if done.number == number), None)
        return {"run_id": run_id, "metric": run.target.metric, "value": value, "round": number}

    def awaited(self, run_id: str, condition: stopping.Condition) -> str:
        """What is waited for, for a person: the run itself while it is not known, then the condition."""
        if not self.directory(run_id).exists():
            return f"run {run_id}: there is no such run yet in {self.run_store}; waiting for it"
        return f"run {run_id}: waiting for {condition}"

    def follower(self, run_id: str) -> Follower:
        """Something to look at the run with, again and again; it tells about rounds that are still to come."""
        directory = self.directory(run_id)
        segment, job_id = directory.last_segment()
        state = directory.state()
        done = len(state.rounds) if state else 0
        return Follower(self, run_id, watch.Watch(segment=segment, began_s=time.monotonic()), job_id, rounds_seen=done)

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
                return self._submit(directory, run, segment)
            except errors.TransientError as exc:
                if time.monotonic() > until:
                    raise
                log.info("waiting for the federation: %s", exc)
                time.sleep(exc.retry_after_s)

    def _submit(self, directory: run_directory.RunDirectory, run: RunSettings, segment: int) -> None:
        directory.withdraw_stop()
        with tempfile.TemporaryDirectory(prefix="mlscale-job-") as scratch:
            folder = Path(scratch) / f"{run.run_id}.{segment}"
            job_folder.render(run, segment=segment, run_dir=directory.path.resolve(), folder=folder)
            job_id = self.admin.submit(folder, f"{run.run_id}.{segment}")
        directory.submitted(segment, job_id)
        log.info("submitted run %s, segment %d, as job %s", run.run_id, segment, job_id)


@dataclass
class Follower:
    """Looks at one segment of one run."""

    client: RunClient
    run_id: str
    seen: watch.Watch
    job_id: str | None
    rounds_seen: int = 0
    _status_asked_s: float = 0.0

    def look(self) -> watch.Look:
        """One look; blocks for up to a few seconds while the segment has not begun."""
        directory = self.client.directory(self.run_id)
        now_s = time.monotonic()
        job_over = self._job_over(now_s)  # first: a run that ends while the engine answers must not look lost
        found, self.seen = watch.look(
            self.seen,
            state=directory.state(),
            beat=_beat(directory.heartbeat()),
            job_over=job_over,
            now_s=now_s,
        )
        return found

    def new_rounds(self, told: Callable[[str], None]) -> model.RunState | None:
        """Tell about every round since the last call, in words; returns the state."""
        directory = self.client.directory(self.run_id)
        state, run = directory.state(), directory.settings()
        if state is None or run is None:
            return state
        for done in state.rounds[self.rounds_seen :]:
            told(describe(run, done, now=time.time()))
        self.rounds_seen = max(self.rounds_seen, len(state.rounds))
        return state

    def _job_over(self, now_s: float) -> bool:
        asked_lately = now_s - self._status_asked_s < STATUS_EVERY_S
        if self.job_id is None or asked_lately or not watch.in_doubt(self.seen, now_s=now_s):
            return False
        self._status_asked_s = now_s
        try:
            status = self.client.admin.job_status(self.job_id)
        except errors.UnreachableError:
            return False
        return status is None or status.startswith("FINISHED")


def describe(run: RunSettings, done: model.Round, *, now: float) -> str:
    """One line about one round, for a person."""
    left = "no deadline" if run.deadline_at is None else f"{max(0.0, run.deadline_at - now):.0f} s left"
    return (
        f"round {done.number} of at most {run.max_rounds}: "
        f"{run.target.metric} {done.value:.4f} (target {run.target.value:g}), "
        f"{len(done.answered)} of {len(done.asked)} sites, {done.seconds:.1f} s, {left}"
    )


def summary(run: RunSettings, state: model.RunState | None) -> dict[str, Any]:
    """A run as one JSON object: the operator's XCom."""
    state = state or model.RunState(run_id=run.run_id, deadline_at=run.deadline_at)
    reached = state.status == model.Status.REACHED
    return {
        "run_id": run.run_id,
        "metric": run.target.metric,
        "target": run.target.value,
        "reached": reached,
        "accuracy": state.best_value,
        "value": state.best_value,
        "rounds": len(state.rounds),
        "best_round": state.best_round,
        "stopped_early": reached and len(state.rounds) < run.max_rounds,
        "stopped_reason": state.reason,
        "status": str(state.status),
        "simulated": state.simulated,
        "segments": state.segment,
        "started_at": state.started_at,
        "finished_at": state.updated_at,
        "deadline_at": run.deadline_at,
        "seconds": round(state.updated_at - state.started_at, 3),
        "node_seconds": round(state.node_seconds, 3),
        "gigabytes": state.gigabytes,
        "forecast": state.forecast,
        "epsilon": state.epsilon,
        "delta": run.privacy.delta if run.privacy else None,
        "saved_model": state.saved_model,
        "keras_model": state.keras_model,
        "model_card": str(Path(state.saved_model).parent / card.FILE) if state.saved_model else None,
        "rounds_table": [
            {
                "round": done.number, "value": done.value, "loss": done.loss, "seconds": done.seconds,
                "asked": len(done.asked), "answered": len(done.answered), "samples": done.samples,
                "segment": done.segment, "late": len(done.late), "epochs": max(done.epochs.values(), default=0),
                "node_s": done.node_s,
            }
            for done in state.rounds
        ],
        "sites_table": [
            {
                "site": site.name, "samples": site.samples, "overhead_s": site.overhead_s, "epoch_s": site.epoch_s,
                "reliability": round(site.reliability, 3), "asked": site.asked, "answered": site.answered,
                "node_s": round(site.busy_s, 3), "gigabytes": site.gigabytes,
            }
            for site in state.sites
        ],
    }  # fmt: skip


def _halted(state: model.RunState | None, segment: int) -> bool:
    """Whether the last segment's work has come to a halt without an end that counts."""
    halts = (model.Status.ABORTED, model.Status.FAILED, model.Status.INTERRUPTED)
    return state is not None and state.segment >= segment and state.status in halts


def _comparable(run: RunSettings) -> Mapping[str, Any]:
    return {name: value for name, value in run.to_json().items() if name != "deadline_at"}


def _beat(text: str | None) -> tuple[int, str] | None:
    if text is None:
        return None
    try:
        return int(json.loads(text)["segment"]), text
    except (ValueError, KeyError, TypeError):
        return None
