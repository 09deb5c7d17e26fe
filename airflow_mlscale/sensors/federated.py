"""Waiting for the quality of a federated run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_mlscale import errors
from airflow_mlscale.federated import checks, metrics, model, stopping
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.hooks.outcome import translated
from airflow_mlscale.triggers.federated import FederatedAccuracyTrigger


class FederatedAccuracySensor(BaseSensorOperator):
    """Waits until a run's metric on its held-out data is good enough, or until it stalls or fails; in any DAG.

    Fails at once, instead of waiting for its timeout, when the run has ended without it. A run that is not known
    yet may still come: it is waited for, and the log says so.

    Args:
        run_id: the run: the XCom ``run_id`` of a `FederatedTrainingOperator`. (templated)
        at_least: what the metric must reach (at most this, for errors and losses).
        awaited: ``at_least``; or ``stalled``: ``stalled_rounds`` rounds without progress, or an end below the target;
            or ``failed``: the run failed or was aborted.
        stalled_rounds: rounds without progress.
        metric: the metric of the run's target.
        higher_is_better: of a metric that is not one of Keras'.
        in_a_row: evaluations in a row that must reach it.
        stop_run: once the condition is met, ask the run to end with the best model that it has; its operator returns
            that as a success.
        conn_id: connection of type ``mlscale_federated``. (templated)
        deferrable: wait in the triggerer instead of a worker's slot.
        poke_interval: seconds between two looks.

    Returns:
        ``run_id``, ``metric``, ``value`` and the ``round`` in which it was reached.

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
        stalled_rounds: int = 10,
        metric: str = "accuracy",
        higher_is_better: bool | None = None,
        in_a_row: int = 1,
        stop_run: bool = False,
        conn_id: str = FederatedHook.default_conn_name,
        deferrable: bool = False,
        poke_interval: float = 2.0,
        timeout: float = 24 * 3600.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, timeout=timeout, **kwargs)
        self.run_id = run_id
        self.condition = _condition(awaited, at_least, metric, in_a_row, stalled_rounds, higher_is_better)
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
                self._stop(context)
        if found is None and (awaited := runs.awaited(self.run_id, self.condition)) != self._told:
            self._told = awaited
            self.log.info(awaited)
        return PokeReturnValue(is_done=found is not None, xcom_value=found)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        """Return what the trigger found, or fail with its reason."""
        if event["status"] == "met":
            with translated():
                self._stop(context)  # the triggerer may have died before it asked; asking twice is asking once
            return dict(event["found"])
        with translated():
            raise getattr(errors, event["error"], errors.FederatedRunFailedError)(event["reason"])

    def _stop(self, context: Any) -> None:
        if self.stop_run and FederatedHook(self.conn_id).runs.end(
            self.run_id, by=self._by(context), why=str(self.condition)
        ):
            self.log.info("run %s is asked to end: %s", self.run_id, self.condition)

    def _by(self, context: Any) -> str:
        return f"sensor {context['ti'].dag_id}.{self.task_id}" if context.get("ti") else f"sensor {self.task_id}"


def _condition(
    awaited: str, at_least: float | None, metric: str, in_a_row: int, rounds: int, higher_is_better: bool | None
) -> stopping.Condition:
    """The condition of a sensor's arguments; refuses those that do not belong together."""
    checks.one_of(awaited, "awaited", [str(each) for each in stopping.Awaited])
    kind = stopping.Awaited(awaited)
    scale = metrics.named(metric, higher_is_better=higher_is_better)
    if kind == stopping.Awaited.AT_LEAST:
        if scale.best is not None and checks.is_number(at_least):  # how good such a metric can be matters to runs alone
            scale = replace(scale, best=at_least + 1 if scale.higher_is_better else at_least - 1)  # type: ignore[operator]
        metrics.check_value("at_least", scale, at_least)
    elif at_least is not None:
        raise errors.InvalidInputError("at_least", at_least, f"leave it out: this sensor waits for {awaited!r}")
    value = _ANY if at_least is None else at_least
    quality = model.Quality(metric, value, in_a_row=in_a_row, higher_is_better=higher_is_better, best=scale.best)
    return stopping.Condition(awaited=kind, quality=quality, rounds=rounds)


_ANY = 1.0
"""A value that every metric allows, where none is looked at."""
