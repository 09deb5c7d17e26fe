"""What users bring: an NVFlare client script, a decorated function, a metric of their own, sites that measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from airflow.sdk import DAG, task

from airflow_mlscale import errors
from airflow_mlscale.federated.adapters import local_federation
from airflow_mlscale.federated.settings import FederationSettings
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.operators.federated import FederatedTrainingOperator, Privacy, Quality
from airflow_mlscale.runtime import processes
from tests.fakes import federated_task

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

CODE = Path(__file__).parents[1] / "fakes"
SITES = ("a", "b", "c")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MLSCALE_HOME", str(tmp_path_factory.mktemp("federation")))
    patch.syspath_prepend(str(CODE))
    try:
        running = local_federation.up(FederationSettings(sites=SITES))
        patch.setenv("AIRFLOW_CONN_MLSCALE_FEDERATED", running.connection)
        yield running
    finally:
        services = [psutil.Process(found.pid) for found in processes.services("federated-")]
        everything = [*services, *(below for each in services for below in each.children(recursive=True))]
        local_federation.down()
        patch.undo()
        assert [process for process in everything if _alive(process)] == []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def scripted(task_id: str, **arguments) -> FederatedTrainingOperator:
    return FederatedTrainingOperator(
        **{
            "task_id": task_id,
            "client_script": "federated_script.py",  # beside the DAG file
            "initial_weights": "federated_numpy:start",
            "extra_modules": ["federated_blobs"],
            "target": Quality("accuracy", 0.95),
            "round_timeout": 20,
            "max_rounds": 40,
            "poll_s": 0.2,
            **arguments,
        }
    )


def measured(path: str, sites: Sequence[str]) -> float:
    """What the sites would say of a model; each measures on as many samples."""
    import federated_numpy

    with np.load(path) as arrays:
        params = dict(arrays)
    return float(np.mean([federated_numpy.accuracy(params, *federated_numpy.own(site)[1]) for site in sites]))


def test_an_unmodified_client_script_reaches_a_target_that_the_sites_measure(federation, tmp_path):
    operator = scripted(
        "script",
        client_script_args="--rate 0.05 --liar c",
        policy="fedavg",
        output_dir=str(tmp_path / "model"),
    )
    result = operator.execute(federated_task.context("script"))

    assert result["reached"]
    assert (result["saved_model"], result["keras_model"]) == (None, None)
    with np.load(result["weights_file"]) as arrays:
        assert set(arrays.files) == {"linear/weight", "linear/bias"}
    state = FederatedHook().runs.directory(result["run_id"]).state()
    both = SITES[:2]
    # c lies three times, then it is honest, then its script ends, which costs the run nothing else
    assert [done.answered for done in state.rounds[:7]] == [both, both, both, SITES, SITES, both, both]
    assert state.segment == 1
    assert result["accuracy"] == max(state.values) >= 0.95
    assert measured(result["weights_file"], both) == pytest.approx(result["accuracy"])  # of what was measured
    assert "Weights of `federated_numpy:start`" in Path(result["model_card"]).read_text()


def test_a_script_that_ends_on_every_site_fails_the_run_and_says_why(federation):
    with pytest.raises(errors.FederatedRunFailedError, match=r"no site could train: .*ended with exit code 3"):
        scripted("dies", client_script_args=["--dies"]).execute(federated_task.context("dies"))


def decorated():
    with DAG("decorated"):

        @task
        def units() -> int:
            return 12

        @task.federated(
            client_data="federated_blobs:of_site",
            target=Quality("federated_numpy:share_right", 0.9, higher_is_better=True),
            round_timeout=20,
            max_rounds=30,
            poll_s=0.2,
        )
        def classifier(width: int, rate: float = 0.1):
            import keras

            model = keras.Sequential(
                [
                    keras.Input((2,), name="point"),
                    keras.layers.Dense(width, activation="relu"),
                    keras.layers.Dense(3, activation="softmax", name="class"),
                ]
            )
            model.compile(optimizer=keras.optimizers.SGD(rate), loss="sparse_categorical_crossentropy")
            return model

        return classifier(units()).operator


def test_a_decorated_function_is_the_model_and_sites_measure_by_a_metric_of_the_users_own(federation):
    import keras

    operator = decorated()
    assert operator.upstream_task_ids == {"units"}
    operator.op_args = [12]  # as Airflow resolves it

    result = operator.execute(federated_task.context("classifier"))

    assert result["reached"]
    assert result["metric"] == "federated_numpy:share_right"
    model = keras.models.load_model(result["keras_model"])
    assert model.layers[0].units == 12
    import federated_blobs

    x, y = federated_blobs.held_out()
    right = float((model.predict(x, verbose=0).argmax(1) == y).mean())
    assert right == pytest.approx(result["accuracy"], abs=0.05)  # other points of the same kind
    directory = FederatedHook().runs.directory(result["run_id"])
    assert all(site.samples == 320 for site in directory.state().sites)  # of 400; the rest is measured on


@pytest.mark.long
def test_a_keras_script_trains_layer_by_layer_and_the_server_evaluates(federation):
    operator = scripted(
        "layers",
        client_script="federated_keras_script",  # as a module
        client_script_format="keras_layer_weights",
        model="federated_blobs:build",
        evaluation_data="federated_blobs:held_out",
        initial_weights=None,
        privacy=Privacy(clip_norm=3.0, noise_multiplier=0.05),
        target=Quality("accuracy", 0.9),
    )
    result = operator.execute(federated_task.context("layers"))
    assert result["reached"]
    assert Path(result["saved_model"]).is_dir()
    assert result["weights_file"] is None
    assert result["epsilon"] > 0
