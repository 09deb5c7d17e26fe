"""A real federation: a deadline that is brought forward by hand closes the round that is open."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from airflow_mlscale import cli
from airflow_mlscale.federated import model
from airflow_mlscale.federated.adapters import local_federation
from airflow_mlscale.federated.settings import FederationSettings
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.operators.federated import FederatedTrainingOperator, Quality
from airflow_mlscale.runtime import processes
from tests.fakes import federated_task

pytestmark = [pytest.mark.engine, pytest.mark.timeout(280)]

CODE = Path(__file__).parents[1] / "fakes"
LONG_S = 1200.0
"""How long the round would stay open."""


@pytest.fixture
def federation(tmp_path, monkeypatch):
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path / "home"))
    monkeypatch.syspath_prepend(str(CODE))
    try:
        running = local_federation.up(FederationSettings(sites=("a", "b")))
        monkeypatch.setenv("AIRFLOW_CONN_MLSCALE_FEDERATED", running.connection)
        yield running
    finally:
        local_federation.down()


@pytest.mark.long
def test_a_deadline_that_is_brought_forward_closes_the_open_round(federation, tmp_path, capsys):
    operator = FederatedTrainingOperator(
        task_id="train", model="federated_blobs:build", client_data="federated_marked:of_site",
        evaluation_data="federated_blobs:held_out", data_args={"marks": str(tmp_path), "never": "b"},
        target=Quality("accuracy", 0.999), deadline=timedelta(hours=2), policy="fedavg", min_nodes=1,
        round_timeout=LONG_S, on_limit="return_best", poll_s=0.2,
    )  # fmt: skip
    context = federated_task.context("train")
    run_id = operator._name(context)
    with ThreadPoolExecutor() as pool:
        training = pool.submit(operator.execute, context)
        processes.wait_until(
            (tmp_path / "a").exists, what="site a", timeout_s=150, alive=lambda: not training.done(), poll_s=0.1
        )
        assert cli.main(["federated", "set", run_id, "--deadline", "PT10S"]) == 0  # b is waited for
        result = training.result()
    state = FederatedHook().runs.directory(run_id).state()
    assert result["status"] == model.Status.LIMIT
    assert result["stopped_reason"].startswith("the deadline passed")
    assert result["deadline_at"] == state.deadline_at < state.updated_at
    assert [done.answered for done in state.rounds] == [("a",)]
    assert state.rounds[0].seconds < LONG_S / 2
    assert Path(result["keras_model"]).is_file()
    assert cli.main(["federated", "show", run_id]) == 0
    assert "set deadline_at" in capsys.readouterr().out
