"""A real daemon, real models, real HTTP."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from prometheus_client import parser

from airflow_mlscale.runtime import processes
from tests.integration import roma_daemon, roma_models

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

X = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
GOOD = {"inputs": [X]}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roma_models.built(tmp_path_factory)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, artefacts: Path) -> Iterator[roma_daemon.Daemon]:
    """One daemon with three models that the tests here only read."""
    directory = tmp_path_factory.mktemp("daemon")
    with roma_daemon.running(directory, "--model-root", str(artefacts), "--max-body-mb", "1") as one:
        for name in ("line1", "words", "keras"):
            status = one.deploy(name.rstrip("1"), artefacts / name)
            assert status["state"] == "ready", status
        yield one


def test_v2_gives_the_models_true_outputs(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    truth = json.loads((artefacts / "truth.json").read_text())
    metadata = daemon.call("GET", "/v2/models/keras").json()
    assert metadata["platform"] == "tensorflow_savedmodel"
    (tensor,) = metadata["inputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("FP32", [-1, 4])
    body = {"id": "7", "inputs": [{**tensor, "shape": [2, 4], "data": truth["rows"]}]}
    answer = daemon.call("POST", "/v2/models/keras/infer", json=body).json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", "keras", "1")
    (output,) = answer["outputs"]
    assert output["shape"] == [2, 1]
    np.testing.assert_allclose(output["data"], np.ravel(truth["outputs"]), rtol=1e-5)


def test_tensorflow_serving_gives_the_models_true_outputs(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    truth = json.loads((artefacts / "truth.json").read_text())
    rows = daemon.call("POST", "/v1/models/keras:predict", json={"instances": truth["rows"]}).json()
    np.testing.assert_allclose(rows["predictions"], truth["outputs"], rtol=1e-5)
    body = {"inputs": truth["rows"], "signature_name": "serving_default"}
    columns = daemon.call("POST", "/v1/models/keras/versions/1:predict", json=body).json()
    np.testing.assert_allclose(columns["outputs"], truth["outputs"], rtol=1e-5)


def test_v2_binary_tensors(daemon: roma_daemon.Daemon) -> None:
    values = np.array([[1, 2, 3]], dtype="<f4").tobytes()
    entry = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": len(values)}}
    head = json.dumps({"inputs": [entry], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = daemon.call("POST", "/v2/models/line/infer", content=head + values, headers=headers)
    start = int(answer.headers["Inference-Header-Content-Length"])
    assert struct.unpack("<3f", answer.content[start:]) == (3.0, 5.0, 7.0)  # 2·x + 1


def test_strings_and_several_inputs(daemon: roma_daemon.Daemon) -> None:
    rows = {"instances": [{"text": "a", "n": 1}, {"text": {"b64": "Yg=="}, "n": 22}]}
    answer = daemon.call("POST", "/v1/models/words:predict", json=rows).json()
    assert answer == {"predictions": [{"joined": "a-1", "length": 3}, {"joined": "b-22", "length": 4}]}
    inputs = [
        {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["x"]},
        {"name": "n", "shape": [1], "datatype": "INT64", "data": [5]},
    ]
    outputs = daemon.call("POST", "/v2/models/words/infer", json={"inputs": inputs}).json()["outputs"]
    assert {one["name"]: one["data"] for one in outputs} == {"joined": ["x-5"], "length": [3]}


def test_status_and_metadata_endpoints(daemon: roma_daemon.Daemon) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/line/ready", "/v2/models/line/versions/1/ready"):
        assert daemon.call("GET", path).status_code == 200, path
    assert "binary_tensor_data" in daemon.call("GET", "/v2").json()["extensions"]
    serving = daemon.call("GET", "/v1/models/line").json()
    fine = {"error_code": "OK", "error_message": ""}
    assert serving == {"model_version_status": [{"version": "1", "state": "AVAILABLE", "status": fine}]}
    described = daemon.call("GET", "/v1/models/line/metadata").json()
    signature = described["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    index = daemon.call("POST", "/v2/repository/index", json={"ready": True}).json()
    assert {one["name"] for one in index} >= {"line", "words", "keras"}


V2, TFS = "/v2/models/line/infer", "/v1/models/line:predict"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", V2, b"{", 400, "not JSON"),
        ("POST", V2, {"inputs": [{**X, "shape": [1, 4], "data": [1, 2, 3, 4]}]}, 400, "takes shape [-1, 3]"),
        ("POST", V2, {"inputs": [{**X, "datatype": "INT64"}]}, 400, "takes FP32"),
        ("POST", V2, {"inputs": [{**X, "name": "z"}]}, 400, "'x' is missing"),
        ("POST", "/v2/models/nobody/infer", GOOD, 404, "unknown model"),
        ("POST", "/v2/models/line/versions/9/infer", GOOD, 404, "serves version 1"),
        ("POST", V2, b" " * (2**20 + 1), 413, "larger than"),
        ("GET", V2, None, 405, "use POST"),
        ("POST", TFS, b"{", 400, "not JSON"),
        ("POST", TFS, {"instances": [[1, 2]]}, 400, "takes shape [-1, 3]"),
        ("POST", TFS, {"instances": [["a", "b", "c"]]}, 400, "FP32"),
        ("POST", TFS, {"instances": [{"z": [1, 2, 3]}]}, 400, "'x' is missing"),
        ("POST", TFS, {"instances": [[1, 2, 3]], "signature_name": "no"}, 400, "serving_default"),
        ("POST", "/v1/models/nobody:predict", {"instances": [[1]]}, 404, "unknown model"),
        ("POST", "/v1/models/line:classify", {}, 400, "examples"),
        ("POST", "/v1/models/line:generate", {}, 404, "served are :predict"),
        ("POST", TFS, b" " * (2**20 + 1), 413, "larger than"),
        ("GET", "/v2/nothing", None, 404, "no such endpoint"),
        ("GET", "/nothing", None, 404, "no such endpoint"),
    ],
)
def test_errors_have_their_protocols_shape(
    daemon: roma_daemon.Daemon, method: str, path: str, body: Any, status: int, message: str
) -> None:
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    answer = daemon.call(method, path, content=content)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"artefact": "empty"}, "not a TensorFlow SavedModel"),
        ({"artefact": "nowhere"}, "no such directory"),
        ({"artefact": "/etc"}, "outside the model root"),
        ({"artefact": "../"}, "outside the model root"),
        ({"objective": {"milliseconds": 0}}, "objective.milliseconds=0"),
        ({"objective": {"milliseconds": -3}}, "objective.milliseconds=-3"),
        ({"objective": None}, "objective"),
        ({"max_batch": 0}, "max_batch=0"),
    ],
)
def test_a_wrong_deployment_is_refused_whole(daemon: roma_daemon.Daemon, change: dict[str, Any], message: str) -> None:
    body = {"artefact": "line1", "objective": {"milliseconds": 50}, **change}
    answer = daemon.call("PUT", "/v2/mlscale/models/wrong", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
    assert daemon.call("GET", "/v2/mlscale/models/wrong").status_code == 404


def test_guarantees_beyond_the_host_are_refused(daemon: roma_daemon.Daemon) -> None:
    body = {"artefact": "line1", "objective": {"milliseconds": 50}, "min_cores": 1000}
    answer = daemon.call("PUT", "/v2/mlscale/models/wrong", json=body)
    assert answer.status_code == 409
    assert "min_cores=1000" in answer.json()["error"]


def test_web_pages_are_not_served_without_a_token(daemon: roma_daemon.Daemon) -> None:
    for headers in ({"Origin": "https://example.org"}, {"Host": "rebound.example.org"}):
        assert daemon.call("GET", "/v2/repository/index", headers=headers).status_code == 403


def test_metrics_tell_of_every_model(daemon: roma_daemon.Daemon) -> None:
    assert daemon.call("POST", V2, json=GOOD).status_code == 200
    families = {one.name: one for one in parser.text_string_to_metric_families(daemon.call("GET", "/metrics").text)}
    objective = {one.labels["model"]: one.value for one in families["mlscale_roma_objective_seconds"].samples}
    assert objective["line"] == 0.1
    counted = {
        one.labels["model"]: one.value
        for one in families["mlscale_roma_request_seconds"].samples
        if one.name.endswith("_count") and one.labels["protocol"] == "v2"
    }
    assert counted["line"] >= 1
    served = [
        one.value
        for one in families["mlscale_roma_requests"].samples
        if one.labels["model"] == "line" and one.labels["outcome"] == "served"
    ]
    assert served[0] >= 1


def test_a_client_that_leaves_is_not_computed_for(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    daemon.deploy("leaving", artefacts / "burner", objective={"milliseconds": 5000}, max_cores=1)
    body = json.dumps({"inputs": {"turns": 20_000}}).encode()
    request = (
        f"POST /v1/models/leaving:predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", daemon.port)) as client:
            client.sendall(request + body)
    daemon.until("leaving", lambda status: sum(status["totals"].values()) >= 3, "the end of three requests")
    assert daemon.status("leaving")["totals"]["cancelled"] >= 1
    assert daemon.call("DELETE", "/v2/mlscale/models/leaving").status_code == 200
    assert daemon.call("GET", "/v1/models/leaving").status_code == 404


def test_a_version_that_fails_to_load_leaves_the_old_one(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    status = daemon.deploy("line", artefacts / "broken")
    assert (status["state"], status["version"]) == ("ready", "1")
    assert status["failure"]["version"] == "2"
    assert "TensorFlow cannot load it" in status["failure"]["reason"]
    assert daemon.call("POST", V2, json=GOOD).json()["outputs"][0]["data"] == [3.0, 5.0, 7.0]


def test_load_and_unload_through_the_repository(daemon: roma_daemon.Daemon) -> None:
    assert daemon.call("POST", "/v2/repository/models/line2/load").status_code == 200  # found under the model root
    assert daemon.call("POST", "/v2/models/line2/infer", json=GOOD).json()["outputs"][0]["data"] == [4.0, 7.0, 10.0]
    assert daemon.call("POST", "/v2/repository/models/line2/unload").status_code == 200
    answer = daemon.call("POST", "/v2/models/line2/infer", json=GOOD)
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert "unloaded" in answer.json()["error"]
    assert daemon.call("DELETE", "/v2/mlscale/models/line2").status_code == 200
    assert daemon.call("POST", "/v2/repository/models/nobody/load").status_code == 404


def test_overload_is_refused_with_a_time_to_come_back(tmp_path: Path, artefacts: Path) -> None:
    with roma_daemon.running(tmp_path, "--max-queue", "1") as one:
        one.deploy("burner", artefacts / "burner", objective={"milliseconds": 60_000}, max_cores=1)
        body = {"inputs": {"turns": 20_000}}
        with ThreadPoolExecutor(8) as clients:
            sent = [clients.submit(one.call, "POST", "/v1/models/burner:predict", json=body) for _ in range(8)]
            answers = [future.result() for future in sent]
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = [answer for answer in answers if answer.status_code == 429]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert "overloaded" in refused[0].json()["error"]
        assert one.status("burner")["shed"] == len(refused)


def test_a_new_version_takes_over_under_load_without_a_failure(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    daemon.deploy("swap", artefacts / "line1")
    with daemon.load("swap", requests=20_000, clients=8, deadline_ms=60_000) as report:
        daemon.until("swap", lambda status: status["requests"] > 50, "load on the old version")
        assert daemon.deploy("swap", artefacts / "line2")["version"] == "2"
        daemon.until("swap", lambda status: status["requests"] > 50, "load on the new version")
        found = report(stop=True)
    assert found["wrong"] == []
    assert list(found["statuses"]) == ["200"]
    assert found["versions"]["1"] > 0
    assert found["versions"]["2"] > 0


def test_a_killed_worker_loses_no_accepted_request(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    daemon.deploy("mortal", artefacts / "line1")
    with daemon.load("mortal", requests=20_000, clients=8, deadline_ms=120_000) as report:
        before = daemon.until("mortal", lambda status: status["requests"] > 50, "load")
        roma_daemon.kill(psutil.Process(before["worker"]["pid"]))
        served = before["totals"]["served"]
        after = daemon.until(
            "mortal", lambda status: status["totals"]["served"] > served + 50, "requests on another worker"
        )
        found = report(stop=True)
    assert (found["wrong"], list(found["statuses"])) == ([], ["200"])
    assert after["worker"]["restarts"] == 1
    assert after["worker"]["pid"] != before["worker"]["pid"]


def test_cores_follow_the_load_and_every_decision_is_written_down(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    quiet = 0.001
    before = daemon.status("line")["worker"]["pid"]
    assert daemon.deploy("line", artefacts / "line1", min_cores=quiet)["worker"]["pid"] == before  # not loaded again
    daemon.until("line", lambda status: status["cores"]["guaranteed"] == quiet, "the least cores without load")
    with daemon.load("line", requests=20_000, clients=4) as report:
        busy = daemon.until("line", lambda status: (status["cores"]["guaranteed"] or 0) > quiet, "more cores")
        report(stop=True)
    assert busy["requests"] > 0
    records = daemon.call("GET", "/v2/mlscale/models/line/journal").json()["records"]
    raised = [one for one in records if one["decided"]["guaranteed_cores"] > quiet]
    assert "requests/s" in raised[-1]["reason"]
    assert raised[-1]["seen"]["cpu_ms_per_request"] > 0


def test_a_daemon_that_is_told_to_stop_finishes_what_it_accepted(tmp_path: Path, artefacts: Path) -> None:
    with roma_daemon.running(tmp_path) as one, ThreadPoolExecutor(1) as client:
        one.deploy("burner", artefacts / "burner", objective={"milliseconds": 60_000}, max_cores=1)
        worker = psutil.Process(one.status("burner")["worker"]["pid"])
        body = {"inputs": {"turns": 30_000}}
        sent = client.submit(one.call, "POST", "/v1/models/burner:predict", json=body)
        one.until("burner", lambda status: status["queue"]["executing"] == 1, "an execution")
        guard, _, process = one.processes()
        guard.terminate()  # it tells everything below it, the worker too
        answer = sent.result()
        assert (answer.status_code, answer.json()) == (200, {"outputs": 96.0})  # the trace of a 96×96 identity
        psutil.wait_procs([process], timeout=30)
        assert ended(process)
        assert ended(worker)


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_daemon_takes_its_workers_along_and_comes_back_with_its_models(
    tmp_path: Path, artefacts: Path
) -> None:
    with roma_daemon.running(tmp_path) as one:
        one.deploy("line", artefacts / "line1", objective={"milliseconds": 70, "percentile": 99}, priority=3)
        one.deploy("words", artefacts / "words")
        workers = [psutil.Process(one.status(name)["worker"]["pid"]) for name in ("line", "words")]
        *guards, process = one.processes()
        for guard in guards:
            guard.suspend()  # so that they are not what ends the workers
        roma_daemon.kill(process)
        # Suspended guards do not reap them.
        processes.wait_until(lambda: all(map(ended, workers)), what="the end of the workers", timeout_s=20)
        for guard in guards:
            guard.kill()
        one.start()
        status = one.settled("line")
        assert status["state"] == "ready"
        assert status["objective"] == {"milliseconds": 70, "percentile": 99}
        assert status["priority"] == 3
        assert one.call("POST", V2, json=GOOD).json()["outputs"][0]["data"] == [3.0, 5.0, 7.0]
        assert one.settled("words")["state"] == "ready"


def test_a_token_is_asked_for(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a-long-secret\n")
    with roma_daemon.running(tmp_path, "--token-file", str(token), "--access-log") as one:
        path = "/v2/mlscale/models"
        assert one.call("GET", "/v2/health/ready").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a-long-secret"}):
            answer = one.call("GET", path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert one.call("GET", path, headers={"Authorization": "Bearer a-long-secret"}).status_code == 200
    logged = one.log_path.read_text()
    assert "a-long-secret" not in logged
    assert '"status": 401' in logged


def test_addresses_and_states_that_cannot_be_had_are_refused(daemon: roma_daemon.Daemon, tmp_path: Path) -> None:
    for arguments, message in {
        ("--host", "0.0.0.0"): "needs a token",
        ("--port", str(daemon.port)): "cannot listen there",
        ("--port", "0", "--state", str(daemon.state)): "another daemon uses this directory",
    }.items():
        command = [sys.executable, "-m", "airflow_mlscale.cli", "roma", "serve", "--state", str(tmp_path / "state")]
        ended = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 2
        assert message in ended.stderr
