"""Profiles of real runs: twice the data, and jobs that branch on what they read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale.runtime import processes
from airflow_mlscale.spark.adapters import cluster, profile_store
from airflow_mlscale.spark.model import Plan
from tests.integration import spark_task

pytestmark = [pytest.mark.engine, pytest.mark.long]

JOB = str(Path(__file__).parent / "spark_branch.py")
LINES = 3_000
"""In each file; a file is a task."""


@pytest.fixture(scope="module", autouse=True)
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLSCALE_HOME", str(tmp_path_factory.mktemp("home")))
        port = processes.free_port()
        connection = {"conn_type": "mlscale_spark", "host": "127.0.0.1", "port": port}
        patch.setenv("AIRFLOW_CONN_MLSCALE_SPARK", json.dumps(connection))
        try:
            cluster.up(cluster.ClusterSettings(workers=1, cores=2, memory="1g", port=port))
            yield
        finally:
            cluster.down()


def data(folder: Path, *, files: int, way: str) -> Path:
    folder.mkdir()
    for number in range(files):
        text = "".join(f"{way} line {line} of file {number} with something to read\n" for line in range(LINES))
        (folder / f"part-{number:03}.txt").write_text(text)
    return folder


def execute(folder: Path, store: Path, deadline_s: float) -> dict[str, Any]:
    from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator

    operator = DeadlineSparkSubmitOperator(
        task_id="task",
        application=JOB,
        application_args=[str(folder)],
        conf={"spark.executor.memory": "512m"},
        name="branch",
        deadline=timedelta(seconds=deadline_s),
        profile_store=str(store),
        mode="reserve",
    )
    return operator.execute(spark_task.context())


def plans(store: Path) -> tuple[Plan, ...]:
    profile = profile_store.ProfileFiles(str(store)).load("branch")
    assert profile is not None
    return profile.plans


def test_twice_the_data_and_either_branch_are_done_in_time(tmp_path: Path) -> None:
    store = tmp_path / "store"
    short = execute(data(tmp_path / "short", files=6, way="short"), store, 300)
    (plan,) = plans(store)
    assert plan.stages[0].kind == "scan"
    assert plan.stages[0].tasks == 6
    assert plan.stages[1].after == (plan.stages[0].key,)
    assert plan.stages[0].longest_core_s >= plan.stages[0].core_s / 6

    # The first run had everything; twice its data in three times its time is feasible, and needs less than that.
    double = execute(data(tmp_path / "double", files=12, way="short"), store, 3 * short["finish_s"])
    assert double["met"]
    assert double["profile"] == "warm"
    (plan,) = plans(store)
    assert plan.runs == 2
    assert plan.stages[0].tasks == 12

    # The other branch was never seen: it takes longer than expected, and is a plan of its own afterwards.
    execute(data(tmp_path / "long", files=6, way="long"), store, 4 * short["finish_s"])
    first, second = plans(store)
    assert first.signature != second.signature
    assert second.runs == 2

    for way in ("short", "long"):
        again = execute(tmp_path / way, store, 2.5 * short["finish_s"])
        assert again["met"]
    assert sorted(plan.runs for plan in plans(store)) == [2, 3]
