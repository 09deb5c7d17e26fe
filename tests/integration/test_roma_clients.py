"""The official clients of both protocols, unchanged, against a real daemon with real models."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient import utils as triton

from tests.integration import roma_daemon, roma_models

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

ROWS = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
MODELS = ("line1", "words", "short", "examples")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[roma_daemon.Daemon]:
    artefacts = roma_models.built(tmp_path_factory)
    with roma_daemon.running(tmp_path_factory.mktemp("clients"), "--model-root", str(artefacts)) as one:
        for name in MODELS:
            status = one.deploy(name.rstrip("1"), artefacts / name, max_cores=1)
            assert status["state"] == "ready", status
        yield one


@pytest.fixture(params=["http", "grpc"])
def kind(request: pytest.FixtureRequest) -> Any:
    """One of Triton's two client modules; they have the same classes."""
    return {"http": triton_http, "grpc": triton_grpc}[request.param]


@pytest.fixture
def client(kind: Any, daemon: roma_daemon.Daemon) -> Iterator[Any]:
    port = daemon.port if kind is triton_http else daemon.grpc_port
    with kind.InferenceServerClient(f"127.0.0.1:{port}") as one:
        yield one


def tensor(kind: Any, name: str, values: np.ndarray[Any, Any], datatype: str, **how: bool) -> Any:
    one = kind.InferInput(name, list(values.shape), datatype)
    one.set_data_from_numpy(values, **(how if kind is triton_http else {}))
    return one


def test_health_and_metadata(client: Any, kind: Any) -> None:
    as_json = {"as_json": True} if kind is triton_grpc else {}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("line")
    assert client.is_model_ready("line", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata(**as_json)["name"] == "mlscale-roma"
    described = client.get_model_metadata("words", **as_json)
    assert {one["name"]: one["datatype"] for one in described["inputs"]} == {"text": "BYTES", "n": "INT64"}


@pytest.mark.parametrize("binary", [True, False])
def test_inference(client: Any, kind: Any, binary: bool) -> None:
    outputs = [kind.InferRequestedOutput("y", binary_data=binary)] if kind is triton_http else None
    inputs = [tensor(kind, "x", ROWS, "FP32", binary_data=binary)]
    result = client.infer("line", inputs, outputs=outputs, model_version="1", request_id="7", timeout=30_000_000)
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * ROWS + 1)
    response = result.get_response()
    assert (response["id"] if kind is triton_http else response.id) == "7"


@pytest.mark.parametrize("binary", [True, False])
def test_strings(client: Any, kind: Any, binary: bool) -> None:
    inputs = [
        tensor(kind, "text", np.array(["a", "é"], dtype=object), "BYTES", binary_data=binary),
        tensor(kind, "n", np.array([1, 22]), "INT64", binary_data=binary),
    ]
    result = client.infer("words", inputs)
    assert [one.decode() for one in result.as_numpy("joined")] == ["a-1", "é-22"]
    assert result.as_numpy("length").tolist() == [3, 5]


def test_sixteen_bit_floats(client: Any, kind: Any) -> None:
    inputs = [
        tensor(kind, "half", np.array([[1.5, 2]], dtype=np.float16), "FP16"),
        tensor(kind, "brain", np.array([[0.5, 4]], dtype=ml_dtypes.bfloat16), "BF16"),
    ]
    result = client.infer("short", inputs)
    assert result.as_numpy("half_out").tolist() == [[3, 4]]
    assert result.as_numpy("brain_out").tolist() == [[1, 8]]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: Any, kind: Any, algorithm: str) -> None:
    rows = np.arange(3000, dtype=np.float32).reshape(-1, 3)
    if kind is triton_http:
        how = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    else:
        how = {"compression_algorithm": algorithm}
    result = client.infer("line", [tensor(kind, "x", rows, "FP32")], **how)
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * rows + 1)


def test_errors_are_the_clients_own(client: Any, kind: Any) -> None:
    with pytest.raises(triton.InferenceServerException, match="unknown model"):
        client.infer("nobody", [tensor(kind, "x", ROWS, "FP32")])
    with pytest.raises(triton.InferenceServerException, match=r"the model takes shape \[-1, 3\]"):
        client.infer("line", [tensor(kind, "x", ROWS[:, :2].copy(), "FP32")])
    with pytest.raises(triton.InferenceServerException, match="the model takes FP32"):
        client.infer("line", [tensor(kind, "x", ROWS.astype(np.float64), "FP64")])


def test_the_repository(client: Any, kind: Any) -> None:
    as_json = {"as_json": True} if kind is triton_grpc else {}

    def states() -> dict[str, str]:
        index = client.get_model_repository_index(**as_json)
        return {one["name"]: one["state"] for one in (index["models"] if kind is triton_grpc else index)}

    assert states()["line"] == "READY"
    client.unload_model("line")
    assert states()["line"] == "UNAVAILABLE"
    assert not client.is_model_ready("line")
    client.load_model("line")
    assert client.is_model_ready("line")


def test_a_stream(daemon: roma_daemon.Daemon) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{daemon.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(5):
            client.async_stream_infer("line", [tensor(triton_grpc, "x", ROWS + number, "FP32")], request_id=str(number))
        for number in range(5):
            result, error = answers.get(timeout=30)
            assert error is None
            assert result.get_response().id == str(number)
            np.testing.assert_array_equal(result.as_numpy("y"), 2 * (ROWS + number) + 1)
        client.async_stream_infer("nobody", [tensor(triton_grpc, "x", ROWS, "FP32")])
        result, error = answers.get(timeout=30)
        assert result is None
        assert "unknown model" in str(error)
        client.stop_stream()


def test_tensorflow_serving_stubs(daemon: roma_daemon.Daemon) -> None:
    script = Path(__file__).with_name("roma_tfs_client.py")
    command = [sys.executable, str(script), f"127.0.0.1:{daemon.grpc_port}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {
        "line": [[3.0, 5.0, 7.0]],
        "float_val": [3.0, 5.0, 7.0],
        "spec": ["line", 1, "serving_default"],
        "labelled": [[3.0, 5.0, 7.0]],
        "words": {"joined": ["a\xff-1", "b-22"]},
        "short": {"half_out": [[3.0, 4.0]], "brain_out": [[1.0, 8.0]]},
        "unknown": "NOT_FOUND",
        "classes": [[["yes", 0.25], ["no", 0.75]]],
        "numbers": [2.25],
        "not_allowed": "INVALID_ARGUMENT",
        "unpacked": True,
        "inputs": {"text": [7, [-1]], "n": [9, [-1]]},
        "status": [[1, "AVAILABLE", 0]],
    }


def test_classify_and_regress_over_rest(daemon: roma_daemon.Daemon) -> None:
    body = {"examples": [{"a": 0.25}, {"a": [1.0]}], "context": {"b": 2.0}}
    answer = daemon.call("POST", "/v1/models/examples:classify", json=body)
    assert answer.json() == {"results": [[["yes", 0.25], ["no", 0.75]], [["yes", 1.0], ["no", 0.0]]]}
    answer = daemon.call("POST", "/v1/models/examples:regress", json={**body, "signature_name": "sum"})
    assert answer.json() == {"results": [2.25, 3.0]}
    answer = daemon.call("POST", "/v1/models/line:classify", json=body)
    assert answer.status_code == 400
    assert "tensorflow/serving/classify" in answer.json()["error"]
