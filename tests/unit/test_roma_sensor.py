"""Names that a DAG author, or a template, can get wrong: refused before anything is asked of a daemon."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlscale import errors
from airflow_mlscale.hooks.roma import RomaHook
from airflow_mlscale.roma import model
from airflow_mlscale.roma.adapters import client
from airflow_mlscale.runtime import processes
from airflow_mlscale.sensors.roma import RomaObjectiveSensor
from airflow_mlscale.triggers.roma import RomaDeployTrigger, RomaObjectiveTrigger

NAMES = ["", "m/journal", "../host", "m?x=1", "None of them", "m" * 81]


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """A connection on whose port nobody listens."""
    port = processes.free_port()
    connection = {"conn_type": "mlscale_roma", "host": "127.0.0.1", "port": port}
    monkeypatch.setenv("AIRFLOW_CONN_MLSCALE_ROMA", json.dumps(connection))
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("deferrable", [True, False])
def test_the_sensor_refuses_what_is_no_name_for_good(name: str, deferrable: bool) -> None:
    sensor = RomaObjectiveSensor(task_id="wait", model_name=name, deferrable=deferrable)
    with pytest.raises(AirflowFailException, match=r"model_name=.*use letters"):
        sensor.execute({})


def test_the_sensor_refuses_a_version_that_can_never_serve() -> None:
    sensor = RomaObjectiveSensor(task_id="wait", model_name="m", version="")
    with pytest.raises(AirflowFailException, match="version=''"):
        sensor.execute({})


@pytest.mark.parametrize("arguments", [{"window_s": "a"}, {"held_for": "a"}, {"min_requests": True}])
def test_the_sensor_refuses_what_is_no_number_when_the_dag_is_read(arguments: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidInputError) as refused:
        RomaObjectiveSensor(task_id="wait", model_name="m", **arguments)
    assert refused.value.field in arguments


@pytest.mark.parametrize("name", NAMES)
def test_triggers_report_what_is_no_name_as_a_failure_for_good(name: str) -> None:
    async def first(trigger: RomaObjectiveTrigger | RomaDeployTrigger) -> dict[str, Any]:
        payload: dict[str, Any] = (await anext(aiter(trigger.run()))).payload
        return payload

    objective = RomaObjectiveTrigger(conn_id=RomaHook.default_conn_name, model_name=name, condition={})
    deploy = RomaDeployTrigger(conn_id=RomaHook.default_conn_name, model_name=name, version="1")
    for trigger in (objective, deploy):
        event = asyncio.run(first(trigger))
        assert (event["status"], event["retryable"]) == ("failed", False)
        assert event["told"].startswith("model_name=")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "call",
    [
        lambda roma, name: roma.status(name),
        lambda roma, name: roma.journal(name),
        lambda roma, name: roma.remove(name),
        lambda roma, name: roma.deploy(model.DeployOrder(name=name, artefact="/m")),
    ],
)
def test_no_name_leads_to_another_endpoint(
    nobody: str, call: Callable[[client.RomaClient, str], object], name: str
) -> None:
    with client.RomaClient(nobody) as roma, pytest.raises(errors.InvalidInputError, match="model_name"):
        call(roma, name)
