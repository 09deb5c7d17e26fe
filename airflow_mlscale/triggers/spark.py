"""Bringing a Spark application to its deadline without a worker, when its driver runs in the cluster."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlscale import errors
from airflow_mlscale.hooks import callbacks, telemetry
from airflow_mlscale.hooks import spark as hooks
from airflow_mlscale.runtime import journal
from airflow_mlscale.runtime.aside import Aside
from airflow_mlscale.spark import changes, cluster_run, follow, ticket
from airflow_mlscale.spark import profile as profiles
from airflow_mlscale.spark.model import Profile

log = logging.getLogger(__name__)


class DeadlineSparkTrigger(BaseTrigger):
    """Controls a submission until the cluster says that it has ended, then fires once: see `event`.

    A triggerer that ends, however, ends nothing remote: the trigger goes on in the next one, from the meters
    of the CPU groups. Only a user who ends the task ends the application.

    Args:
        conn_id: connection of the cluster.
        submission: a `Ticket` as JSON.
        end_at: seconds since the epoch after which the application is ended; None for never.
        on_outlook_change: whom to call at once when the outlook has changed, see `callbacks.travelling`.
    """

    def __init__(
        self,
        *,
        conn_id: str,
        submission: dict[str, Any],
        end_at: float | None = None,
        on_outlook_change: Sequence[dict[str, Any]] = (),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.submission = submission
        self.end_at = end_at
        self.on_outlook_change = list(on_outlook_change)
        self._follower: follow.Follower | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        arguments = {
            "conn_id": self.conn_id,
            "submission": self.submission,
            "end_at": self.end_at,
            "on_outlook_change": self.on_outlook_change,
        }
        return f"{type(self).__module__}.{type(self).__name__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        try:
            known = ticket.from_json(self.submission)
            connection = await hooks.DeadlineSparkSubmitHook.aget_connection(self.conn_id)
            self._follower = await asyncio.to_thread(hooks.follower, known, connection, end_at=self.end_at)
            found = await self._looked_on(known, self._follower)
        except errors.MlscaleError as exc:
            found = failure(self.submission, exc)
        yield TriggerEvent(found)  # type: ignore[no-untyped-call]

    async def _looked_on(self, known: ticket.Ticket, follower: follow.Follower) -> dict[str, Any]:
        """Control until the end, with metrics and callbacks beside it; returns the event."""
        callees = [callbacks.Callee(**each) for each in self.on_outlook_change]
        herald = callbacks.Herald(callees, callbacks.identity(self.task_instance))
        metrics = telemetry.in_triggerer(self.task_instance, follower.journal.records())
        async with (
            Aside(metrics, "Spark metrics", patience_s=1.0) as gauges,
            Aside(herald, "on_outlook_change", patience_s=callbacks.PATIENCE_S) as tell,
        ):
            # Of what is in the journal, the triggerer before this one has told.
            news = changes.News(follower.journal.records(), tell)
            herald.told = len(news.found)
            follower.journal.listen(gauges)
            follower.journal.listen(news)
            outcome = await follower.run()
        heard = await asyncio.to_thread(herald.account)
        return event(known, outcome, news=news.found, heard=heard)

    async def on_kill(self) -> None:
        """The user ended the task: end the application and leave no group of it."""
        known = ticket.from_json(self.submission)
        connection = await hooks.DeadlineSparkSubmitHook.aget_connection(self.conn_id)
        try:
            with closing(cluster_run.remote(known, hooks.access_of(connection))) as application:
                await follow.kill(application)
        except BaseException:  # cancelled too: Airflow grants `[triggerer] on_kill_timeout`
            log.exception(
                "%s was not ended and may run on: end %s by hand", known.name, known.application_id or known.run
            )
            raise
        finally:
            if self._follower is None:
                self._follower = await asyncio.to_thread(hooks.follower, known, connection)
            await asyncio.to_thread(self._follower.give_back)


def event(
    known: ticket.Ticket,
    outcome: follow.Outcome,
    *,
    news: Sequence[changes.Change] = (),
    heard: Sequence[tuple[str, int]] = (),
) -> dict[str, Any]:
    """What the task gets when the application has ended: plain values.

    Args:
        known: the submission.
        outcome: how it ended.
        news: changes of the outlook that somebody should hear of, in order.
        heard: by callback how many of them were told, see `callbacks.Herald.account`.
    """
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
        "outlooks": {"changes": [changes.to_row(change) for change in news], "heard": heard},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))  # no words of ours that only look like strings
    return plain


def failure(submission: dict[str, Any], exc: errors.MlscaleError) -> dict[str, Any]:
    """What the task gets when control itself had to give up; the application may still run if that may pass."""
    return {"submission": submission, "state": "error", "reason": str(exc), "retryable": exc.retryable}
