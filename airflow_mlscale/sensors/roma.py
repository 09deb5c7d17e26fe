"""Waiting for a serving objective."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_mlscale import errors
from airflow_mlscale.hooks.outcome import translated
from airflow_mlscale.hooks.roma import RomaHook
from airflow_mlscale.operators.roma import summary_of, tell_outlets
from airflow_mlscale.operators.task_state import TaskStateJournal
from airflow_mlscale.roma import watch
from airflow_mlscale.runtime import journal
from airflow_mlscale.triggers.roma import PATIENCE_S, RomaObjectiveTrigger, condition_as_json


class RomaObjectiveSensor(BaseSensorOperator):
    """Succeeds when a model's measured percentile is within its objective; fails early if it cannot be.

    Requests that failed or were shed count as ones that took far too long. An unknown, failed or unloaded
    model fails the task at once, and so does a daemon that stays away for a minute.

    Args:
        model_name: the model. (templated)
        min_requests: requests in the window below which there is no verdict.
        window_s: seconds over which the percentile is measured.
        held_for: how long it must hold without a break, as a timedelta or in seconds.
        version: only this version counts; by default whichever serves. (templated)
        conn_id: connection of type ``mlscale_roma``.
        deferrable: wait in the triggerer instead of a worker.
        poke_interval: seconds between two looks.
        timeout: seconds until the task fails.

    Returns:
        A summary (XCom): ``model``, ``version``, ``objective_ms``, ``percentile``, ``p95_ms`` (after the
        percentile), ``requests``, ``errors``, ``met``, ``verdict``, ``cores``.

    Raises:
        InvalidInputError: an argument is wrong; names it, its value and the fix.
    """

    template_fields: Sequence[str] = ("model_name", "version")

    def __init__(
        self,
        *,
        model_name: str,
        min_requests: int = 100,
        window_s: float = 60.0,
        held_for: timedelta | float = 0.0,
        version: str | None = None,
        conn_id: str = RomaHook.default_conn_name,
        deferrable: bool = True,
        poke_interval: timedelta | float = 2.0,
        timeout: timedelta | float = 3600.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        held_for_s = held_for.total_seconds() if isinstance(held_for, timedelta) else held_for
        watch.ObjectiveCondition(min_requests=min_requests, window_s=window_s, held_for_s=held_for_s)
        if self.mode == "reschedule" and held_for_s > 0 and not deferrable:
            fix = "a rescheduled sensor forgets since when it held; use deferrable=True"
            raise errors.InvalidInputError("mode", self.mode, fix)
        self.model_name = model_name
        self.min_requests = min_requests
        self.window_s = window_s
        self.held_for_s = held_for_s
        self.version = version
        self.conn_id = conn_id
        self.deferrable = deferrable
        self._held_since: float | None = None
        self._seen_at = 0.0
        self._told = ""
        self._records: list[journal.Record] = []
        self._state: TaskStateJournal | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """One look in any case, so that a wrong name fails at once; then wait here or in the triggerer."""
        if not self.deferrable:
            result: dict[str, Any] = super().execute(context)
            return result
        if found := self.poke(context):
            return dict(found.xcom_value or {})
        self.defer(
            trigger=RomaObjectiveTrigger(
                conn_id=self.conn_id,
                model_name=self.model_name,
                condition=condition_as_json(self._condition()),
                poll_s=self.poke_interval,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=self.timeout),
        )
        raise AssertionError("defer raises")

    def execute_complete(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        """The triggerer saw the end."""
        look = watch.Look(done=True, told=event["told"], summary=summary_of(event))
        earlier = TaskStateJournal(context.get("task_state_store")).earlier()
        self._records = [*earlier, *journal.from_rows(event["journal"][:-1])]
        self._write_down(context, look, now=True)
        tell_outlets(self, context, look.summary)
        return dict(look.summary)

    def poke(self, context: Any) -> PokeReturnValue:
        """One look."""
        with translated():
            condition = self._condition()
            try:
                status = RomaHook(self.conn_id).status(self.model_name, window_s=self.window_s)
            except errors.TransientError as exc:
                return self._away(exc)
            now = self._seen_at = time.monotonic()
            look, self._held_since = watch.objective(status, condition, held_since=self._held_since, now=now)
            self._write_down(context, look, now=look.done)
            if look.done:
                tell_outlets(self, context, look.summary)
            return PokeReturnValue(is_done=look.done, xcom_value=dict(look.summary))

    def _away(self, exc: errors.TransientError) -> PokeReturnValue:
        """A daemon that was seen a moment ago may be restarting."""
        if time.monotonic() - self._seen_at > PATIENCE_S:
            raise exc
        self.log.warning("%s", exc)
        self._held_since = None
        return PokeReturnValue(is_done=False)

    def _condition(self) -> watch.ObjectiveCondition:
        return watch.ObjectiveCondition(
            min_requests=self.min_requests,
            window_s=self.window_s,
            held_for_s=self.held_for_s,
            version=self.version,
        )

    def _write_down(self, context: Any, look: watch.Look, *, now: bool) -> None:
        if look.told != self._told:
            self._told = look.told
            self.log.info(look.told)
        self._records.append(watch.record(look, at=time.time()))
        if self._state is None:
            self._state = TaskStateJournal(context.get("task_state_store"))
        self._state.publish(self._records, look.summary, now=now)
