"""Several jobs with deadlines on one real cluster, under one real agent: who is given what, and why.

The jobs are held (`spark_held_job`) until the journals of all of them show what the agent decides for them
together, so that no claim depends on how fast this machine is. Who misses is simulated (tests/simulation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale.cpu import ports
from airflow_mlscale.spark import grants
from tests.fakes import cpu_load
from tests.integration import spark_held
from tests.integration.spark_held import HeldJob, Host

pytestmark = [pytest.mark.engine, pytest.mark.long]

POT_CORES = 2.0
CORE_S = 3000.0
"""Profiled work of each job: even the last deadline asks for more than two cores."""
DEADLINES_S = {"soon": 300.0, "later": 500.0, "last": 700.0}
PROMISED = "the host's cores are promised to others"
STEPS = 4
"""Steps in which all are held, from which the claims are read."""

Row = dict[str, Any]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Room for three applications with two slots each, whatever the machine has; the agent divides two cores."""
    folder = tmp_path_factory.mktemp("several")
    with spark_held.running_host(folder, "--cores", str(POT_CORES), cores=6, memory="2g") as host:
        yield host


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., HeldJob]]:
    """Begins jobs, each with a folder of its own, and ends those that are left."""
    begun: list[HeldJob] = []

    def begin(name: str, deadline: datetime) -> HeldJob:
        folder = tmp_path / name
        folder.mkdir()
        spark_held.save_profile(folder, core_s=CORE_S)
        arguments = {
            "deadline": deadline,
            "mode": "reserve",
            "on_infeasible": "best_effort",
            "total_executor_cores": 2,
            "executor_cores": 2,
        }
        begun.append(HeldJob(folder, name, **arguments))
        return begun[-1]

    yield begin
    for job in begun:
        job.end()


def contended(jobs: list[HeldJob]) -> list[list[Row]]:
    """The same `STEPS` seconds of each job: while all of them ran tasks, and nothing began or ended."""
    for job in jobs:
        job.wait_until_held()

    def steady() -> list[list[Row]]:
        rows = [[row for row in job.journal() if row["seen"]["tasks_running"]] for job in jobs]
        if not all(rows):
            return []
        since = max(each[0]["at"] for each in rows) + 2.0  # by then each agent's division knows all wishes
        return [[row for row in each if row["at"] >= since] for each in rows]

    jobs[0].wait(lambda: bool(found := steady()) and min(len(each) for each in found) >= STEPS, "steps of all jobs")
    return [each[-STEPS:] for each in steady()]


def asked(row: Row) -> float:
    return float(row["decided"]["asked_cores"])


def granted(row: Row) -> float:
    return float(row["decided"]["guaranteed_cores"])


def is_cut(row: Row) -> bool:
    return PROMISED in row["reason"]


@pytest.mark.parametrize("policy", ["earliest_deadline", "proportional"])
def test_three_deadlines_and_a_job_without_one(host: Host, begin: Callable[..., HeldJob], policy: str) -> None:
    host.start_agent("--policy", policy)
    now = datetime.now(UTC)
    with cpu_load.busy() as neighbour:
        port = host.port
        port.open("ordinary")
        port.admit("ordinary", neighbour)
        jobs = []
        for name, deadline_s in reversed(DEADLINES_S.items()):  # each is the most urgent one while it starts
            jobs.insert(0, begin(name, now + timedelta(seconds=deadline_s)))
            jobs[0].wait_until_held()
        soon, later, last = contended(jobs)
        (row,) = (row for row in port.status() if row["name"] == "ordinary")
        port.close("ordinary")
    # No promise, no lease: the weight of one process, and no ceiling.
    unmanaged = {"guaranteed_cores": ports.UNMANAGED.guaranteed_cores, "ceiling_cores": None}
    assert (row["lease_left_s"], row["share"]) == (None, unmanaged)

    for record in (*soon, *later, *last):
        assert ("asked for" in record["reason"]) == (granted(record) < asked(record) - 0.01)
        assert not is_cut(record) or f"granted {granted(record):.2f}: {PROMISED}" in record["reason"]
    if policy == "earliest_deadline":
        kept_alive = 2 * grants.ALIVE_CORES * 2  # executors and drivers of the two others
        own_driver = 0.25
        assert all(granted(record) >= asked(record) - kept_alive - own_driver for record in soon)
        assert all(granted(record) <= grants.ALIVE_CORES + 0.01 and is_cut(record) for record in last)
    else:
        assert all(is_cut(record) for rows in (soon, later, last) for record in rows)
        parts = [granted(record) / asked(record) for rows in (soon, later, last) for record in rows]
        assert max(parts) / min(parts) < 1.25  # wishes of one second, divided at different moments of it
    for job in jobs:
        job.let_go()
    for job in jobs:
        job.join()
        spark_held.wait_until_nothing_is_left(host, job)
