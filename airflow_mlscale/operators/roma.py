"""Putting models into service, trying new versions, going back, taking them out."""

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
from airflow_mlscale.roma import devices, model, runtimes, watch
from airflow_mlscale.roma.model import Canary, Objective
from airflow_mlscale.roma.runtimes import Runtime
from airflow_mlscale.runtime import journal
from airflow_mlscale.triggers.roma import LONG_POLL_S, RomaDeployTrigger

__all__ = [
    "Canary",
    "Objective",
    "RomaDeployOperator",
    "RomaPromoteOperator",
    "RomaRollbackOperator",
    "RomaUndeployOperator",
    "Runtime",
]


class RomaVersionOperator(BaseOperator):
    """What the operators share that bring a version into service: they order it, and wait until it is there.

    Args:
        model_name: name under which the model is served. (templated)
        version: which version is meant. (templated)
        load_timeout: how long loading and warming up may take.
        conn_id: connection of type ``mlscale_roma``.
        deferrable: wait in the triggerer instead of a worker.
    """

    template_fields: Sequence[str] = ("model_name", "version")

    def __init__(
        self,
        *,
        model_name: str,
        version: str | None = None,
        load_timeout: timedelta | float = timedelta(minutes=10),
        conn_id: str = RomaHook.default_conn_name,
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.version = version
        self.load_timeout = load_timeout if isinstance(load_timeout, timedelta) else timedelta(seconds=load_timeout)
        self.conn_id = conn_id
        self.deferrable = deferrable
        self._records: list[journal.Record] = []

    def order(self, hook: RomaHook) -> dict[str, Any]:
        """Ask the daemon for it; returns the model's status."""
        raise NotImplementedError

    def execute(self, context: Any) -> dict[str, Any]:
        """Order, then wait here or in the triggerer."""
        with translated():
            model.check_name("model_name", self.model_name)
            hook = RomaHook(self.conn_id)
            status = self.order(hook)
            version = watch.pending_version(status)
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


class RomaDeployOperator(RomaVersionOperator):
    """Deploys a model to ROMA and waits until it is loaded and warm.

    A version that serves goes on serving until the new one is warm, and stays if the new one fails. A retry
    of the task finds its own deployment again: the same files are not loaded twice.

    Args:
        conn_id: connection of type ``mlscale_roma``.
        model_name: name under which the model is served. (templated)
        artefact: path of the model on ROMA's host, or a URL that ROMA can read. (templated)
        version: name of the version; by default one more than the highest so far if the files are new. (templated)
        objective: percentile and milliseconds to keep, set anew by each run.
        min_cores: guarantee that is never taken away; refused if the host cannot give it.
        max_cores: most cores the model's guarantee may grow to.
        priority: under contention a higher one is served first.
        max_batch: most requests joined into one execution.
        device: what executes it: ``auto`` (whatever is expected to be done first), ``cpu`` or ``gpu``.
        gpu_memory_mb: memory to reserve on a GPU; by default measured.
        max_memory_mb: resident memory of its worker above which a fresh one takes its place.
        runtime: what computes it, such as ``"auto"``, or a `Runtime` with tolerances.
        checksum: refuse files with another sha256. (templated)
        canary: try it on a part of the requests first, if a version serves already; the task is done when it takes
            its part, and `RomaPromoteOperator` or `RomaRollbackOperator` decides.
        load_timeout: how long loading and warming up may take.
        deferrable: wait in the triggerer instead of a worker.

    Returns:
        A summary (XCom): ``model``, ``version``, ``state``, ``objective_ms``, ``percentile``, ``load_s``,
        ``cores`` and more; of a canary also ``stable_version``, ``canary_fraction`` and ``canary``.

    Raises:
        InvalidInputError: an argument is wrong; names it, its value and the fix.
    """

    template_fields: Sequence[str] = ("model_name", "artefact", "version", "checksum")

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
        device: devices.Preference | None = None,
        gpu_memory_mb: float | None = None,
        max_memory_mb: float | None = None,
        runtime: Runtime | str | None = None,
        checksum: str | None = None,
        canary: Canary | None = None,
        load_timeout: timedelta | float = timedelta(minutes=10),
        conn_id: str = RomaHook.default_conn_name,
        deferrable: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model_name=model_name,
            version=version,
            load_timeout=load_timeout,
            conn_id=conn_id,
            deferrable=deferrable,
            **kwargs,
        )
        if not isinstance(objective, Objective):
            raise errors.InvalidInputError("objective", objective, "give an Objective(milliseconds=50, percentile=95)")
        if canary is not None and not isinstance(canary, Canary):
            raise errors.InvalidInputError("canary", canary, "give a Canary(fraction=0.1)")
        self.artefact = artefact
        self.objective = objective
        self.min_cores = min_cores
        self.max_cores = max_cores
        self.priority = priority
        self.max_batch = max_batch
        self.device = device
        self.gpu_memory_mb = gpu_memory_mb
        self.max_memory_mb = max_memory_mb
        self.runtime = runtimes.from_json(runtime)
        self.checksum = checksum
        self.canary = canary

    def order(self, hook: RomaHook) -> dict[str, Any]:
        """Deploy it."""
        status = hook.deploy(self._order())
        self.log.info(
            "deploying %s version %s from %s to %s, p%g within %g ms",
            self.model_name,
            watch.pending_version(status),
            self.artefact,
            hook.address,
            self.objective.percentile,
            self.objective.milliseconds,
        )
        return status

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
            device=self.device,
            gpu_memory_mb=self.gpu_memory_mb,
            max_memory_mb=self.max_memory_mb,
            canary=self.canary,
            runtime=self.runtime,
            checksum=self.checksum,
        )


class RomaPromoteOperator(RomaVersionOperator):
    """Lets the version that is tried serve every request. A retry of the task finds it promoted.

    Args:
        model_name: the model. (templated)
        version: which version to promote; the task fails if another one is tried. By default whichever. (templated)
        reason: for the journal. (templated)
        load_timeout: how long to wait if the version is still being loaded.
        conn_id: connection of type ``mlscale_roma``.
        deferrable: wait in the triggerer instead of a worker.

    Returns:
        A summary (XCom), as of `RomaDeployOperator`.
    """

    template_fields: Sequence[str] = ("model_name", "version", "reason")

    def __init__(self, *, model_name: str, reason: str = "promoted by a task", **kwargs: Any) -> None:
        super().__init__(model_name=model_name, **kwargs)
        self.reason = reason

    def order(self, hook: RomaHook) -> dict[str, Any]:
        """Promote it."""
        return hook.promote(self.model_name, version=self.version, reason=self.reason)


class RomaRollbackOperator(RomaVersionOperator):
    """Leaves the version that is tried or, without one, goes back to the version that served before.

    Args:
        model_name: the model. (templated)
        version: which version to leave; one that was left already changes nothing. By default the latest. (templated)
        reason: for the journal and the model's status. (templated)
        load_timeout: how long loading the version before may take.
        conn_id: connection of type ``mlscale_roma``.
        deferrable: wait in the triggerer instead of a worker.

    Returns:
        A summary (XCom) of the version that serves then, as of `RomaDeployOperator`.
    """

    template_fields: Sequence[str] = ("model_name", "version", "reason")

    def __init__(self, *, model_name: str, reason: str = "rolled back by a task", **kwargs: Any) -> None:
        super().__init__(model_name=model_name, **kwargs)
        self.reason = reason

    def order(self, hook: RomaHook) -> dict[str, Any]:
        """Leave it."""
        return hook.roll_back(self.model_name, version=self.version, reason=self.reason)


class RomaUndeployOperator(BaseOperator):
    """Takes a model out of service and forgets it; what it had accepted is still answered.

    A model that is not served (any more) is no failure, so that a task can be tried again.

    Args:
        model_name: the model. (templated)
        conn_id: connection of type ``mlscale_roma``.

    Returns:
        ``{"model": …, "removed": …}`` (XCom): whether it was served.
    """

    template_fields: Sequence[str] = ("model_name",)

    def __init__(self, *, model_name: str, conn_id: str = RomaHook.default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model_name = model_name
        self.conn_id = conn_id

    def execute(self, context: Any) -> dict[str, Any]:
        """Remove it."""
        with translated():
            removed = True
            try:
                RomaHook(self.conn_id).undeploy(model.check_name("model_name", self.model_name))
            except errors.InvalidInputError as exc:
                if exc.field != "model":
                    raise
                removed = False
                self.log.info("%s", exc)
            summary = {"model": self.model_name, "removed": removed}
            tell_outlets(self, context, summary)
            return summary


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
