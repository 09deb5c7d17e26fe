"""What every adapter of ROMA's ports and its fake must do alike."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import model, ports
from airflow_mlscale.roma.adapters import sqlite_state, worker_process
from tests.fakes import roma as fakes
from tests.integration import roma_models

SPEC = model.ModelSpec(
    name="m", version="1", artefact="/m", objective=model.Objective(milliseconds=50), max_cores=1.5, fingerprint="f"
)
ORDER = ports.LoadOrder(name="m", version="7", artefact="/m", threads=2, max_batch=4, objective_s=0.1)


@pytest.fixture(params=["memory", "sqlite"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ports.StatePort]:
    if request.param == "memory":
        yield fakes.MemoryState()
        return
    store = sqlite_state.SqliteState(tmp_path / "state.sqlite")
    yield store
    store.close()


def test_state_gives_back_what_was_saved(state: ports.StatePort) -> None:
    full = model.Desired(
        name="b",
        active=SPEC,
        candidate=replace(SPEC, version="2"),
        canary=model.Canary(fraction=0.3, split="random", automatic=False),
        previous=replace(SPEC, version="0"),
        loaded=False,
        failure="why",
        failed_version="2",
        highest=20261123153000123456789,
    )
    empty = model.Desired(name="a")
    state.save(full)
    state.save(empty)
    assert state.load() == [empty, full]


def test_state_replaces_and_forgets(state: ports.StatePort) -> None:
    state.save(model.Desired(name="m", candidate=SPEC))
    state.save(model.Desired(name="m", active=SPEC))
    assert state.load() == [model.Desired(name="m", active=SPEC)]
    state.remove("m")
    state.remove("m")
    assert state.load() == []


def test_sqlite_state_reads_files_from_before_there_were_canaries(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as database:
        columns = (
            "name TEXT PRIMARY KEY, active TEXT, candidate TEXT, loaded INTEGER, failure TEXT, failed_version TEXT"
        )
        database.execute(f"CREATE TABLE models ({columns}) STRICT")
        row = ("m", json.dumps(SPEC.as_json()), None, 1, None, None)
        database.execute("INSERT INTO models VALUES (?, ?, ?, ?, ?, ?)", row)
    database.close()
    store = sqlite_state.SqliteState(path)
    assert store.load() == [model.Desired(name="m", active=SPEC)]
    newer = model.Desired(name="m", active=SPEC, canary=model.Canary(), previous=SPEC, highest=7)
    store.save(newer)
    assert store.load() == [newer]
    store.close()


def test_sqlite_state_is_there_for_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    first = sqlite_state.SqliteState(path)
    first.save(model.Desired(name="m", active=SPEC))  # never closed, as in a crash
    assert sqlite_state.SqliteState(path).load() == [model.Desired(name="m", active=SPEC)]
    first.close()


def test_sqlite_says_when_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    state = sqlite_state.SqliteState(path)
    state._database.execute("PRAGMA max_page_count = 2")  # what a full disk does to it
    large = replace(SPEC, artefact="/" + "m" * 20_000)
    with pytest.raises(errors.TransientError, match="full"):
        state.save(model.Desired(name="m", active=large))
    assert state.load() == []
    state.close()


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roma_models.built(tmp_path_factory)


@pytest.fixture(params=["fake", pytest.param("process", marks=pytest.mark.engine)])
async def launched(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[tuple[ports.LauncherPort, ports.LoadOrder, ports.LoadOrder]]:
    """A launcher with an order for a good model and one for a broken model."""
    if request.param == "fake":
        yield fakes.FakeLauncher(), ORDER, replace(ORDER, artefact="broken")
        return
    models: Path = request.getfixturevalue("artefacts")
    launcher = worker_process.ProcessLauncher(tmp_path / "logs")
    await launcher.open()
    yield (
        launcher,
        replace(ORDER, artefact=str(models / "line1")),
        replace(ORDER, artefact=str(models / "broken")),
    )
    await launcher.close()


Launched = tuple[ports.LauncherPort, ports.LoadOrder, ports.LoadOrder]


def call(value: float) -> model.Call:
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [value] * 3}]}
    return model.Call("v2", json.dumps(body).encode())


async def test_a_worker_loads_answers_in_order_and_ends(launched: Launched, tmp_path: Path) -> None:
    launcher, good, _ = launched
    worker = await launcher.launch("m", [])
    states: list[model.State] = []
    try:
        loaded = await worker.load(good, states.append)
        assert states == [model.State.LOADING, model.State.WARMING]
        assert loaded.default_signature in loaded.signatures
        assert loaded.batchable
        assert set(loaded.service_s) >= {1, 2, 4}
        futures = [worker.infer([call(value), call(value + 1)]) for value in (1.0, 5.0)]
        served = await asyncio.gather(*futures)
        assert [[answer.status for answer in one.answers] for one in served] == [[200, 200], [200, 200]]
        assert all(one.service_s > 0 and one.cpu_s > 0 for one in served)
    finally:
        await worker.end()
    assert worker.lost.done()
    await worker.end()
    with pytest.raises(ports.WorkerLostError):
        await worker.infer([call(1)])


async def test_a_broken_model_is_an_artefact_error(launched: Launched) -> None:
    launcher, _, broken = launched
    worker = await launcher.launch("m", [])
    try:
        with pytest.raises(errors.ModelArtefactError, match="TensorFlow cannot load it"):
            await worker.load(broken, lambda state: None)
    finally:
        await worker.end()


@pytest.mark.engine
async def test_a_killed_process_is_lost_with_what_it_was_doing(tmp_path: Path, artefacts: Path) -> None:
    launcher = worker_process.ProcessLauncher(tmp_path / "logs")
    await launcher.open()
    entry_file = tmp_path / "members"
    worker = await launcher.launch("m", [entry_file])
    try:
        assert entry_file.read_text() == str(worker.pid)  # it joined its group before anything else
        await worker.load(replace(ORDER, artefact=str(artefacts / "burner")), lambda state: None)
        long = worker.infer([model.Call("tfs", json.dumps({"inputs": {"turns": 10**8}}).encode())])
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(ports.WorkerLostError, match=str(worker.pid)):
            await asyncio.wait_for(long, 20)
        assert str(worker.pid) in await worker.lost
    finally:
        await worker.end()
        await launcher.close()


@pytest.mark.engine
async def test_one_bad_call_costs_its_neighbours_nothing(tmp_path: Path, artefacts: Path) -> None:
    launcher = worker_process.ProcessLauncher(tmp_path / "logs")
    await launcher.open()
    worker = await launcher.launch("m", [])
    try:
        await worker.load(replace(ORDER, artefact=str(artefacts / "line1")), lambda state: None)
        served = await worker.infer([call(1), model.Call("v2", b"{"), model.Call("tfs", b'{"instances": [[1, 1, 1]]}')])
        assert [answer.status for answer in served.answers] == [200, 400, 200]
        assert json.loads(served.answers[0].body)["outputs"][0]["data"] == [3.0, 3.0, 3.0]
        assert json.loads(served.answers[2].body) == {"predictions": [[3.0, 3.0, 3.0]]}
    finally:
        await worker.end()
        await launcher.close()


@pytest.mark.engine
async def test_a_start_that_is_given_up_leaves_no_process(tmp_path: Path) -> None:
    launcher = worker_process.ProcessLauncher(tmp_path / "logs")
    await launcher.open()
    before = set(psutil.Process().children(recursive=True))
    for turns in range(3):
        starting = asyncio.create_task(launcher.launch("m", []))
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(starting, 20)
        assert set(psutil.Process().children(recursive=True)) == before
    await launcher.close()


@pytest.mark.engine
async def test_a_worker_that_ends_before_its_first_word_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    launcher = worker_process.ProcessLauncher(tmp_path / "logs")
    await launcher.open()
    with pytest.raises(ports.WorkerLostError, match=r"said nothing, see .*m\.log"):
        await asyncio.wait_for(launcher.launch("m", []), 20)
    await launcher.close()
