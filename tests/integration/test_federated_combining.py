"""A real federation of three sites that hold a common key: liars, privacy and encryption."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from airflow_mlscale.federated import account, model
from airflow_mlscale.federated.adapters import local_federation
from airflow_mlscale.federated.settings import FederationSettings
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.operators.federated import (
    Aggregation,
    FederatedTrainingOperator,
    Privacy,
    Quality,
    ServerOptimiser,
)
from airflow_mlscale.runtime import processes
from tests.fakes import federated_task

ts = pytest.importorskip("tenseal")
pytest.importorskip("opendp")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

CODE = Path(__file__).parents[1] / "fakes"


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MLSCALE_HOME", str(tmp_path_factory.mktemp("federation")))
    patch.syspath_prepend(str(CODE))
    try:
        running = local_federation.up(FederationSettings(sites=("a", "b", "c"), encrypted=True))
        patch.setenv("AIRFLOW_CONN_MLSCALE_FEDERATED", running.connection)
        yield running
    finally:
        services = [psutil.Process(found.pid) for found in processes.services("federated-")]
        everything = [*services, *(below for each in services for below in each.children(recursive=True))]
        local_federation.down()
        patch.undo()
        assert [process for process in everything if process.is_running() and process.status() != "zombie"] == []


def trained(task_id: str, **arguments) -> tuple[dict, model.RunState]:
    operator = FederatedTrainingOperator(
        **{
            "task_id": task_id,
            "model": "federated_blobs:build",
            "client_data": "federated_blobs:of_site",
            "evaluation_data": "federated_blobs:held_out",
            "extra_modules": ("federated_blobs",),
            "target": Quality("accuracy", 0.93),
            "max_rounds": 20,
            "policy": "over_selection",
            "over_selection": 1.0,  # each round waits for every site
            "on_infeasible": "go_on",
            "local_epochs": 2,
            "round_timeout": 20,
            "on_limit": "return_best",
            "poll_s": 0.2,
            **arguments,
        }
    )
    result = operator.execute(federated_task.context(task_id))
    return result, FederatedHook().runs.directory(result["run_id"]).state()


@pytest.mark.long
@pytest.mark.parametrize("lie", ["nan", "shape"])
def test_nonsense_of_one_site_is_no_part_of_the_model(federation, lie):
    result, state = trained(
        f"liar-{lie}",
        client_data="federated_liar:of_site_or_liar",
        data_args={"lie": lie},
        max_rounds=3,
        proximal_mu=0.01,
        server_optimiser=ServerOptimiser(name="fedavgm", momentum=0.3),
    )
    assert result["rounds"] >= 2
    assert {done.answered for done in state.rounds} == {("a", "b")}


@pytest.mark.long
def test_a_median_reaches_the_target_although_one_site_lies(federation):
    result, state = trained(
        "median",
        client_data="federated_liar:of_site_or_liar",
        data_args={"lie": "far"},
        min_nodes=3,
        aggregation=Aggregation(rule="median"),
    )
    assert result["reached"]
    assert {done.answered for done in state.rounds} == {("a", "b", "c")}  # it was heard, and outvoted


@pytest.mark.long
def test_a_private_run_tells_what_it_has_spent(federation):
    secret = Privacy(clip_norm=1.0, noise_multiplier=0.05)
    result, state = trained("private", privacy=secret)
    most = account.most_rounds(state.rounds)
    assert result["epsilon"] == account.epsilon(0.05, most, 1e-5) > 0
    assert result["delta"] == 1e-5
    assert result["reached"]


def test_encrypted_sites_reach_the_target_on_a_server_that_holds_no_key(federation):
    result, state = trained("encrypted", encrypted=True)
    assert result["reached"]
    assert Path(result["keras_model"]).is_file()
    assert all(len(done.answered) >= 2 for done in state.rounds)
    kits = federation.admin_kit.parent
    (servers_key,) = kits.rglob("server_context.tenseal")
    assert not ts.context_from(servers_key.read_bytes()).is_private()
    job = FederatedHook().runs.directory(result["run_id"]).last_segment()[1]
    logs = [path.read_text(errors="replace") for path in kits.rglob("*.txt") if job in str(path)]
    assert any("1 of 1 layers encrypted" in text for text in logs)
    assert json.loads((FederatedHook().runs.directory(result["run_id"]).path / "settings.json").read_text())[
        "encrypted"
    ]
