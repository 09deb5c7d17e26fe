"""The user's own Keras functions on simulated sites: recorded as a real run is, and under a whole DAG."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from airflow_mlscale.federated import adaptive, client, model, simulation, stopping
from airflow_mlscale.federated.adapters import keras_simulation, run_directory, simulated_federation
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.operators.federated import FederatedTrainingOperator, Quality
from airflow_mlscale.runtime import processes
from airflow_mlscale.sensors.federated import FederatedAccuracySensor
from tests.fakes import federated, federated_task
from tests.integration import spark_dag

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

BLOBS = "tests.fakes.federated_blobs"


def test_a_run_of_the_users_functions_reaches_its_target_and_says_that_it_is_simulated(tmp_path):
    run = federated.settings(
        model=f"{BLOBS}:build", client_data=f"{BLOBS}:of_site", evaluation_data=f"{BLOBS}:held_out",
        target=model.Quality("accuracy", 0.9), deadline_at=600.0, server_optimiser=adaptive.ADVICE, batch_size=64,
    )  # fmt: skip
    seen = keras_simulation.simulate(run, simulation.drawn(["a", "b", "c", "d"], 1), tmp_path)

    assert seen.reached
    assert seen.wall_s <= 600
    assert Path(seen.state.keras_model).is_file()
    runs = client.RunClient(admin=federated.Admin(), run_store=tmp_path)
    result = runs.result("run")
    assert (result["simulated"], result["reached"], result["rounds"]) == (True, True, len(seen.state.rounds))
    found = runs.met("run", stopping.Condition(awaited=stopping.Awaited.AT_LEAST, metric="accuracy", value=0.9))
    assert found["value"] >= 0.9
    assert len(run_directory.RunDirectory(tmp_path / "run").records()) == len(seen.state.rounds)


@pytest.fixture
def connected(tmp_path, monkeypatch):
    """A connection to a federation that is simulated, and none of its processes at the end."""

    def connect(**extra):
        told = {"simulated_sites": ["a", "b", "c"], "run_store": str(tmp_path), "seed": 1, **extra}
        monkeypatch.setenv(
            "AIRFLOW_CONN_MLSCALE_FEDERATED", json.dumps({"conn_type": "mlscale_federated", "extra": told})
        )
        return FederatedHook().runs

    yield connect
    left = processes.services(simulated_federation.SERVICE)
    for service in left:
        processes.end_service(service.name)
    assert left == []
    mine = [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or [])]
    assert psutil.wait_procs(mine, timeout=30)[1] == []  # TensorFlow takes its time to end


def endless(task_id: str, **arguments) -> FederatedTrainingOperator:
    """Training whose target nobody reaches."""
    return FederatedTrainingOperator(
        **{
            "task_id": task_id,
            "model": f"{BLOBS}:build",
            "client_data": f"{BLOBS}:of_site",
            "evaluation_data": f"{BLOBS}:held_out",
            "target": Quality("loss", 1e-6),
            "max_rounds": 100_000,
            "max_local_epochs": 1,
            "stall_rounds": None,
            "on_infeasible": "go_on",
            "poll_s": 0.1,
            **arguments,
        }
    )


def wait_for(runs: client.RunClient, run_id: str, what, ready) -> None:
    """Follows another process's file: there is no event to wait for."""
    directory = runs.directory(run_id)
    processes.wait_until(
        lambda: (state := directory.state()) is not None and ready(state), what=what, timeout_s=120, poll_s=0.05
    )


def test_a_sensor_ends_a_run_with_its_best_model_and_the_training_task_succeeds(connected):
    runs = connected()
    operator, context = endless("train", target=Quality("accuracy", 1.0)), federated_task.context("train")
    run_id = operator._name(context)
    sensor = FederatedAccuracySensor(task_id="enough", run_id=run_id, at_least=0.9, in_a_row=1, stop_run=True)
    with ThreadPoolExecutor() as pool:
        training = pool.submit(operator.execute, context)
        wait_for(runs, run_id, "a good round", lambda state: (state.best_value or 0) >= 0.9)
        assert sensor.poke(federated_task.context("enough")).is_done
        result = training.result()
    assert (result["status"], result["reached"], result["stopped_early"]) == ("stopped", False, True)
    assert result["stopped_reason"].startswith("stopped by sensor a_dag.enough: accuracy >= 0.9")
    assert result["simulated"]
    assert Path(result["keras_model"]).is_file()
    rows = context["task_state_store"].values["mlscale_journal"]
    assert [row["seen"]["value"] for row in rows] == [done["value"] for done in result["rounds_table"]]


@pytest.mark.long
def test_a_killed_simulation_goes_on_where_it_was_and_hears_of_new_limits(connected):
    runs = connected()
    operator, context = endless("killed", on_limit="return_best"), federated_task.context("killed")
    run_id = operator._name(context)
    with ThreadPoolExecutor() as pool:
        training = pool.submit(operator.execute, context)
        wait_for(runs, run_id, "two rounds", lambda state: len(state.rounds) >= 2)
        guard = processes.service(f"{simulated_federation.SERVICE}{run_id}.1").pid
        before = runs.directory(run_id).state()
        psutil.Process(processes.command_pid(guard)).kill()
        wait_for(runs, run_id, "the second segment", lambda state: state.segment == 2 and state.rounds[-1].segment == 2)
        done = len(runs.directory(run_id).state().rounds)
        runs.change(run_id, max_rounds=done + 5)
        result = training.result()
    assert (result["status"], result["segments"], result["simulated"]) == ("limit", 2, True)
    assert done < result["rounds"] <= done + 5 + 1
    assert [row["round"] for row in result["rounds_table"]] == list(range(1, result["rounds"] + 1))
    state = runs.directory(run_id).state()
    assert state.updated_at - state.started_at >= sum(each.seconds for each in state.rounds) - 1
    assert state.rounds[: len(before.rounds)] == before.rounds


def test_a_task_that_is_killed_leaves_no_process(connected):
    runs = connected()
    operator, context = endless("cancelled"), federated_task.context("cancelled")
    run_id = operator._name(context)
    with ThreadPoolExecutor() as pool:
        training = pool.submit(operator.execute, context)
        wait_for(runs, run_id, "a round", lambda state: len(state.rounds) >= 1)
        operator.on_kill()
        assert f"run {run_id} aborted" in str(training.exception())


@pytest.mark.long
def test_a_simulation_that_nobody_follows_ends_by_itself(connected):
    runs = connected(patience_s=2.0)
    run = endless("orphan")._run(federated_task.context("orphan"), runs, "orphan")
    runs.begin(run)
    assert processes.service(f"{simulated_federation.SERVICE}orphan.1")
    processes.wait_until(
        lambda: not processes.services(simulated_federation.SERVICE), what="the end of the orphan", timeout_s=120
    )
    assert not (runs.directory("orphan").state() or model.RunState(run_id="orphan")).status.ended


@pytest.mark.long
def test_a_dag_is_tested_without_a_federation(tmp_path):
    extra = {
        "simulated_sites": ["berlin", "turin", "boston"],
        "labels": {"berlin": {"region": "eu"}, "turin": {"region": "eu"}},
        "run_store": str(tmp_path),
    }
    env = {
        **os.environ,
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__DAGS_FOLDER": str(spark_dag.DAGS),
        "AIRFLOW_CONN_MLSCALE_FEDERATED": json.dumps({"conn_type": "mlscale_federated", "extra": extra}),
        "MLSCALE_HOME": str(tmp_path / "mlscale"),
    }
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], env=env, check=True, capture_output=True)
    words = [sys.executable, "-m", "tests.integration.spark_dag", str(tmp_path / "result.json"), "federated_by_quality"]
    done = subprocess.run(words, env=env, cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    ran = json.loads((tmp_path / "result.json").read_text())
    assert ran["state"] == "success", done.stdout[-5000:] + done.stderr[-5000:]
    trained = ran["train"]["xcoms"]
    assert (trained["reached"], trained["simulated"], trained["status"]) == (True, True, "reached")
    assert {site["site"] for site in trained["sites_table"]} == {"berlin", "turin"}
    assert ran["good"]["xcoms"]["return_value"]["value"] >= 0.9
    assert ran["train"]["state_store"]["mlscale_summary"]["simulated"]
    assert "simulated round 1 of at most 50" in done.stdout + done.stderr
    assert list((tmp_path / "mlscale" / "run").glob("*.json")) == []
