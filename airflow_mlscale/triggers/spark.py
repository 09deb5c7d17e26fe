"""Bringing a Spark application to its deadline without a worker, when its driver runs in the cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlscale import errors
from airflow_mlscale.hooks import spark as hooks
from airflow_mlscale.hooks import telemetry
from airflow_mlscale.runtime import journal
from airflow_mlscale.runtime.aside import Aside
from airflow_mlscale.spark import cluster_run, follow, ticket
from airflow_mlscale.spark import profile as profiles
from airflow_mlscale.spark.model import Profile


class DeadlineSparkTrigger(BaseTrigger):
    """Controls a submission until the cluster says that it has ended, then fires once: see `event`.

    A triggerer that ends, however, ends nothing remote: the trigger goes on in the next one, from the meters
    of the CPU groups. Only a user who ends the task ends the application.

    Args:
        conn_id: connection of the cluster.
        submission: a `Ticket` as JSON.
        end_at: seconds since the epoch after which the application is ended; None for never.
    """

    def __init__(self, *, conn_id: str, submission: dict[str, Any], end_at: float | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.submission = submission
        self.end_at = end_at
        self._follower: follow.Follower | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        arguments = {"conn_id": self.conn_id, "submission": self.submission, "end_at": self.end_at}
        return f"{type(self).__module__}.{type(self).__name__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        try:
            known = ticket.from_json(self.submission)
            connection = await hooks.DeadlineSparkSubmitHook.aget_connection(self.conn_id)
            self._follower = await asyncio.to_thread(hooks.follower, known, connection, end_at=self.end_at)
            with Aside(telemetry.in_triggerer(self.task_instance), "Spark metrics", patience_s=1.0) as metrics:
                self._follower.journal.listen(metrics)
                found = event(known, await self._follower.run())
        except errors.MlscaleError as exc:
            found = failure(self.submission, exc)
        yield TriggerEvent(found)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """The user ended the task: end the application and leave no group of it."""
        known = ticket.from_json(self.submission)
        connection = await hooks.DeadlineSparkSubmitHook.aget_connection(self.conn_id)
        try:
            with closing(cluster_run.remote(known, hooks.access_of(connection))) as application:
                await follow.kill(application)
        finally:
            if self._follower is None:
                self._follower = await asyncio.to_thread(hooks.follower, known, connection)
            await asyncio.to_thread(self._follower.give_back)


def event(known: ticket.Ticket, outcome: follow.Outcome) -> dict[str, Any]:
    """What the task gets when the application has ended: plain values."""
    learned = None
    if outcome.plan is not None:
        learned = profiles.to_json(Profile(key=known.profile_key, plans=(outcome.plan,)))
    found = {
        "submission": known.to_json(),
        "state": str(outcome.status.state),
        "reason": outcome.status.reason,
        "summary": outcome.summary,
        "journal": journal.thin(outcome.records),
        "learned": learned,
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # no words of ours that only look like strings
    return plain


def failure(submission: dict[str, Any], exc: errors.MlscaleError) -> dict[str, Any]:
    """What the task gets when control itself had to give up; the application may still run if that may pass."""
    return {"submission": submission, "state": "error", "reason": str(exc), "retryable": exc.retryable}
