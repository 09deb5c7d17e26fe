"""The gateway's gRPC side over fake workers: real sockets and messages, no TensorFlow."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from airflow_mlscale.roma import measurement
from airflow_mlscale.roma.adapters import grpc_server, tfserving_wire, v2_wire, wire
from tests.fakes import roma_served

V2 = "/inference.GRPCInferenceService/"
TFS = "/tensorflow.serving.PredictionService/"


async def call(served: roma_served.Served, path: str, message: Any = b"", **how: Any) -> bytes:
    body = message if isinstance(message, bytes) else message.SerializeToString()
    answer: bytes = await served.channel.unary_unary(path)(body, timeout=10, **how)
    return answer


async def refused(served: roma_served.Served, path: str, message: Any = b"", **how: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call(served, path, message, **how)
    return failure.value


@pytest.fixture
async def served() -> AsyncIterator[roma_served.Served]:
    async with roma_served.serving() as one:
        yield one


def infer(name: str = "m", **fields: Any) -> Any:
    return v2_wire.ModelInferRequest(model_name=name, **fields)


async def test_health_and_metadata(served: roma_served.Served) -> None:
    assert v2_wire.ServerLiveResponse.FromString(await call(served, V2 + "ServerLive")).live
    assert v2_wire.ServerReadyResponse.FromString(await call(served, V2 + "ServerReady")).ready
    assert await call(served, "/grpc.health.v1.Health/Check") == b"\x08\x01"  # SERVING
    server = v2_wire.ServerMetadataResponse.FromString(await call(served, V2 + "ServerMetadata"))
    assert "model_repository" in server.extensions
    request = v2_wire.ModelReadyRequest(name="m", version="1")
    assert v2_wire.ModelReadyResponse.FromString(await call(served, V2 + "ModelReady", request)).ready
    for unknown in ({"name": "m", "version": "9"}, {"name": "nobody"}):
        request = v2_wire.ModelReadyRequest(**unknown)
        assert not v2_wire.ModelReadyResponse.FromString(await call(served, V2 + "ModelReady", request)).ready
    described = v2_wire.ModelMetadataResponse.FromString(
        await call(served, V2 + "ModelMetadata", v2_wire.ModelMetadataRequest(name="m"))
    )
    assert [(one.name, one.datatype, list(one.shape)) for one in described.inputs] == [("x", "FP32", [-1, 3])]


async def test_inference_passes_the_message_through_and_the_answer_back(served: roma_served.Served) -> None:
    answer = v2_wire.ModelInferResponse(model_name="m", id="7").SerializeToString()
    async with served.answering(answer):
        assert await call(served, V2 + "ModelInfer", infer(id="7")) == answer
    (seen,) = served.launcher.last.seen
    assert seen.protocol == "v2-grpc"
    assert v2_wire.ModelInferRequest.FromString(seen.body).id == "7"


@pytest.mark.parametrize(
    ("path", "message", "code"),
    [
        ("ModelInfer", infer("nobody"), grpc.StatusCode.NOT_FOUND),
        ("ModelInfer", infer(model_version="9"), grpc.StatusCode.NOT_FOUND),
        ("ModelInfer", b"\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ("ModelMetadata", v2_wire.ModelMetadataRequest(name="nobody"), grpc.StatusCode.NOT_FOUND),
        ("ModelMetadata", b"\xff", grpc.StatusCode.INVALID_ARGUMENT),
        ("RepositoryModelLoad", v2_wire.RepositoryModelLoadRequest(model_name="x"), grpc.StatusCode.NOT_FOUND),
        ("SystemSharedMemoryStatus", b"", grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_errors_have_their_codes(
    served: roma_served.Served, path: str, message: Any, code: grpc.StatusCode
) -> None:
    assert (await refused(served, V2 + path, message)).code() == code


async def test_what_the_worker_refuses_is_told_in_its_words(served: roma_served.Served) -> None:
    async with served.answering(json.dumps({"error": "inputs: no"}).encode(), 400):
        failure = await refused(served, V2 + "ModelInfer", infer())
    assert (failure.code(), failure.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "inputs: no")


async def test_a_request_without_time_left_is_given_up(served: roma_served.Served) -> None:
    served.occupy()
    metadata = (("x-mlscale-deadline-ms", "20"),)
    failure = await refused(served, V2 + "ModelInfer", infer(), metadata=metadata)
    assert failure.code() == grpc.StatusCode.UNAVAILABLE
    assert "cannot be answered within 20 ms" in str(failure.details())
    assert dict(failure.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"


async def test_a_client_that_leaves_leaves_the_line(served: roma_served.Served) -> None:
    served.occupy()
    replica = served.replica
    asked = asyncio.ensure_future(call(served, V2 + "ModelInfer", infer()))
    while not replica.waiting:
        await asyncio.sleep(0.001)
    asked.cancel()
    while replica.meter.totals[measurement.Outcome.CANCELLED] < 1:
        await asyncio.sleep(0.001)


async def test_a_stream_answers_each_message_and_survives_errors(served: roma_served.Served) -> None:
    stream = served.channel.stream_stream(V2 + "ModelStreamInfer")(timeout=10)
    await stream.write(infer("nobody").SerializeToString())
    first = v2_wire.ModelStreamInferResponse.FromString(await stream.read())
    assert "unknown model" in first.error_message
    answer = v2_wire.ModelInferResponse(id="2").SerializeToString()
    async with served.answering(answer):
        await stream.write(infer(id="2").SerializeToString())
        assert v2_wire.ModelStreamInferResponse.FromString(await stream.read()).infer_response == answer
    await stream.done_writing()
    assert await stream.read() is grpc.aio.EOF


async def test_the_repository(served: roma_served.Served) -> None:
    await call(served, V2 + "RepositoryModelUnload", v2_wire.RepositoryModelUnloadRequest(model_name="m"))
    index = v2_wire.RepositoryIndexResponse.FromString(await call(served, V2 + "RepositoryIndex"))
    assert [(one.name, one.state) for one in index.models] == [("m", "UNAVAILABLE"), ("found", "UNAVAILABLE")]
    request = v2_wire.RepositoryModelLoadRequest(model_name="m")
    request.parameters["config"].string_param = "{}"
    assert (await refused(served, V2 + "RepositoryModelLoad", request)).code() == grpc.StatusCode.INVALID_ARGUMENT
    await call(served, V2 + "RepositoryModelLoad", v2_wire.RepositoryModelLoadRequest(model_name="m"))
    ready = v2_wire.RepositoryIndexRequest(ready=True)
    index = v2_wire.RepositoryIndexResponse.FromString(await call(served, V2 + "RepositoryIndex", ready))
    assert [one.state for one in index.models] == ["READY"]


def predict(**spec: Any) -> Any:
    request = tfserving_wire.PredictRequest()
    for name, value in spec.items():
        if name == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, name, value)
    return request


@pytest.mark.parametrize(("verb", "protocol"), [("Predict", ""), ("Classify", "-classify"), ("Regress", "-regress")])
async def test_tensorflow_serving_verbs(served: roma_served.Served, verb: str, protocol: str) -> None:
    async with served.answering(b"answer"):
        assert await call(served, TFS + verb, predict(name="m", version=1)) == b"answer"
    assert served.launcher.last.seen[-1].protocol == "tfs-grpc" + protocol


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"name": "nobody"}, grpc.StatusCode.NOT_FOUND),
        ({"name": "m", "version": 9}, grpc.StatusCode.NOT_FOUND),
        ({"name": "m", "version_label": "canary"}, grpc.StatusCode.NOT_FOUND),
        ({"name": "m", "version": 1, "version_label": "stable"}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_tensorflow_serving_names_models(
    served: roma_served.Served, spec: dict[str, Any], code: grpc.StatusCode
) -> None:
    assert (await refused(served, TFS + "Predict", predict(**spec))).code() == code


async def test_tensorflow_serving_metadata_and_status(served: roma_served.Served) -> None:
    request = tfserving_wire.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name, request.model_spec.version_label = "m", "stable"
    response = tfserving_wire.GetModelMetadataResponse.FromString(await call(served, TFS + "GetModelMetadata", request))
    assert response.model_spec.version.value == 1
    signatures = wire.parse(tfserving_wire.SignatureDefMap, response.metadata["signature_def"].value).signature_def
    tensor = signatures["serving_default"].inputs["x"]
    assert (tensor.dtype, [dim.size for dim in tensor.tensor_shape.dim]) == (1, [-1, 3])
    status = tfserving_wire.GetModelStatusRequest()
    status.model_spec.name = "m"
    answer = await call(served, "/tensorflow.serving.ModelService/GetModelStatus", status)
    (told,) = tfserving_wire.GetModelStatusResponse.FromString(answer).model_version_status
    assert (told.version, told.state) == (1, tfserving_wire.STATES["AVAILABLE"])


async def test_a_token_is_asked_for() -> None:
    async with roma_served.serving(token="secret") as served:
        assert await call(served, V2 + "ServerLive")
        failure = await refused(served, V2 + "ModelMetadata", v2_wire.ModelMetadataRequest(name="m"))
        assert failure.code() == grpc.StatusCode.UNAUTHENTICATED
        wrong = (("authorization", "Bearer nonsense"),)
        assert (await refused(served, V2 + "RepositoryIndex", metadata=wrong)).code() == grpc.StatusCode.UNAUTHENTICATED
        right = (("authorization", "Bearer secret"),)
        assert await call(served, V2 + "RepositoryIndex", metadata=right)


async def test_large_messages_are_refused() -> None:
    async with roma_served.serving(max_body_bytes=1024) as served:
        failure = await refused(served, V2 + "ModelInfer", infer(id="x" * 2000))
        assert failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_compressed_messages_are_read(served: roma_served.Served) -> None:
    answer = v2_wire.ModelInferResponse(id="3").SerializeToString()
    async with served.answering(answer):
        request = infer(id="z" * 5000)
        assert await call(served, V2 + "ModelInfer", request, compression=grpc.Compression.Gzip) == answer
    assert served.launcher.last.seen[-1].body == request.SerializeToString()


@pytest.mark.parametrize(
    ("peer", "expected"),
    [("ipv4:10.0.0.1:4711", "10.0.0.1"), ("ipv6:%5B::1%5D:4711", "::1"), ("ipv6:[fe80::1]:4711", "fe80::1")],
)
def test_a_client_has_one_address_over_both_protocols(peer: str, expected: str) -> None:
    assert grpc_server.address(peer) == expected
