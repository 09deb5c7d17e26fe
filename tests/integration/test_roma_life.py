"""The life of a model on a real daemon: tried, promoted, left, brought back; from HTTP, command line and Airflow."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_mlscale.hooks.roma import RomaHook
from airflow_mlscale.operators.roma import (
    Canary,
    Objective,
    RomaDeployOperator,
    RomaPromoteOperator,
    RomaRollbackOperator,
    RomaUndeployOperator,
)
from airflow_mlscale.sensors.roma import RomaObjectiveSensor
from airflow_mlscale.triggers.roma import RomaDegradedTrigger
from tests.integration import roma_daemon, roma_models
from tests.integration.test_roma_airflow import Event, Store, fired

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roma_models.built(tmp_path_factory)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[roma_daemon.Daemon]:
    with roma_daemon.running(tmp_path_factory.mktemp("daemon")) as one:
        yield one


@pytest.fixture(autouse=True)
def connection(daemon: roma_daemon.Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = {"conn_type": "mlscale_roma", "host": "127.0.0.1", "port": daemon.port, "schema": "http"}
    monkeypatch.setenv("AIRFLOW_CONN_MLSCALE_ROMA", json.dumps(connection))


def command(daemon: roma_daemon.Daemon, *arguments: str) -> str:
    line = [sys.executable, "-m", "airflow_mlscale.cli", "roma", *arguments, "--url", daemon.url]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def versions(daemon: roma_daemon.Daemon, name: str, count: int) -> list[str]:
    """Which versions answer so many requests."""
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    answers = [daemon.call("POST", f"/v2/models/{name}/infer", json=body).json() for _ in range(count)]
    return [answer["model_version"] for answer in answers]


def test_a_canary_that_misses_the_objective_is_rolled_back_under_load(
    daemon: roma_daemon.Daemon, artefacts: Path
) -> None:
    daemon.deploy("delay", artefacts / "line1", objective={"milliseconds": 60}, version="1")
    trial = {"fraction": 0.25, "min_requests": 20, "window_s": 30}
    with daemon.load("delay", requests=1_000_000, clients=4, deadline_ms=60_000) as report:
        status = daemon.deploy("delay", artefacts / "slow2", objective={"milliseconds": 60}, version="2", canary=trial)
        assert status["candidate"]["version"] == "2", status
        status = daemon.until("delay", lambda seen: seen["failure"] is not None, "the rollback")
        found = report(stop=True)
    assert set(found["statuses"]) == {"200"}
    assert found["wrong"] == []
    assert set(found["versions"]) == {"1", "2"}
    assert (status["version"], status["candidate"], status["canary"]) == ("1", None, None)
    assert status["failure"]["version"] == "2"
    assert "missed 60 ms" in status["failure"]["reason"]
    told = daemon.call("GET", "/v2/mlscale/models/delay/journal").json()["records"]
    (last,) = [one for one in told if one["decided"].get("rollout") == "rolled back"]
    assert last["seen"]["canary_late"] > last["seen"]["stable_late"]


def test_blue_green_switches_under_load_fail_no_request(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    daemon.deploy("switched", artefacts / "line1", objective={"milliseconds": 1000}, version="1")
    with daemon.load("switched", requests=1_000_000, clients=4, deadline_ms=60_000) as report:
        command(daemon, "deploy", "switched", str(artefacts / "line2"), "--version", "2", "--canary", "0")
        status = daemon.status("switched")
        assert (status["version"], status["canary"]["version"]) == ("1", "2")
        command(daemon, "promote", "switched", "--version", "2")
        assert "2" in versions(daemon, "switched", 1)
        told = json.loads(command(daemon, "rollback", "switched", "--reason", "only a test"))
        assert (told["version"], told["failure"]) == ("1", {"version": "2", "reason": "only a test"})
        assert versions(daemon, "switched", 1) == ["1"]
        found = report(stop=True)
    assert set(found["statuses"]) == {"200"}
    assert found["wrong"] == []
    assert set(found["versions"]) == {"1", "2"}
    assert "not served any more" in command(daemon, "undeploy", "switched")
    assert daemon.call("GET", "/v2/mlscale/models/switched").status_code == 404


class AssetState:
    """Stands in for the state of a watched asset."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.rung, self.recovered = asyncio.Event(), asyncio.Event()

    async def aget(self, key: str) -> Any:
        return self.values.get(key)

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = json.loads(json.dumps(value))
        if value["rung"]:
            self.rung.set()
        elif self.rung.is_set():
            self.recovered.set()


def test_airflow_tries_promotes_leaves_and_watches(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    asset = Asset("delay_model")
    objective = Objective(milliseconds=2000)

    def context() -> dict[str, Any]:
        return {"task_state_store": Store(), "outlet_events": {asset: Event()}}

    def deploy(artefact: str, **arguments: Any) -> RomaDeployOperator:
        path = str(artefacts / artefact)
        return RomaDeployOperator(
            task_id="deploy", model_name="gated", artefact=path, objective=objective, outlets=[asset], **arguments
        )

    first = deploy("line1", canary=Canary(fraction=0.5)).execute(context())
    assert (first["version"], "stable_version" in first) == ("1", False)  # nothing to compare it with

    try_it, seen = deploy("line2", canary=Canary(fraction=0.5, min_requests=5), deferrable=True), context()
    with pytest.raises(TaskDeferred) as deferred:
        try_it.execute(seen)
    tried = try_it.execute_complete(seen, fired(deferred.value))
    assert (tried["version"], tried["stable_version"], tried["canary_fraction"]) == ("2", "1", 0.5)
    assert tried["checksum"] != first["checksum"]
    assert seen["outlet_events"][asset].extra == tried
    assert sorted(set(versions(daemon, "gated", 20))) == ["1", "2"]

    holds = RomaObjectiveSensor(
        task_id="holds", model_name="gated", version="2", min_requests=5, deferrable=False, timeout=60
    )
    assert holds.execute(context())["version"] == "2"

    promote, seen = RomaPromoteOperator(task_id="promote", model_name="gated", version="2", outlets=[asset]), context()
    assert promote.execute(seen)["version"] == "2"
    assert promote.execute(context())["version"] == "2"  # a retry
    assert seen["outlet_events"][asset].extra["checksum"] == tried["checksum"]
    assert set(versions(daemon, "gated", 4)) == {"2"}

    asyncio.run(watched())

    leave = RomaRollbackOperator(task_id="leave", model_name="gated", version="2", reason="as a test", deferrable=True)
    seen = context()
    with pytest.raises(TaskDeferred) as deferred:
        leave.execute(seen)
    assert leave.execute_complete(seen, fired(deferred.value))["version"] == "1"
    assert leave.execute(context())["version"] == "1"  # a retry
    with pytest.raises(AirflowFailException, match="version 2 was left: as a test"):
        promote.execute(context())

    undeploy = RomaUndeployOperator(task_id="undeploy", model_name="gated")
    assert undeploy.execute(context()) == {"model": "gated", "removed": True}
    assert undeploy.execute(context()) == {"model": "gated", "removed": False}


async def watched() -> None:
    """The trigger rings when feedback gets bad, and not again, even after a restart, until it was good again."""
    store = AssetState()
    condition = {"min_accuracy": 0.75, "min_records": 10, "looks": 2}

    def trigger() -> RomaDegradedTrigger:
        one = RomaDegradedTrigger(model_name="gated", condition=condition, poll_s=0.05)
        _, arguments = one.serialize()
        one = RomaDegradedTrigger(**json.loads(json.dumps(arguments)))
        one.asset_state_store = store  # type: ignore[assignment]
        return one

    async def tell(prediction: int, count: int) -> None:
        await asyncio.to_thread(RomaHook().feed_back, "gated", count * [{"prediction": prediction, "label": 1}])

    events = trigger().run()
    await tell(0, 10)
    event = (await asyncio.wait_for(anext(events), 60)).payload
    assert (event["model"], event["version"], event["accuracy"]) == ("gated", "2", 0.0)
    assert "0.75 is asked for" in event["reason"]
    waiting = asyncio.ensure_future(anext(events))  # lets it go on after its event, and remember that
    await asyncio.wait_for(store.rung.wait(), 60)
    waiting.cancel()

    again = asyncio.ensure_future(anext(trigger().run()))
    await asyncio.sleep(0.5)  # ten looks at what it has told already
    assert not again.done()
    await tell(1, 90)
    await asyncio.wait_for(store.recovered.wait(), 60)
    await tell(0, 100)
    event = (await asyncio.wait_for(again, 60)).payload
    assert event["accuracy"] == 0.45  # 90 of 200: not of the time before it had recovered


@pytest.mark.long
def test_a_killed_daemon_comes_back_with_its_canary(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    daemon.deploy("kept", artefacts / "line1", version="1", objective={"milliseconds": 1000})
    trial = {"fraction": 0.5, "split": "deterministic", "min_requests": 1000}
    daemon.deploy("kept", artefacts / "line2", version="2", canary=trial)
    records = {"records": [{"prediction": 1, "label": 1, "version": "2"}]}
    assert daemon.call("POST", "/v2/models/kept/feedback", json=records).json()["counted"] == 1
    for process in daemon.processes():
        roma_daemon.kill(process)
    daemon.start()
    status = daemon.until("kept", lambda seen: bool(seen["canary"]) and seen["canary"]["state"] == "waiting", "canary")
    assert (status["version"], status["canary"]["version"], status["canary"]["fraction"]) == ("1", "2", 0.5)
    assert status["quality"] == {"2": {"records": 1, "accuracy": 1.0, "mae": 0.0}}
    assert sorted(versions(daemon, "kept", 10)) == 5 * ["1"] + 5 * ["2"]
