"""A connection to simulated sites, and what operator, sensors and triggers make of a run there; nothing is started."""

from __future__ import annotations

import asyncio
import json

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_mlscale import errors
from airflow_mlscale.federated import connection, model
from airflow_mlscale.federated.adapters import run_directory
from airflow_mlscale.federated.adapters.simulated_federation import Simulation
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.operators.federated import FederatedTrainingOperator, Quality
from airflow_mlscale.sensors.federated import FederatedAccuracySensor
from tests.fakes import federated, federated_task


@pytest.fixture
def runs(tmp_path, monkeypatch):
    extra = {"simulated_sites": "a, b,c", "run_store": str(tmp_path), "seed": 3}
    monkeypatch.setenv("AIRFLOW_CONN_MLSCALE_FEDERATED", json.dumps({"conn_type": "mlscale_federated", "extra": extra}))
    return FederatedHook().runs


def under_way(runs, *values: float, **changes) -> run_directory.RunDirectory:
    directory = runs.directory("run")
    directory.create(federated.settings())
    told = {"status": model.Status.RUNNING, "segment": 1, "target": 0.9, **changes}
    run_directory.RunWriter(directory, model.Quality("accuracy", 0.9)).checkpoint(federated.state(*values, **told))
    return directory


def watching(**changes) -> FederatedAccuracySensor:
    return FederatedAccuracySensor(
        **{"task_id": "watch", "run_id": "run", "at_least": 0.7, "in_a_row": 1, "stop_run": True, **changes}
    )


def test_the_hook_knows_the_sites(runs):
    assert runs.admin.sites() == ["a", "b", "c"]
    assert runs.keeps_alive
    assert FederatedHook().test_connection() == (True, "simulated sites: a, b, c")


def test_the_same_seed_draws_the_same_sites():
    one = Simulation(sites=("a", "b", "c"), seed=3)
    assert one.drawn(["a", "c"]) == one.drawn(["a", "b", "c"])[::2]
    assert one.drawn(["a"]) != Simulation(sites=("a", "b", "c"), seed=4).drawn(["a"])


@pytest.mark.parametrize(
    ("field", "extra"),
    [
        ("simulated_sites", {"simulated_sites": []}),
        ("simulated_sites", {"simulated_sites": ["a", "a"]}),
        ("simulated_sites", {"simulated_sites": ["a b"]}),
        ("simulated_sites", {"simulated_sites": 3}),
        ("seed", {"seed": -1}),
        ("flaky", {"flaky": 1.5}),
        ("epoch_s", {"epoch_s": "fast"}),
        ("labels", {"labels": {"nobody": {"region": "eu"}}}),
        ("labels", {"labels": "eu"}),
        ("run_store", {"run_store": None}),
    ],
)
def test_wrong_extras_are_named(tmp_path, field, extra):
    with pytest.raises(errors.InvalidInputError) as refused:
        connection.runs({"simulated_sites": ["a", "b"], "run_store": str(tmp_path), **extra}, "a_connection")
    assert refused.value.field == field


def test_a_label_that_no_simulated_site_has_is_refused_before_anything_starts(runs):
    operator = FederatedTrainingOperator(
        task_id="train", model="json:loads", client_data="json:loads", evaluation_data="json:loads",
        target=Quality("accuracy", 0.9), sites=["region=eu"],
    )  # fmt: skip
    with pytest.raises(AirflowFailException, match="no connected site has these labels"):
        operator.execute(federated_task.context("train"))
    assert not list(runs.run_store.glob("*/jobs"))


def test_a_sensor_that_fires_asks_the_run_to_end_and_asks_once(runs):
    directory = under_way(runs, 0.5)
    sensor = watching()
    assert not sensor.poke(federated_task.context("watch")).is_done
    assert directory.end_asked() is None
    under_way(runs, 0.5, 0.75)
    for _ in range(2):
        assert sensor.poke(federated_task.context("watch")).xcom_value["round"] == 2
    assert directory.end_asked() == "stopped by sensor a_dag.watch: accuracy >= 0.7"
    assert not directory.stop_asked()


def test_without_stop_run_nobody_is_asked_to_end(runs):
    directory = under_way(runs, 0.75)
    assert watching(stop_run=False).poke(federated_task.context("watch")).is_done
    assert directory.end_asked() is None


async def test_the_trigger_asks_and_the_task_asks_again_if_the_triggerer_died_before_it_could(runs):
    directory = under_way(runs, 0.5)
    sensor, context = watching(deferrable=True), federated_task.context("watch")
    with pytest.raises(TaskDeferred) as deferred:
        await asyncio.to_thread(sensor.execute, context)
    trigger = type(deferred.value.trigger)(**json.loads(json.dumps(deferred.value.trigger.serialize()[1])))
    trigger.poll_s = 0.01
    under_way(runs, 0.5, 0.75)
    event = await asyncio.wait_for(anext(trigger.run()), 60)
    assert directory.end_asked() == "stopped by sensor a_dag.watch: accuracy >= 0.7"
    directory.withdraw_end()  # as if it had never come so far
    found = await asyncio.to_thread(sensor.execute_complete, context, event.payload)
    assert (found["round"], directory.end_asked()) == (2, "stopped by sensor a_dag.watch: accuracy >= 0.7")


def test_a_run_that_has_ended_is_not_asked_to_end(runs):
    directory = under_way(runs, 0.95, 0.95, status=model.Status.REACHED)
    assert watching().poke(federated_task.context("watch")).is_done
    assert directory.end_asked() is None


def test_a_failure_cannot_be_stopped():
    with pytest.raises(errors.InvalidInputError, match="stop_run=True"):
        watching(awaited="failed", at_least=None)


def test_what_is_no_place_in_mlflow_is_refused_when_the_dag_is_parsed():
    with pytest.raises(errors.InvalidInputError, match="mlflow='http://mlflow': use MLflow"):
        FederatedTrainingOperator(
            task_id="train", model="json:loads", client_data="json:loads", evaluation_data="json:loads",
            target=Quality("accuracy", 0.9), mlflow="http://mlflow",
        )  # fmt: skip
