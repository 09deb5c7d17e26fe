"""The same models in TensorFlow, ONNX Runtime and OpenVINO, each in a real worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import model, ports, runtimes
from airflow_mlscale.roma.adapters import worker_process
from tests.integration import roma_models

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roma_models.built(tmp_path_factory)


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[worker_process.ProcessLauncher]:
    found = worker_process.ProcessLauncher(tmp_path / "logs")
    await found.open()
    yield found
    await found.close()


@asynccontextmanager
async def loaded(
    launcher: worker_process.ProcessLauncher, artefact: Path, runtime: str
) -> AsyncIterator[tuple[ports.WorkerPort, ports.Loaded]]:
    worker = await launcher.launch("m", [])
    order = ports.LoadOrder(
        name="m",
        version="1",
        artefact=str(artefact),
        threads=2,
        max_batch=4,
        objective_s=1,
        runtime=runtimes.Runtime(name=runtime),  # type: ignore[arg-type] # any of the names
    )
    try:
        yield worker, await worker.load(order, lambda state: None)
    finally:
        await worker.end()


def call(signature: str | None = None, **inputs: tuple[str, list[int], list[Any]]) -> model.Call:
    """Each input is its type, its shape and its values."""
    given = [
        {"name": name, "datatype": kind, "shape": shape, "data": data} for name, (kind, shape, data) in inputs.items()
    ]
    body = {"inputs": given, "parameters": {"signature_name": signature} if signature else {}}
    return model.Call("v2", json.dumps(body).encode())


async def answers(worker: ports.WorkerPort, *calls: model.Call) -> list[dict[str, Any]]:
    """The outputs of calls that run as one execution."""
    served = await worker.infer(calls)
    documents = [json.loads(answer.body) for answer in served.answers]
    assert {answer.status for answer in served.answers} == {200}, documents
    return [{one["name"]: one["data"] for one in document["outputs"]} for document in documents]


async def status(worker: ports.WorkerPort, one: model.Call) -> int:
    (answer,) = (await worker.infer([one])).answers
    return answer.status


def holds_tensorflow(worker: ports.WorkerPort) -> bool:
    return "libtensorflow" in Path(f"/proc/{worker.pid}/maps").read_text()


async def test_keras_files_answer_as_keras_does(launcher: worker_process.ProcessLauncher, models: Path) -> None:
    truth = json.loads((models / "truth.json").read_text())
    async with loaded(launcher, models / "network.keras", "auto") as (worker, found):
        assert found.batchable
        name = found.signatures["serving_default"]["inputs"][0]["name"]
        assert set(found.service_s) == {1, 2, 4}
        for rows in (1, 2):
            values = [value for row in truth["rows"][:rows] for value in row]
            (outputs,) = await answers(worker, call(**{name: ("FP32", [rows, 4], values)}))
            expected = [row[0] for row in truth["outputs"][:rows]]
            assert outputs["output_0"] == pytest.approx(expected, abs=1e-5)
        native, other = found.runtime["candidates"]
        assert (native["runtime"], other["runtime"]) == ("tensorflow", "openvino")
        assert other["refused"] is None
        assert other["greatest_difference"] < 1e-5
        assert set(other["ms"]) == set(native["ms"]) == {"1", "2", "4"}
        assert found.runtime["name"] in ("tensorflow", "openvino")


async def test_openvino_reads_saved_models_without_tensorflow(
    launcher: worker_process.ProcessLauncher, models: Path
) -> None:
    truth = json.loads((models / "truth.json").read_text())
    async with loaded(launcher, models / "keras", "openvino") as (worker, found):
        assert not holds_tensorflow(worker)
        assert set(found.signatures) == {"serve", "serving_default"}  # under which Keras exports the same
        one, other = (
            call(name, keras_tensor=("FP32", [1, 4], row))
            for name, row in zip(("serve", "serving_default"), truth["rows"], strict=True)
        )
        both = await answers(worker, one, other)
        assert [found["output_0"] for found in both] == [pytest.approx(row, abs=1e-5) for row in truth["outputs"]]
        many = [call(keras_tensor=("FP32", [1, 4], truth["rows"][index % 2])) for index in range(40)]
        found_many = await asyncio.gather(*(answers(worker, each) for each in many))  # on two threads
        for index, (outputs,) in enumerate(found_many):
            assert outputs["output_0"] == pytest.approx(truth["outputs"][index % 2], abs=1e-5)


async def test_several_signatures_stay_with_tensorflow(launcher: worker_process.ProcessLauncher, models: Path) -> None:
    async with loaded(launcher, models / "pair", "auto") as (worker, found):
        assert found.runtime["name"] == "tensorflow"
        assert holds_tensorflow(worker)
        (refused,) = found.runtime["candidates"][1:]
        assert refused["refused"] == "OpenVINO reads one signature alone, and it has serving_default, twice"
        (first,) = await answers(worker, call(a=("FP32", [1, 2], [1, 5]), b=("FP32", [1, 2], [4, 2])))
        assert first == {"sum": [5, 7], "larger": [1, 0]}
        assert await answers(worker, call("twice", a=("FP32", [1, 2], [1, 5]))) == [{"twice": [2, 10]}]


@pytest.mark.parametrize("runtime", ["native", "openvino", "auto"])
async def test_onnx_models_of_any_shape(launcher: worker_process.ProcessLauncher, models: Path, runtime: str) -> None:
    async with loaded(launcher, models / "line.onnx", runtime) as (worker, found):
        assert not holds_tensorflow(worker)
        assert found.default_signature == "serving_default"
        assert [one["shape"] for one in found.signatures["serving_default"]["inputs"]] == [[-1, -1], [-1, 1]]
        for columns in (1, 3):
            calls = [
                call(x=("FP32", [rows, columns], [3] * rows * columns), b=("FP32", [rows, 1], [rows] * rows))
                for rows in (1, 2)
            ]
            assert await answers(worker, *calls) == [
                {"y": [6 + rows] * rows * columns, "most": [6 + rows] * rows} for rows in (1, 2)
            ]
        assert await status(worker, call(x=("FP32", [3], [1, 2, 3]), b=("FP32", [1, 1], [1]))) == 400
        assert await status(worker, call(x=("FP32", [1, 1], [1]), b=("FP32", [2, 1], [1, 1]))) == 400


@pytest.mark.parametrize("runtime", ["native", "openvino"])
async def test_sixteen_bit_floats(launcher: worker_process.ProcessLauncher, models: Path, runtime: str) -> None:
    async with loaded(launcher, models / "halves.onnx", runtime) as (worker, _):
        given = call(half=("FP16", [1, 2], [0.5, -1.5]), brain=("BF16", [1, 2], [3.0, -0.25]))
        assert await answers(worker, given, given) == [{"half_out": [1.0, -3.0], "out": [3.0, -0.25]}] * 2


async def test_strings_stay_with_the_runtimes_that_know_them(
    launcher: worker_process.ProcessLauncher, models: Path
) -> None:
    async with loaded(launcher, models / "text.onnx", "auto") as (worker, found):
        assert found.runtime["name"] == "onnxruntime"
        (refused,) = found.runtime["candidates"][1:]
        assert "StringNormalizer" in refused["refused"]
        assert await answers(worker, call(text=("BYTES", [2], ["blå", "b"]))) == [{"upper": ["BLÅ", "B"]}]
        raw = json.dumps(
            {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 6}}]}
        ).encode()
        assert await status(worker, model.Call("v2", raw + b"\x02\0\0\0\xff\xfe", len(raw))) == 400


@pytest.mark.parametrize(
    ("artefact", "runtime", "fix"),
    [
        ("words", "openvino", "No conversion rule found for operations"),
        ("pair", "openvino", "OpenVINO reads one signature alone"),
        ("text.onnx", "openvino", "No conversion rule found for operations: StringNormalizer"),
        ("line.onnx", "tensorflow", "cannot run an ONNX file; choose one of onnxruntime, openvino"),
        ("line1", "onnxruntime", "cannot run a SavedModel; choose one of tensorflow, openvino"),
        ("broken", "openvino", "it is no SavedModel"),
    ],
)
async def test_what_a_runtime_cannot_is_told(
    launcher: worker_process.ProcessLauncher, models: Path, artefact: str, runtime: str, fix: str
) -> None:
    with pytest.raises(errors.ModelArtefactError, match=fix):
        async with loaded(launcher, models / artefact, runtime):
            pass
