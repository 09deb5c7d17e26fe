"""Whether a task tries again, as Airflow's own task runner evaluates it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from airflow.sdk import ExceptionRetryPolicy
from airflow.sdk.api.datamodels._generated import TaskInstanceState
from airflow.sdk.execution_time import task_runner

from airflow_mlscale import errors
from airflow_mlscale.operators import in_cluster, promises
from airflow_mlscale.operators.spark import DeadlineRetryPolicy, DeadlineSparkSubmitOperator
from airflow_mlscale.spark.adapters.profile_store import ProfileFiles
from airflow_mlscale.spark.model import Plan, Profile, StageProfile
from tests.fakes.federated_task import StateStore

FAILED = errors.SparkJobFailedError("it failed")


@pytest.fixture
def profiles(tmp_path: Path) -> str:
    """A job of 100 core-s in 100 tasks after 10 s of driver: 60 s on 2 cores."""
    plan = Plan(stages=(StageProfile(key="a#0", core_s=100.0, tasks=100),), lead_s=10.0)
    ProfileFiles(str(tmp_path)).save(Profile(key="job", plans=(plan,)))
    return str(tmp_path)


def task(store: str, **arguments: Any) -> DeadlineSparkSubmitOperator:
    given = {
        "application": "/job.py",
        "deadline": timedelta(hours=1),
        "name": "job",
        "profile_store": store,
        "retries": 2,
        "retry_delay": timedelta(minutes=5),
        **arguments,
    }
    return DeadlineSparkSubmitOperator(task_id="task", **given)


def decided(
    operator: DeadlineSparkSubmitOperator,
    *,
    left_s: float | None,
    exception: Exception = FAILED,
    full_cores: float | None = 2.0,
    try_number: int = 1,
    submitted: bool = False,
) -> tuple[Any, Any]:
    """Message and state of Airflow's task runner for a try that has failed with ``left_s`` to the deadline."""
    store = StateStore()
    ti = SimpleNamespace(
        task=operator,
        try_number=try_number,
        max_tries=2,
        start_date=datetime.now(UTC),
        rendered_map_index=None,
        stats_tags={},
        _failure_metrics_emitted=False,
        _ti_context_from_server=SimpleNamespace(max_tries=2, should_retry=try_number <= 2),
    )
    context = {"ti": ti, "task": operator, "task_state_store": store}
    if left_s is not None:
        now = time.time()
        kept = {"life": 2, "started_at": now - 600, "deadline_at": now + left_s}
        store.set(promises.PROMISE_KEY, kept)
        if full_cores:
            promises.note_full_share(context, full_cores)
    if submitted:
        store.set(in_cluster.SUBMISSION_KEY, {"life": 2, "ticket": {}})
    return task_runner._handle_current_task_failed(ti, exception, structlog.get_logger("test"), context)


def test_a_retry_that_can_make_it_begins_soon(profiles: str) -> None:
    message, state = decided(task(profiles), left_s=90)
    assert state is TaskInstanceState.UP_FOR_RETRY
    assert message.retry_delay_seconds == pytest.approx(3.0, abs=0.5)  # a tenth of the 30 s to spare
    assert message.retry_reason.endswith("s are left to the deadline, 60 s needed")


def test_a_retry_that_cannot_make_it_is_given_up(profiles: str) -> None:
    _, state = decided(task(profiles), left_s=55)
    assert state is TaskInstanceState.FAILED


def test_best_effort_never_gives_up(profiles: str) -> None:
    message, state = decided(task(profiles, on_infeasible="best_effort"), left_s=-100)
    assert state is TaskInstanceState.UP_FOR_RETRY
    assert message.retry_delay_seconds == 1.0


def test_an_application_that_may_still_run_is_not_given_up(profiles: str) -> None:
    lost = errors.TransientError("the cluster does not answer", retry_after_s=4)
    message, state = decided(task(profiles), left_s=5, exception=lost, submitted=True)
    assert state is TaskInstanceState.UP_FOR_RETRY
    assert message.retry_delay_seconds == 4.0
    assert decided(task(profiles, durable=False), left_s=5, submitted=True)[1] is TaskInstanceState.FAILED


def test_a_service_that_asks_to_wait_is_given_its_time(profiles: str) -> None:
    message, _ = decided(task(profiles), left_s=80, exception=errors.TransientError("later", retry_after_s=7))
    assert message.retry_delay_seconds == 7.0


def test_the_tasks_own_delay_is_the_longest(profiles: str) -> None:
    message, _ = decided(task(profiles, retry_delay=timedelta(seconds=20)), left_s=3600)
    assert message.retry_delay_seconds == 20.0


def test_without_a_profile_only_a_deadline_that_has_passed_ends_the_tries(tmp_path: Path) -> None:
    assert decided(task(str(tmp_path)), left_s=5)[1] is TaskInstanceState.UP_FOR_RETRY
    assert decided(task(str(tmp_path)), left_s=-5)[1] is TaskInstanceState.FAILED


@pytest.mark.parametrize(
    ("left_s", "said"),
    [(-100, "the deadline passed 100 s ago; "), (55, "another try needs about 60 s, 55 s are left to the deadline; ")],
)
def test_giving_up_says_why(profiles: str, left_s: float, said: str) -> None:
    store = StateStore()
    context = {"task": task(profiles), "task_state_store": store, "ti": SimpleNamespace(max_tries=2)}
    deadline_at = time.time() + left_s
    store.set(promises.PROMISE_KEY, {"life": 2, "started_at": deadline_at - 600, "deadline_at": deadline_at})
    promises.note_full_share(context, 2.0)
    decision = DeadlineRetryPolicy().evaluate(FAILED, 1, 2, context)
    assert (decision.reason or "").startswith(said)


def test_a_try_that_failed_before_its_cluster_was_known_is_judged_by_the_time_alone(profiles: str) -> None:
    assert decided(task(profiles), left_s=5, full_cores=None)[1] is TaskInstanceState.UP_FOR_RETRY


def test_a_profile_store_that_cannot_be_used_leaves_the_time(profiles: str) -> None:
    assert decided(task("gopher://x"), left_s=5)[1] is TaskInstanceState.UP_FOR_RETRY


def test_a_try_that_failed_before_its_promise_follows_airflows_rules(profiles: str) -> None:
    message, state = decided(task(profiles), left_s=None)
    assert state is TaskInstanceState.UP_FOR_RETRY
    assert message.retry_delay_seconds is None


def test_no_try_follows_the_last(profiles: str) -> None:
    assert decided(task(profiles), left_s=3600, try_number=3)[1] is TaskInstanceState.FAILED


def test_a_policy_of_the_user_or_of_the_dag_is_kept() -> None:
    mine = ExceptionRetryPolicy(rules=[])
    assert task("/p", retry_policy=mine).retry_policy is mine
    assert task("/p", default_args={"retry_policy": mine}).retry_policy is mine
    assert isinstance(task("/p").retry_policy, DeadlineRetryPolicy)


def test_it_survives_serialisation() -> None:
    policy = DeadlineRetryPolicy()
    assert isinstance(DeadlineRetryPolicy.deserialize(policy.serialize()), DeadlineRetryPolicy)
