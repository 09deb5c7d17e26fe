"""A run in a real MLflow store, told by whoever follows it."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from airflow.sdk import Connection
from mlflow import MlflowClient

from airflow_mlscale import errors
from airflow_mlscale.federated import following, model
from airflow_mlscale.federated.adapters import mlflow_log
from airflow_mlscale.hooks.mlflow import MLflow
from airflow_mlscale.triggers.federated import FederatedRunTrigger
from tests.fakes import federated


def news(*values: float, **changes) -> following.News:
    state = federated.state(*values, **{"status": model.Status.RUNNING, "started_at": 1000.0, "target": 0.9, **changes})
    return following.News(federated.settings(), state, ())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A database, and an experiment whose artefacts are files beside it."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    MlflowClient(uri).create_experiment("runs", artifact_location=folder.as_uri())
    return uri


def found(store: str, run_id: str = "run"):
    mlflow = MlflowClient(store)
    (experiment,) = mlflow.search_experiments(filter_string="name = 'runs'")
    runs = mlflow.search_runs([experiment.experiment_id], filter_string=f"tags.`mlscale.run_id` = '{run_id}'")
    return mlflow, runs


def test_each_round_is_logged_once_whoever_follows_and_the_end_brings_the_files(store, tmp_path):
    card = tmp_path / "model_card.md"
    card.write_text("a card")
    card.with_suffix(".json").write_text("{}")
    MLflow(tracking_uri=store, experiment="runs").log()(news(0.5))
    second = MLflow(tracking_uri=store, experiment="runs").log()  # a triggerer, say
    second(news(0.5, 0.75))
    second(news(0.5, 0.75))
    ended = news(0.5, 0.75, 0.95, status=model.Status.REACHED, saved_model=str(tmp_path / "saved_model"), epsilon=2.5)
    for log in (second, MLflow(tracking_uri=store, experiment="runs").log()):
        log(ended)

    mlflow, (run,) = found(store)
    history = mlflow.get_metric_history(run.info.run_id, "accuracy")
    assert [(each.step, each.value) for each in history] == [(1, 0.5), (2, 0.75), (3, 0.95)]
    assert run.data.metrics["epsilon"] == 2.5
    assert (run.data.params["policy"], run.data.params["target"]) == ("adaptive", "accuracy >= 0.9")
    assert (run.data.tags["mlscale.status"], run.data.tags["mlscale.target"]) == ("reached", "0.9")
    assert (run.info.status, run.info.start_time) == ("FINISHED", 1_000_000)
    assert {"model_card.md", "model_card.json", "rounds.png"} <= {
        each.path for each in mlflow.list_artifacts(run.info.run_id)
    }


def test_a_run_that_goes_on_after_its_end_is_the_same_one(store):
    other = {"run_id": "again"}
    log = mlflow_log.MlflowLog(store, "runs")

    def told(*values, **changes):
        seen = news(*values, **{**other, **changes})
        return replace(seen, run=replace(seen.run, run_id="again"))

    log(told(0.5, status=model.Status.ABORTED))
    assert found(store, "again")[1][0].info.status == "KILLED"
    log(told(0.5, 0.6))
    _, (run,) = found(store, "again")
    assert (run.info.status, run.data.metrics["round"]) == ("RUNNING", 2)


def test_what_goes_wrong_is_told_once_without_secrets_and_harms_nobody(caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    asked = []

    class Broken(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Authorization"))
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connection = Connection(
            conn_id="mlflow",
            conn_type="http",
            host="127.0.0.1",
            port=server.server_port,
            login="me",
            password="se@cret",
        )
        log = MLflow(conn_id="mlflow").log_by(connection)
        with caplog.at_level(logging.WARNING, mlflow_log.__name__):
            log(news(0.5))
            log(news(0.5, 0.6))
        server.shutdown()
    (warning,) = [record.getMessage() for record in caplog.records if record.name == mlflow_log.__name__]
    assert warning.startswith("run run is not logged to MLflow for now: ")
    assert "se" + "@cret" not in caplog.text
    assert "se%40cret" not in caplog.text + repr(log)
    assert set(asked) == {"Basic bWU6c2VAY3JldA=="}  # me:se@cret


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("mlflow", {}),
        ("mlflow", {"tracking_uri": "http://mlflow", "conn_id": "mlflow"}),
        ("mlflow.experiment", {"tracking_uri": "http://mlflow", "experiment": ""}),
        ("mlflow.tracking_uri", {"tracking_uri": "http://me:secret@mlflow"}),
    ],
)
def test_a_wrong_place_is_refused_when_the_dag_is_parsed(field, arguments):
    with pytest.raises(errors.InvalidInputError) as refused:
        MLflow(**arguments)
    assert refused.value.field == field
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("connection", "address"),
    [
        ({"host": "https://ml.example.org"}, "https://ml.example.org"),
        ({"host": "ml", "port": 5000, "schema": "https"}, "https://ml:5000"),
        ({"host": "http://ml", "port": 5000, "login": "me", "password": "a/b"}, "http://me:a%2Fb@ml:5000"),
        ({"host": "sqlite:////srv/mlflow.db"}, "sqlite:////srv/mlflow.db"),
    ],
)
def test_a_connection_is_an_address(connection, address):
    log = MLflow(conn_id="mlflow").log_by(Connection(conn_id="mlflow", conn_type="http", **connection))
    assert log.tracking_uri == address


def test_a_trigger_knows_the_place_as_json():
    place = MLflow(conn_id="mlflow", experiment="runs")
    trigger = FederatedRunTrigger(run_id="run", conn_id="c", told=3, mlflow=place.to_json())
    assert MLflow.from_json(trigger.serialize()[1]["mlflow"]) == place
