"""Putting models into service."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlscale import errors
from airflow_mlscale.hooks.outcome import translated
from airflow_mlscale.hooks.roma import RomaHook
from airflow_mlscale.operators.task_state import TaskStateJournal
from airflow_mlscale.roma import model, watch
from airflow_mlscale.roma.model import Objective
from airflow_mlscale.runtime import journal
from airflow_mlscale.triggers.roma import LONG_POLL_S, RomaDeployTrigger

__all__ = ["Objective", "RomaDeployOperator"]


class RomaDeployOperator(BaseOperator):
    """Deploys a SavedModel to ROMA and waits until it is loaded and warm.

    A version that serves goes on serving until the new one is warm, and stays if the new one fails. A retry
    of the task finds its own deployment again: the same files are not loaded twice.

    Args:
        conn_id: connection of type ``mlscale_roma``.
        model_name: name under which the model is served. (templated)
        artefact: directory of the SavedModel on ROMA's host. (templated)
        version: name of the version; by default one more than the last if the files are new. (templated)
        objective: percentile and milliseconds to keep.
        min_cores: guarantee that is never taken away; refused if the host cannot give it.
        max_cores: most cores the model's guarantee may grow to.
        priority: under contention a higher one is served first.
        max_batch: most requests joined into one execution.
        load_timeout: how long loading and warming up may take.
        deferrable: wait in the triggerer instead of a worker.

    Returns:
        A summary (XCom): ``model``, ``version``, ``state``, ``objective_ms``, ``percentile``, ``load_s``,
        ``cores`` and more.

    Raises:
        InvalidInputError: an argument is wrong; names it, its value and the fix.
    """

    template_fields: Sequence[str] = ("model_name", "artefact", "version")

    def __init__(
        self,
        *,
        model_name: str,
        artefact: str,
        version: str | None = None,
        objective: Objective = Objective(milliseconds=50),
        min_cores: float | None = None,
        max_cores: float | None = None,
        priority: int | None = None,
        max_batch: int | None = None,
        load_timeout: timedelta | float = timedelta(minutes=10),
        conn_id: str = RomaHook.default_conn_name,
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(objective, Objective):
            raise errors.InvalidInputError("objective", objective, "give an Objective(milliseconds=50, percentile=95)")
        self.model_name = model_name
        self.artefact = artefact
        self.version = version
        self.objective = objective
        self.min_cores = min_cores
        self.max_cores = max_cores
        self.priority = priority
        self.max_batch = max_batch
        self.load_timeout = load_timeout if isinstance(load_timeout, timedelta) else timedelta(seconds=load_timeout)
        self.conn_id = conn_id
        self.deferrable = deferrable
        self._records: list[journal.Record] = []

    def execute(self, context: Any) -> dict[str, Any]:
        """Deploy, then wait here or in the triggerer."""
        with translated():
            hook = RomaHook(self.conn_id)
            status = hook.deploy(self._order())
            version = watch.pending_version(status)
            self.log.info(
                "deploying %s version %s from %s to %s, p%g within %g ms",
                self.model_name,
                version,
                status["artefact"],
                hook.address,
                self.objective.percentile,
                self.objective.milliseconds,
            )
            ordered = watch.Look(done=False, told=f"version {version} ordered", summary=watch.summary(status))
            self._publish(context, ordered)
            if not self.deferrable:
                return self._finish(context, self._wait(context, hook, version))
            if not (look := watch.deployed(status, version)).done:
                self.defer(
                    trigger=RomaDeployTrigger(conn_id=self.conn_id, model_name=self.model_name, version=version),
                    method_name="execute_complete",
                    timeout=self.load_timeout,
                )
            return self._finish(context, look)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        """The triggerer saw the end."""
        look = watch.Look(done=True, told=event["told"], summary=summary_of(event))
        earlier = TaskStateJournal(context.get("task_state_store")).earlier()
        self._records = [*earlier, *journal.from_rows(event["journal"][:-1])]
        return self._finish(context, look)

    def _order(self) -> model.DeployOrder:
        return model.DeployOrder(
            name=model.check_name("model_name", self.model_name),
            artefact=self.artefact,
            version=self.version,
            objective=self.objective,
            min_cores=self.min_cores,
            max_cores=self.max_cores,
            priority=self.priority,
            max_batch=self.max_batch,
        )

    def _wait(self, context: Any, hook: RomaHook, version: str) -> watch.Look:
        give_up_at = time.monotonic() + self.load_timeout.total_seconds()
        told = ""
        while (left_s := give_up_at - time.monotonic()) > 0:
            status = hook.status(self.model_name, settled_within_s=min(LONG_POLL_S, left_s))
            look = watch.deployed(status, version)
            if look.done:
                return look
            if look.told != told:
                told = look.told
                self.log.info(told)
                self._publish(context, look)
            if status["settled"]:  # restarting: there is nothing to settle, so the daemon answers at once
                time.sleep(1)
        limit_s = self.load_timeout.total_seconds()
        raise errors.RunFailedError(f"version {version} of {self.model_name!r} was not ready after {limit_s:.0f} s")

    def _finish(self, context: Any, look: watch.Look) -> dict[str, Any]:
        self.log.info(look.told)
        self._publish(context, look)
        tell_outlets(self, context, look.summary)
        return dict(look.summary)

    def _publish(self, context: Any, look: watch.Look) -> None:
        self._records.append(watch.record(look, at=time.time()))
        TaskStateJournal(context.get("task_state_store")).publish(self._records, look.summary, now=True)


def summary_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """The summary in a trigger's event.

    Raises:
        AirflowFailException: the event is a failure that another try cannot mend.
        RunFailedError: it is one that may pass.
    """
    if event["status"] == "done":
        return dict(event["summary"])
    if event["retryable"]:
        raise errors.RunFailedError(event["told"])
    raise AirflowFailException(event["told"])


def tell_outlets(task: BaseOperator, context: Any, summary: Mapping[str, Any]) -> None:
    """Put the summary into the events of the task's outlet assets."""
    if task.outlets and "outlet_events" in context:
        for outlet in task.outlets:
            context["outlet_events"][outlet].extra = dict(summary)
