"""Operator, sensor, hook and triggers against a real daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, TaskDeferred

from airflow_mlscale import errors
from airflow_mlscale.hooks.roma import RomaHook
from airflow_mlscale.operators.roma import Objective, RomaDeployOperator
from airflow_mlscale.operators.task_state import JOURNAL_KEY, SUMMARY_KEY
from airflow_mlscale.runtime import processes
from airflow_mlscale.sensors.roma import RomaObjectiveSensor
from tests.integration import roma_daemon, roma_models

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

OBJECTIVE = Objective(milliseconds=2000)


class Store:
    """Stands in for the task state store."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def set(self, key: str, value: Any) -> None:
        json.dumps(value)
        self.values[key] = value


class Event:
    """Stands in for an outlet's event."""

    def __init__(self) -> None:
        self.extra: dict[str, Any] = {}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roma_models.built(tmp_path_factory)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[roma_daemon.Daemon]:
    with roma_daemon.running(tmp_path_factory.mktemp("daemon")) as one:
        yield one


@pytest.fixture(autouse=True)
def connections(daemon: roma_daemon.Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def connection(port: int) -> str:
        return json.dumps({"conn_type": "mlscale_roma", "host": "127.0.0.1", "port": port, "schema": "http"})

    monkeypatch.setenv("AIRFLOW_CONN_MLSCALE_ROMA", connection(daemon.port))
    monkeypatch.setenv("AIRFLOW_CONN_NOBODY", connection(processes.free_port()))


@pytest.fixture
def context() -> dict[str, Any]:
    return {"task_state_store": Store(), "outlet_events": {Asset("flight_delay"): Event()}}


def fired(deferred: TaskDeferred) -> dict[str, Any]:
    """Run a trigger as the triggerer does: rebuilt from what was serialised."""
    path, arguments = deferred.trigger.serialize()
    module, _, name = path.rpartition(".")
    trigger = getattr(import_module(module), name)(**json.loads(json.dumps(arguments)))

    async def first() -> dict[str, Any]:
        async for event in trigger.run():
            payload: dict[str, Any] = event.payload
            return payload
        raise AssertionError("the trigger ended without an event")

    return asyncio.run(asyncio.wait_for(first(), 120))


def test_the_connection_can_be_tested(daemon: roma_daemon.Daemon) -> None:
    assert RomaHook().test_connection() == (True, f"ROMA serves 0 model(s) at {daemon.url}")
    worked, message = RomaHook("nobody").test_connection()
    assert not worked
    assert "does not answer" in message


def test_deploying_waits_until_the_model_is_warm(
    daemon: roma_daemon.Daemon, artefacts: Path, context: dict[str, Any]
) -> None:
    asset = Asset("flight_delay")
    operator = RomaDeployOperator(
        task_id="deploy", model_name="delay", artefact=str(artefacts / "line1"), objective=OBJECTIVE, outlets=[asset]
    )
    summary = operator.execute(context)
    assert daemon.call("GET", "/v2/models/delay/ready").status_code == 200
    assert (summary["model"], summary["version"], summary["objective_ms"]) == ("delay", "1", 2000)
    assert context["outlet_events"][asset].extra["version"] == "1"
    assert context["task_state_store"].values[SUMMARY_KEY] == summary
    assert context["task_state_store"].values[JOURNAL_KEY][0]["subject"] == "delay"
    assert operator.execute(context)["version"] == "1"  # a retry finds its own deployment


def test_deploying_can_wait_in_the_triggerer(
    daemon: roma_daemon.Daemon, artefacts: Path, context: dict[str, Any]
) -> None:
    operator = RomaDeployOperator(
        task_id="deploy", model_name="delay", artefact=str(artefacts / "line2"), objective=OBJECTIVE, deferrable=True
    )
    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    summary = operator.execute_complete(context, fired(deferred.value))
    assert (summary["version"], summary["state"]) == ("2", "ready")
    assert summary["load_s"] > 0
    told = [record["reason"] for record in context["task_state_store"].values[JOURNAL_KEY]]
    assert told[0] == "version 2 ordered"  # before it was deferred
    assert "ready and warm" in told[-1]


def test_a_model_that_cannot_be_loaded_fails_the_task_with_the_reason(artefacts: Path, context: dict[str, Any]) -> None:
    operator = RomaDeployOperator(
        task_id="deploy", model_name="delay", artefact=str(artefacts / "broken"), objective=OBJECTIVE
    )
    with pytest.raises(errors.RunFailedError, match=r"TensorFlow cannot load it.*version 2 goes on serving"):
        operator.execute(context)


def test_wrong_arguments_fail_without_a_retry(artefacts: Path, context: dict[str, Any]) -> None:
    for artefact, message in {
        str(artefacts / "empty"): "not a TensorFlow SavedModel",
        "/nowhere": "no such directory",
    }.items():
        operator = RomaDeployOperator(task_id="deploy", model_name="m", artefact=artefact, objective=OBJECTIVE)
        with pytest.raises(AirflowFailException, match=message):
            operator.execute(context)
    with pytest.raises(errors.InvalidInputError, match=r"objective\.milliseconds"):
        Objective(milliseconds=0)
    with pytest.raises(errors.InvalidInputError, match="objective"):
        RomaDeployOperator(task_id="deploy", model_name="m", artefact="/m", objective=50)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidInputError, match="min_requests"):
        RomaObjectiveSensor(task_id="wait", model_name="m", min_requests=0)


def test_a_daemon_that_does_not_answer_is_worth_a_retry(context: dict[str, Any]) -> None:
    operator = RomaDeployOperator(task_id="deploy", model_name="m", artefact="/m", conn_id="nobody")
    with pytest.raises(errors.UnreachableError, match="mlscale roma up"):
        operator.execute(context)


@pytest.mark.parametrize("deferrable", [True, False])
def test_the_sensor_fires_when_the_objective_is_met(
    daemon: roma_daemon.Daemon, artefacts: Path, context: dict[str, Any], deferrable: bool
) -> None:
    daemon.deploy("watched", artefacts / "line1", objective={"milliseconds": 2000}, version="1")
    sensor = RomaObjectiveSensor(
        task_id="wait",
        model_name="watched",
        min_requests=50,
        held_for=0.5,
        poke_interval=0.1,
        timeout=120,
        deferrable=deferrable,
    )
    with daemon.load("watched", requests=20_000, clients=2) as report:
        if deferrable:
            with pytest.raises(TaskDeferred) as deferred:
                sensor.execute(context)
            summary = sensor.execute_complete(context, fired(deferred.value))
        else:
            summary = sensor.execute(context)
        report(stop=True)
    assert summary["met"] is True
    assert summary["requests"] >= 50
    assert summary["errors"] == 0
    assert 0 < summary["p95_ms"] <= 2000
    assert context["task_state_store"].values[SUMMARY_KEY] == summary
    looks = context["task_state_store"].values[JOURNAL_KEY]
    assert [look["decided"]["met"] for look in looks[-2:]] == [False, True]  # all of the wait, not only its end


def test_the_sensor_does_not_fire_on_a_missed_objective(
    daemon: roma_daemon.Daemon, artefacts: Path, context: dict[str, Any]
) -> None:
    daemon.deploy("hopeless", artefacts / "line1", objective={"milliseconds": 0.01}, version="1")
    sensor = RomaObjectiveSensor(
        task_id="wait", model_name="hopeless", min_requests=1, poke_interval=0.05, timeout=0.5, deferrable=False
    )
    body = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
    headers = {"X-Mlscale-Deadline-Ms": "60000"}
    assert daemon.call("POST", "/v2/models/hopeless/infer", json=body, headers=headers).status_code == 200
    with pytest.raises(AirflowSensorTimeout):
        sensor.execute(context)
    last = context["task_state_store"].values[JOURNAL_KEY][-1]
    assert last["decided"] == {"state": "ready", "met": False}
    assert "is above 0.01 ms" in last["reason"]


def test_the_sensor_fails_early_for_models_that_cannot_serve(
    daemon: roma_daemon.Daemon, artefacts: Path, context: dict[str, Any]
) -> None:
    with pytest.raises(AirflowFailException, match="unknown model"):
        RomaObjectiveSensor(task_id="wait", model_name="nobody").execute(context)
    daemon.deploy("dead", artefacts / "broken")
    with pytest.raises(errors.RunFailedError, match="'dead' is failed"):
        RomaObjectiveSensor(task_id="wait", model_name="dead").execute(context)
    with pytest.raises(errors.UnreachableError):
        RomaObjectiveSensor(task_id="wait", model_name="m", conn_id="nobody").execute(context)


def test_a_trigger_reports_a_model_that_disappears(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    daemon.deploy("gone", artefacts / "line1")
    sensor = RomaObjectiveSensor(task_id="wait", model_name="gone")
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute({})
    daemon.call("DELETE", "/v2/mlscale/models/gone")
    event = fired(deferred.value)
    assert (event["status"], event["retryable"]) == ("failed", False)
    with pytest.raises(AirflowFailException, match="unknown model"):
        sensor.execute_complete({}, event)
