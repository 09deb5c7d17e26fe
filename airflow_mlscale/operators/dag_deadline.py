"""``deadline="dag"``: the deadline that the DAG's own `DeadlineAlert` gives to a run.

A running task cannot ask Airflow for it; what the alert refers to is known to the task, as far as told here.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import Variable
from airflow.sdk.definitions import deadline as alerts
from airflow.sdk.exceptions import AirflowRuntimeError

from airflow_mlscale import errors

DAG = "dag"
"""Stands for the deadline of the DAG run."""

_FIX = "give the task a deadline of its own: a duration, a datetime or a template"


def check(dag: Any) -> None:
    """Refuse a DAG whose deadline cannot be known in a task, before anything runs.

    Raises:
        InvalidInputError: it has none, or one with a reference that only the scheduler can work out.
    """
    for alert in _alerts(dag):
        if not isinstance(alert.reference, _KNOWN):
            raise errors.InvalidInputError(
                "deadline",
                DAG,
                f"the DAG's deadline refers to {alert.reference.reference_name}, which a task cannot work out; "
                f"refer to DAGRUN_LOGICAL_DATE, DAGRUN_QUEUED_AT or FIXED_DATETIME there, or {_FIX}",
            )


def resolve(dag: Any, dag_run: Any) -> datetime:
    """The earliest of the DAG's deadlines for this run.

    The moment a run was queued is not told to its tasks: `DAGRUN_QUEUED_AT` is taken as ``run_after``, which is
    that moment or a little before.

    Raises:
        InvalidInputError: see `check`; or the run has no logical date, or a variable no usable value.
    """
    check(dag)
    return min(_reference(alert.reference, dag_run) + _interval(alert.interval) for alert in _alerts(dag))


_KNOWN = (alerts.DagRunLogicalDateDeadline, alerts.DagRunQueuedAtDeadline, alerts.FixedDatetimeDeadline)


def _alerts(dag: Any) -> Sequence[Any]:
    found = list(getattr(dag, "deadline", None) or ())
    if not found:
        raise errors.InvalidInputError(
            "deadline", DAG, f"the DAG has no deadline; add deadline=DeadlineAlert(...) to it, or {_FIX}"
        )
    return found


def _reference(reference: Any, dag_run: Any) -> datetime:
    if isinstance(reference, alerts.FixedDatetimeDeadline):
        moment = reference._datetime  # it has no public name
    elif isinstance(reference, alerts.DagRunQueuedAtDeadline):
        moment = dag_run.run_after
    else:
        moment = dag_run.logical_date
    if moment is None:
        raise errors.InvalidInputError(
            "deadline", DAG, "this run has no logical date (it was triggered without one); trigger it with one, or "
            f"refer to DAGRUN_QUEUED_AT in the DAG's deadline, or {_FIX}"
        )  # fmt: skip
    if moment.tzinfo is None:
        raise errors.InvalidInputError("deadline", moment.isoformat(), "FIXED_DATETIME needs a time zone")
    found: datetime = moment
    return found


def _interval(interval: Any) -> timedelta:
    if isinstance(interval, timedelta):
        return interval
    try:
        return timedelta(seconds=float(Variable.get(interval.key)))
    except (AirflowRuntimeError, KeyError, TypeError, ValueError, OverflowError) as exc:
        raise errors.InvalidInputError(
            "deadline", DAG, f"the variable {interval.key!r} of the DAG's deadline must hold seconds: {exc}"
        ) from exc
