"""Who is told, and when, of the outlook of a deferred task; Kubernetes is an HTTP server, spark-submit a stand-in."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import AsyncCallback

from tests.fakes import federated_task, submission
from tests.fakes.kubernetes_api import FakeKubernetes, kubernetes_api
from tests.fakes.spark_remote import KubernetesJob, deferred, operator, profiled
from tests.integration import spark_task, spark_trigger


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    with kubernetes_api() as state:
        yield state


HEARD: list[dict[str, Any]] = []
PAGED = threading.Event()


def heard(context: dict[str, Any]) -> None:
    HEARD.append(context)


async def page(context: dict[str, Any], team: str) -> None:
    HEARD.append({**context, "team": team})
    PAGED.set()


async def until_paged(trigger: Any) -> None:
    """The life of a triggerer that ends while the application runs."""
    running = asyncio.create_task(spark_trigger.first_event(trigger))
    paged = await asyncio.to_thread(PAGED.wait, 120)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert paged


def test_callbacks_of_a_deferred_task_hear_of_a_change_at_once_and_once(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path / "home"))
    HEARD.clear()
    PAGED.clear()
    job, store, over = KubernetesJob(cluster, monkeypatch), spark_task.Store(), threading.Event()
    profiled(tmp_path)
    afterwards: list[dict[str, Any]] = []
    missing, awaited = "no.such.module.page", AsyncCallback(page, {"team": "ops"})
    late = {
        "deadline": timedelta(seconds=1),
        "on_infeasible": "best_effort",
        "on_outlook_change": [heard, missing, awaited, afterwards.append],
    }
    with submission.spark_home(tmp_path / "spark", job.submit) as spark:
        monkeypatch.setenv("SPARK_HOME", str(spark))
        first = deferred(operator(tmp_path, **late), store)
    assert "give its import path to hear of a change at once" in caplog.text
    (driver,) = job.drivers
    driver.patience = over.is_set

    first.task_instance = federated_task.TaskInstance("task", map_index=3)
    asyncio.run(until_paged(first))
    assert not driver.finished
    assert [(context["outlook"], context.get("team")) for context in HEARD] == [
        ("will_miss", None),
        ("will_miss", "ops"),
    ]
    assert (HEARD[0]["dag_id"], HEARD[0]["task_id"], HEARD[0]["map_index"]) == ("a_dag", "task", 3)

    over.set()
    second = spark_trigger.restored(first.serialize())  # in the next triggerer
    event = asyncio.run(asyncio.wait_for(spark_trigger.first_event(second), 60))
    assert event["state"] == "succeeded"
    assert afterwards == []
    summary = operator(tmp_path, **late).execute_complete(spark_task.context(store), event)
    assert summary["outlook"] == "will_miss"  # whether it was late, a pod tells in whole seconds
    assert [context["outlook"] for context in afterwards] == ["will_miss"]
    assert f"on_outlook_change: {missing} failed" in caplog.text  # the task has tried it, too
    assert len(HEARD) == 2
