"""Waiting for the quality of a federated run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_mlscale import errors
from airflow_mlscale.federated import checks, metrics, stopping
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.hooks.outcome import translated
from airflow_mlscale.triggers.federated import FederatedAccuracyTrigger


class FederatedAccuracySensor(BaseSensorOperator):
    """Waits until a run's metric on its held-out data is good enough, or until it stalls or fails; in any DAG.

    Fails at once, instead of waiting for its timeout, when the run has ended without it. A run that is not known
    yet may still come: it is waited for, and the log says so.

    Args:
        run_id: the run: the XCom ``run_id`` of a `FederatedTrainingOperator`. (templated)
        at_least: what the metric must reach (at most this, for errors and losses); default is the run's own target.
        awaited: ``at_least``; or ``stalled``: ``stalled_rounds`` rounds without progress, or an end below the target;
            or ``failed``: the run failed or was aborted. The run's controller ends it by the same conditions.
        stalled_rounds: rounds without progress; default is the run's ``stall_rounds``.
        metric: the metric of the run's target, to be sure of it; a run that is measured by another one fails the task.
        in_a_row: evaluations in a row that must reach it; default is as many as the run's target wants.
        stop_run: once the condition is met, ask the run to end with the best model that it has; its operator returns
            that as a success.
        conn_id: connection of type ``mlscale_federated``. (templated)
        deferrable: wait in the triggerer instead of a worker's slot.
        poke_interval: seconds between two looks.

    Returns:
        ``run_id``, ``metric``, ``value``, the ``round`` in which it was reached, and the ``condition`` in words.

    Raises:
        InvalidInputError: the run is measured by another metric, or an argument is wrong.
        FederatedRunFailedError: the run failed or was aborted.
        TargetNotReachedError: the run ended below the condition.
    """

    template_fields: Sequence[str] = ("run_id", "conn_id")

    def __init__(
        self,
        *,
        run_id: str,
        at_least: float | None = None,
        awaited: str = stopping.Awaited.AT_LEAST,
        stalled_rounds: int | None = None,
        metric: str | None = None,
        in_a_row: int | None = None,
        stop_run: bool = False,
        conn_id: str = FederatedHook.default_conn_name,
        deferrable: bool = False,
        poke_interval: float = 2.0,
        timeout: float = 24 * 3600.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        self.run_id = run_id
        self.condition = _condition(awaited, at_least, metric, in_a_row, stalled_rounds)
        self.conn_id = conn_id
        self.deferrable = deferrable
        self.stop_run = stop_run
        self._told = ""
        if stop_run and self.condition.awaited == stopping.Awaited.FAILED:
            raise errors.InvalidInputError("stop_run", stop_run, "a run that has failed cannot be stopped")

    def execute(self, context: Any) -> Any:
        """Look once; then wait here or in the triggerer."""
        if not self.deferrable:
            return super().execute(context)
        done = self.poke(context)
        if done.is_done:
            return done.xcom_value
        return self.defer(
            trigger=FederatedAccuracyTrigger(
                run_id=self.run_id,
                condition=self.condition.to_json(),
                conn_id=self.conn_id,
                poll_s=float(self.poke_interval),
                stop_by=self._by(context) if self.stop_run else None,
            ),
            method_name="execute_complete",
            timeout=self.timeout,
        )

    def poke(self, context: Any) -> PokeReturnValue:
        """Whether the condition has been met."""
        with translated():
            if not self.run_id:
                raise errors.InvalidInputError("run_id", self.run_id, "give the run_id of a federated training task")
            runs = FederatedHook(self.conn_id).runs
            found = runs.met(self.run_id, self.condition)
            if found is not None:
                self._stop(context, found)
        if found is None and (awaited := runs.awaited(self.run_id, self.condition)) != self._told:
            self._told = awaited
            self.log.info(awaited)
        return PokeReturnValue(is_done=found is not None, xcom_value=found)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        """Return what the trigger found, or fail with its reason."""
        if event["status"] == "met":
            with translated():
                # The triggerer may have died before it asked; asking twice is asking once.
                self._stop(context, event["found"])
            return dict(event["found"])
        with translated():
            raise getattr(errors, event["error"], errors.FederatedRunFailedError)(event["reason"])

    def _stop(self, context: Any, found: Mapping[str, Any]) -> None:
        why = found["condition"]
        if self.stop_run and FederatedHook(self.conn_id).runs.end(self.run_id, by=self._by(context), why=why):
            self.log.info("run %s is asked to end: %s", self.run_id, why)

    def _by(self, context: Any) -> str:
        return f"sensor {context['ti'].dag_id}.{self.task_id}" if context.get("ti") else f"sensor {self.task_id}"


def _condition(
    awaited: str, at_least: float | None, metric: str | None, in_a_row: int | None, rounds: int | None
) -> stopping.Condition:
    """The condition of a sensor's arguments; refuses those that do not belong together."""
    checks.one_of(awaited, "awaited", [str(each) for each in stopping.Awaited])
    kind = stopping.Awaited(awaited)
    if at_least is not None:
        if kind != stopping.Awaited.AT_LEAST:
            fix = f"leave it out: this sensor waits for {awaited!r}"
            raise errors.InvalidInputError("at_least", at_least, fix)
        if known := metrics.METRICS.get(metric or ""):
            metrics.check_value("at_least", known, at_least)
        checks.check(checks.is_number(at_least), "at_least", at_least, "must be a finite number")
    return stopping.Condition(awaited=kind, value=at_least, metric=metric, in_a_row=in_a_row, rounds=rounds)
