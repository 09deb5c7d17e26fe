"""What every `ProgressPort` does: the simulated one and the REST API of a real driver."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark import ports
from airflow_mlscale.spark.adapters import install, rest
from airflow_mlscale.spark.model import Progress, StageStatus, keyed
from tests.fakes import submission
from tests.fakes.spark import FakeProgress, Part, SimulatedApplication

APPLICATION = """\
import sys
from pathlib import Path
from time import sleep
from pyspark.sql import SparkSession

begin, end = map(Path, sys.argv[1:])
spark = SparkSession.builder.getOrCreate()
while not begin.exists():
    sleep(0.05)
assert spark.range(1000).repartition(4).count() == 1000
while not end.exists():
    sleep(0.05)
spark.stop()
"""


@dataclass
class Driver:
    port: ports.ProgressPort
    work: Callable[[], None]
    """Begin the stages."""
    end: Callable[[], None]
    """End the application; returns when it has ended."""


@pytest.fixture
async def fake() -> Driver:
    application = SimulatedApplication([Part(4, 4), Part(1, 1)], lead_s=2.0)
    port = FakeProgress(application)
    return Driver(port, work=lambda: application.advance(6.0, 2.0), end=lambda: application.advance(60.0, 2.0))


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Driver]:
    found = install.find()
    script = tmp_path / "application.py"
    script.write_text(APPLICATION)
    begin, end = tmp_path / "begin", tmp_path / "end"
    ui_port = processes.free_port()
    conf = {"spark.ui.port": ui_port, rest.RUN_PROPERTY: "this-run", "spark.driver.host": "127.0.0.1"}
    flags = [word for name, value in conf.items() for word in ("--conf", f"{name}={value}")]
    child = processes.spawn(
        "driver",
        [found.command("spark-submit"), "--master", "local[2]", *flags, str(script), str(begin), str(end)],
        env={**found.env(), "SPARK_LOCAL_IP": "127.0.0.1"},
        log_path=tmp_path / "driver.log",
    )
    port = rest.RestProgress(f"http://127.0.0.1:{ui_port}", "this-run")

    def finish() -> None:
        end.touch()
        assert child.wait(60) == 0

    try:
        yield Driver(port, work=begin.touch, end=finish)
    finally:
        child.end()
        await port.close()


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.engine)])
def driver(request: pytest.FixtureRequest) -> Driver:
    return request.getfixturevalue(request.param)


async def read_until(port: ports.ProgressPort, wanted: Callable[[Progress | None], bool]) -> Progress | None:
    # A driver offers no event to wait for: the controller polls as well.
    give_up_at = time.monotonic() + 240
    while not wanted(progress := await port.read()):
        assert time.monotonic() < give_up_at, f"last reading: {progress}"
        await asyncio.sleep(0.2)
    return progress


async def test_a_driver_is_read_from_before_its_start_to_after_its_end(driver: Driver) -> None:
    assert await driver.port.read() is None

    driver.work()
    progress = await read_until(driver.port, lambda seen: seen is not None and any(s.completed_at for s in seen.stages))
    assert progress is not None
    ids = [stage.stage_id for stage in progress.stages]
    assert ids == sorted(set(ids))
    for stage in progress.stages:
        assert 0 <= stage.complete + stage.active <= stage.tasks
        if stage.status is StageStatus.COMPLETE:
            assert stage.complete == stage.tasks
            assert stage.submitted_at is not None
            assert stage.completed_at is not None
            assert stage.submitted_at <= stage.completed_at
    assert progress.slots == 2
    again = await driver.port.read()
    assert again is not None
    assert again.application_id == progress.application_id
    assert again.at >= progress.at

    await asyncio.to_thread(driver.end)
    with pytest.raises(errors.UnreachableError):
        await driver.port.read()


@pytest.mark.engine
async def test_another_application_on_the_same_port_is_not_ours(real: Driver) -> None:
    assert isinstance(real.port, rest.RestProgress)
    await read_until(real.port, lambda seen: seen is not None)
    stranger = rest.RestProgress(real.port.url, "another-run")
    try:
        assert await stranger.read() is None
    finally:
        await stranger.close()


async def test_the_first_answer_of_a_driver_that_begins_is_waited_for() -> None:
    late = threading.Event()

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        late.wait(60)
        found = {
            "": b'[{"id": "a"}]',
            "/a/environment": b'{"sparkProperties": [["spark.mlscale.run", "r"]]}',
            "/a/stages": b"[]",
            "/a/executors": b"[]",
        }
        return 200, found[path.removeprefix("/api/v1/applications")]

    with submission.http_server(answer) as url:
        port = rest.RestProgress(url, "r", timeout_s=0.1)
        asyncio.get_running_loop().call_later(0.5, late.set)
        try:
            progress = await port.read()
        finally:
            late.set()
            await port.close()
    assert progress is not None
    assert progress.application_id == "a"


def iteration(stage_id: int, status: str) -> dict[str, object]:
    begun = {} if status == "PENDING" else {"submissionTime": f"2026-01-01T00:00:{stage_id:02}.000GMT"}
    over = {"completionTime": f"2026-01-01T00:00:{stage_id + 1:02}.000GMT"} if status == "COMPLETE" else {}
    done = 4 if over else 0
    counts = {"numTasks": 4, "numActiveTasks": 4 * (status == "ACTIVE"), "numCompleteTasks": done}
    return (
        {"stageId": stage_id, "attemptId": 0, "name": "collect at job.py:9", "status": status} | counts | begun | over
    )


def test_a_driver_started_in_place_of_another_begins_anew() -> None:
    first = rest.remembered({}, [iteration(0, "COMPLETE"), iteration(1, "ACTIVE"), iteration(2, "PENDING")], at=0.0)
    again = rest.remembered(first, [iteration(0, "ACTIVE"), iteration(1, "PENDING")], at=0.0)
    assert [str(stage.status) for stage in rest.stages_of(list(again.values()))] == ["ACTIVE", "PENDING"]
    assert rest.remembered(first, [], at=0.0) == {}  # it has no stages yet


async def test_stages_that_spark_has_forgotten_are_remembered() -> None:
    answers = [
        [iteration(0, "COMPLETE"), iteration(1, "ACTIVE"), iteration(2, "PENDING")],
        [iteration(3, "COMPLETE"), iteration(4, "ACTIVE")],  # of a driver that keeps only so many
        [iteration(4, "COMPLETE"), iteration(5, "ACTIVE")],
    ]

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        match path.removeprefix("/api/v1/applications"):
            case "":
                return 200, b'[{"id": "a"}]'
            case "/a/environment":
                return 200, b'{"sparkProperties": [["spark.mlscale.run", "r"]]}'
            case "/a/executors":
                return 200, b'[{"id": "1", "isActive": true, "totalCores": 2}]'
            case "/a/stages":
                return 200, json.dumps(answers.pop(0)).encode()
        return 404, b""

    with submission.http_server(answer) as url:
        port = rest.RestProgress(url, "r")
        try:
            readings = [await port.read() for _ in range(3)]
        finally:
            await port.close()
    last = readings[-1]
    assert last is not None
    assert [(stage.stage_id, str(stage.status), stage.complete) for stage in last.stages] == [
        (0, "COMPLETE", 4),
        (1, "COMPLETE", 4),  # it ran when it was seen last
        (2, "SKIPPED", 0),
        (3, "COMPLETE", 4),
        (4, "COMPLETE", 4),
        (5, "ACTIVE", 0),
    ]
    assert list(keyed(last.stages))[-1] == "collect at job.py:9#5"
    assert abs((last.stages[1].completed_at or 0) - last.at) < 60
    assert last.active_tasks == 4
