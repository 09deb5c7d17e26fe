"""The user's own Keras functions on simulated sites, recorded as a real run is."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_mlscale.federated import adaptive, client, model, simulation, stopping
from airflow_mlscale.federated.adapters import keras_simulation, run_directory
from tests.fakes import federated

pytestmark = pytest.mark.engine

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
    found = runs.met("run", stopping.Condition.at_least("accuracy", 0.9))
    assert found["value"] >= 0.9
    assert len(run_directory.RunDirectory(tmp_path / "run").records()) == len(seen.state.rounds)
