"""The deadline of a DAG run, as a task finds it out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, DeadlineAlert, DeadlineReference, SyncCallback
from airflow.sdk.definitions.deadline import VariableInterval

from airflow_mlscale import errors
from airflow_mlscale.operators import dag_deadline
from airflow_mlscale.operators.promises import PROMISE_KEY
from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator
from tests.fakes.federated_task import StateStore

NOON = datetime(2126, 1, 1, 12, tzinfo=UTC)
RUN = SimpleNamespace(logical_date=NOON, run_after=NOON + timedelta(minutes=3))


def alert(reference: Any, interval: Any = timedelta(hours=1)) -> DeadlineAlert:
    return DeadlineAlert(reference=reference, interval=interval, callback=SyncCallback("airflow.sdk.timezone.utcnow"))


def dag(*alerts: DeadlineAlert) -> DAG:
    return DAG("d", deadline=list(alerts) or None)


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        ([DeadlineReference.DAGRUN_LOGICAL_DATE], NOON + timedelta(hours=1)),
        ([DeadlineReference.DAGRUN_QUEUED_AT], NOON + timedelta(minutes=63)),
        ([DeadlineReference.FIXED_DATETIME(NOON)], NOON + timedelta(hours=1)),
        (  # the earliest of several
            [DeadlineReference.DAGRUN_QUEUED_AT, DeadlineReference.FIXED_DATETIME(NOON - timedelta(minutes=9))],
            NOON + timedelta(minutes=51),
        ),
    ],
)
def test_the_alerts_of_the_dag_give_the_deadline(references: Sequence[Any], expected: datetime) -> None:
    assert dag_deadline.resolve(dag(*map(alert, references)), RUN) == expected


def test_the_interval_may_be_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_VAR_SLACK", "90")
    found = dag(alert(DeadlineReference.DAGRUN_LOGICAL_DATE, VariableInterval("slack")))
    assert dag_deadline.resolve(found, RUN) == NOON + timedelta(seconds=90)
    monkeypatch.setenv("AIRFLOW_VAR_SLACK", "soon")
    with pytest.raises(errors.InvalidInputError, match="the variable 'slack' of the DAG's deadline must hold seconds"):
        dag_deadline.resolve(found, RUN)


def operator(in_dag: DAG | None, **arguments: Any) -> DeadlineSparkSubmitOperator:
    return DeadlineSparkSubmitOperator(
        task_id="t", dag=in_dag, application="/job.py", **{"deadline": "dag", **arguments}
    )


@pytest.mark.parametrize(
    ("alerts", "said"),
    [
        ([], r"deadline='dag': the DAG has no deadline; add deadline=DeadlineAlert\(...\) to it, or give the task"),
        ([alert(DeadlineReference.AVERAGE_RUNTIME(5))], "refers to AverageRuntimeDeadline, which a task cannot work"),
        (
            [alert(DeadlineReference.DAGRUN_LOGICAL_DATE), alert(DeadlineReference._TEMPORARY_TEST_REFERENCE)],
            "refers to TemporaryTestDeadlineForTypeChecking",
        ),
    ],
)
def test_a_deadline_that_no_task_can_know_breaks_the_dag_at_once(alerts: Sequence[Any], said: str) -> None:
    with pytest.raises(errors.InvalidInputError, match=said):
        operator(dag(*alerts))


def test_a_run_without_a_logical_date_says_so() -> None:
    manual = SimpleNamespace(logical_date=None, run_after=NOON)
    with pytest.raises(errors.InvalidInputError, match="this run has no logical date"):
        dag_deadline.resolve(dag(alert(DeadlineReference.DAGRUN_LOGICAL_DATE)), manual)


def test_a_fixed_date_without_a_time_zone_is_refused() -> None:
    naive = DeadlineReference.FIXED_DATETIME(datetime(2126, 1, 1))
    with pytest.raises(errors.InvalidInputError, match="FIXED_DATETIME needs a time zone"):
        dag_deadline.resolve(dag(alert(naive)), RUN)


def context(in_dag: DAG, run: Any, store: StateStore) -> dict[str, Any]:
    ti = SimpleNamespace(start_date=datetime.now(UTC), max_tries=1)
    return {"ti": ti, "dag": in_dag, "dag_run": run, "task_state_store": store}


def test_it_is_resolved_once_and_shared_by_retries() -> None:
    store, found = StateStore(), dag(alert(DeadlineReference.DAGRUN_LOGICAL_DATE))
    task = operator(found)
    first = task._promise(context(found, RUN, store))
    assert first.deadline_at == (NOON + timedelta(hours=1)).timestamp()
    moved = SimpleNamespace(logical_date=NOON + timedelta(days=1), run_after=NOON)
    assert task._promise(context(found, moved, store)) == first
    assert store.get(PROMISE_KEY)["deadline_at"] == first.deadline_at


def test_a_template_may_ask_for_it() -> None:
    found = dag(alert(DeadlineReference.DAGRUN_LOGICAL_DATE))
    asked = operator(found, deadline="{{ 'dag' }}")
    asked.render_template_fields({})
    assert asked._promise(context(found, RUN, StateStore())).deadline_at == (NOON + timedelta(hours=1)).timestamp()


def test_one_that_has_passed_is_refused_unless_best_effort_is_wanted(caplog: pytest.LogCaptureFixture) -> None:
    found = dag(alert(DeadlineReference.FIXED_DATETIME(datetime(2020, 1, 1, tzinfo=UTC))))
    with pytest.raises(errors.InvalidInputError, match="in the past"):
        operator(found)._promise(context(found, RUN, StateStore()))
    late = operator(dag(*found.deadline or ()), on_infeasible="best_effort")._promise(context(found, RUN, StateStore()))
    assert late.deadline_at < late.started_at
    assert "has passed; going on as fast as possible" in caplog.text


def test_an_execution_timeout_before_the_deadline_is_refused() -> None:
    with pytest.raises(errors.InvalidInputError, match=r"execution_timeout=.*ends the task before its deadline of"):
        operator(None, deadline=timedelta(hours=2), execution_timeout=timedelta(hours=1))
    assert operator(None, deadline=timedelta(hours=1), execution_timeout=timedelta(hours=2)).execution_timeout
