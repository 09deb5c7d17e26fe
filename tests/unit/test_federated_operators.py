"""What a DAG author can get wrong, and what the operator and the sensor tell Airflow."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pendulum
import pytest
import structlog.testing
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from airflow_mlscale import errors
from airflow_mlscale.federated.adapters import provisioning, run_directory
from airflow_mlscale.federated.model import Quality, RunState, Status
from airflow_mlscale.federated.settings import FederationSettings
from airflow_mlscale.federated.stopping import Awaited, Condition
from airflow_mlscale.operators.federated import FederatedTrainingOperator
from airflow_mlscale.runtime import processes
from airflow_mlscale.sensors.federated import FederatedAccuracySensor
from airflow_mlscale.triggers.federated import FederatedAccuracyTrigger, FederatedRunTrigger
from tests.fakes import federated, federated_task


def training(**changes) -> FederatedTrainingOperator:
    return FederatedTrainingOperator(
        **{
            "task_id": "train",
            "model": "json:loads",
            "client_data": "json:loads",
            "evaluation_data": "json:loads",
            "target": Quality("accuracy", 0.9),
            **changes,
        }
    )


@pytest.fixture(scope="module")
def provisioned(tmp_path_factory):
    port = processes.free_port()
    kits = provisioning.provision(tmp_path_factory.mktemp("kits") / "p", FederationSettings(sites=("a",)), port=port)
    return SimpleNamespace(kit=kits.admin, port=port)


@pytest.fixture
def kit(provisioned, tmp_path, monkeypatch):
    """A connection whose server does not answer: nobody listens on its port."""
    extra = {"admin_kit": str(provisioned.kit), "run_store": str(tmp_path)}
    monkeypatch.setenv("AIRFLOW_CONN_MLSCALE_FEDERATED", json.dumps({"conn_type": "mlscale_federated", "extra": extra}))
    return SimpleNamespace(runs=tmp_path, port=provisioned.port, extra=extra)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("model", {"model": "json.loads"}),
        ("target", {"target": 0.9}),
        ("on_limit", {"on_limit": "ignore"}),
        ("deadline", {"deadline": 60}),
        ("deadline", {"deadline": timedelta(0)}),
        ("deadline", {"deadline": datetime(2099, 1, 1)}),
        ("min_nodes", {"min_nodes": 0}),
        ("cohort", {"cohort": 1}),
        ("over_selection", {"over_selection": 0.5}),
        ("round_timeout_s", {"round_timeout": timedelta(0)}),
        ("sites", {"sites": "one"}),
        ("sites", {"sites": []}),
        ("sites", {"sites": ["a"]}),  # below min_nodes
        ("sites", {"sites": ["a", 2]}),
        ("extra_modules", {"extra_modules": "mod"}),
        ("extra_modules", {"extra_modules": [json]}),
        ("poll_s", {"poll_s": 0}),
        ("poll_s", {"poll_s": -1}),
        ("poll_s", {"poll_s": "x"}),
        ("output_dir", {"output_dir": "models"}),
        ("data_args", {"data_args": {"x": object(), "y": "{{ ds }}"}}),
        ("data_args", {"data_args": ["x"]}),
        ("deadline", {"deadline": "soon"}),
        ("local_epochs", {"policy": "linear_rounds", "local_epochs": 7, "max_local_epochs": 3}),
    ],
)
def test_bad_arguments_are_refused_when_the_dag_is_parsed(field, changes):
    with pytest.raises(errors.InvalidInputError) as refused:
        training(**changes)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "deadline",
    [
        timedelta(minutes=5),
        pendulum.duration(minutes=5),
        pendulum.datetime(2099, 1, 1),
        datetime(2099, 1, 1, tzinfo=UTC),
        "{{ params.deadline }}",
        None,
    ],
)
def test_every_kind_of_deadline_is_taken(deadline):
    assert training(deadline=deadline).deadline == deadline


@pytest.mark.parametrize(
    "changes",
    [
        {"sites": "{{ params.sites }}"},
        {"sites": ["{{ params.site }}"]},
        {"output_dir": "{% if params.own %}/models{% endif %}"},
        {"data_args": "{{ params.arguments }}"},
        {"data_args": {"x": {"deep": ["{{ ds }}"]}, "y": 3}},
        {"deadline": "PT20M"},
        {"policy": "fedavg", "local_epochs": 20},
    ],
)
def test_what_is_rendered_later_is_taken_as_it_is(changes):
    operator = training(**changes)
    assert all(getattr(operator, name, value) == value for name, value in changes.items())


def test_what_another_task_gives_is_awaited():
    with DAG("both", schedule=None):
        before = training(task_id="before").output
        operator = training(sites=before["sites"], output_dir=before["dir"], data_args={"x": before["x"]})
    assert operator.upstream_task_ids == {"before"}
    assert operator.data_args == {"x": before["x"]}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("deadline", {"deadline": datetime(2001, 1, 1, tzinfo=UTC)}),
        ("deadline", {"deadline": "next week"}),
        ("sites", {"sites": []}),
        ("sites", {"sites": "['a', 'b']"}),
        ("output_dir", {"output_dir": "models"}),
        ("data_args", {"data_args": {"x": object()}}),
    ],
)
def test_what_is_only_known_at_run_time_fails_the_task_without_retries(kit, field, changes):
    operator = training()
    for name, value in changes.items():  # as Airflow does when it has rendered them
        setattr(operator, name, value)
    with pytest.raises(AirflowFailException, match=f"InvalidInputError: {field}="):
        operator.execute(federated_task.context("train"))
    assert list(kit.runs.iterdir()) == []  # nothing left half-done


def test_an_unreachable_server_is_worth_a_retry_and_leaves_nothing_behind(kit):
    with pytest.raises(errors.UnreachableError, match=rf"localhost:{kit.port} does not answer: start it") as refused:
        training().execute(federated_task.context("train"))
    assert refused.value.retryable
    assert list(kit.runs.iterdir()) == []


@pytest.mark.parametrize("missing", ["admin_kit", "run_store"])
def test_a_connection_without_an_extra_names_it(kit, monkeypatch, missing):
    extra = {name: value for name, value in kit.extra.items() if name != missing}
    monkeypatch.setenv("AIRFLOW_CONN_HALF", json.dumps({"conn_type": "mlscale_federated", "extra": extra}))
    with pytest.raises(AirflowFailException, match=f"InvalidInputError: {missing}=None: set this extra"):
        training(conn_id="half").execute(federated_task.context("train"))


def test_runs_are_named_after_the_task_instance_not_after_the_try():
    operator = training()
    context = federated_task.context("train")
    name = operator._name(context)
    assert name == operator._name(context)
    context["ti"].max_tries += 1  # cleared
    assert name != operator._name(context)
    context["ti"].max_tries -= 1
    context["ti"].map_index = 3
    assert name != operator._name(context)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("at_least", {"at_least": 1.5, "metric": "accuracy"}),
        ("at_least", {"at_least": "much"}),
        ("at_least", {"awaited": "stalled"}),
        ("awaited", {"awaited": "done", "at_least": None}),
        ("rounds", {"awaited": "stalled", "at_least": None, "stalled_rounds": 0}),
        ("in_a_row", {"in_a_row": 0}),
    ],
)
def test_a_sensors_condition_is_checked_when_the_dag_is_parsed(field, changes):
    with pytest.raises(errors.InvalidInputError) as refused:
        FederatedAccuracySensor(**{"task_id": "watch", "run_id": "run", "at_least": 0.9, **changes})
    assert refused.value.field == field


def test_a_sensor_without_a_run_fails_and_one_for_a_run_to_come_waits(kit):
    with pytest.raises(AirflowFailException, match="run_id=''"):
        FederatedAccuracySensor(task_id="watch", run_id="", at_least=0.9).poke({})
    with pytest.raises(AirflowFailException, match=r"run_id='\.\./x'"):
        FederatedAccuracySensor(task_id="watch", run_id="../x", at_least=0.9).poke({})
    assert not FederatedAccuracySensor(task_id="watch", run_id="later", at_least=0.9).poke({}).is_done


def test_a_run_that_is_not_known_is_told_once(kit):
    sensor = FederatedAccuracySensor(task_id="watch", run_id="mistyped", at_least=0.9)
    with structlog.testing.capture_logs() as told:
        assert [sensor.poke({}).is_done for _ in range(3)] == [False, False, False]
    said = f"run mistyped: there is no such run yet in {kit.runs}; waiting for it"
    assert [said] == [entry["event"] for entry in told if "mistyped" in entry["event"]]


async def test_a_trigger_tells_what_it_waits_for_whenever_that_changes(kit):
    directory = run_directory.RunDirectory(kit.runs / "late")

    def come_to_pass(_log, _method, entry):
        """The run is begun once the trigger says that there is none, and fails once it waits for its quality."""
        if "no such run" in entry["event"]:
            directory.create(federated.settings(run_id="late"))
        elif "late" in entry["event"]:
            failed = RunState(run_id="late", status=Status.FAILED, reason="it was to fail")
            run_directory.RunWriter(directory, Quality("accuracy", 0.9)).checkpoint(failed)
        return entry

    trigger = FederatedAccuracyTrigger(
        run_id="late",
        condition=Condition(awaited=Awaited.AT_LEAST).to_json(),
        conn_id="mlscale_federated",
        poll_s=0.01,
    )
    with structlog.testing.capture_logs([come_to_pass]) as told:
        event = await asyncio.wait_for(anext(trigger.run()), 60)
    assert (event.payload["status"], event.payload["error"]) == ("failed", "FederatedRunFailedError")
    assert [entry["event"] for entry in told if "late" in entry["event"]] == [
        f"run late: there is no such run yet in {kit.runs}; waiting for it",
        "run late: waiting for accuracy >= 0.9",
    ]


@pytest.mark.parametrize(
    "trigger",
    [
        FederatedRunTrigger(run_id="run", conn_id="c", poll_s=0.5),
        FederatedAccuracyTrigger(run_id="run", condition=Condition(awaited=Awaited.FAILED).to_json(), conn_id="c"),
    ],
)
def test_triggers_are_rebuilt_from_json(trigger):
    path, arguments = trigger.serialize()
    assert path == f"{type(trigger).__module__}.{type(trigger).__name__}"
    assert type(trigger)(**json.loads(json.dumps(arguments))).serialize() == trigger.serialize()
