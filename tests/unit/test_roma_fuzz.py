"""Bodies made up by a machine: every parser either reads them or refuses them by name, whatever they hold."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from airflow_mlscale import errors
from airflow_mlscale.roma import authority, model, settings
from airflow_mlscale.roma.adapters import (
    access,
    compression,
    examples_codec,
    guard,
    inference,
    statuses,
    tensors,
    tfserving_codec,
    tfserving_grpc_codec,
    tfserving_wire,
    tokens,
    v2_codec,
    v2_grpc_codec,
    v2_wire,
)

fuzzed = hypothesis.settings(max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])


def tensor(name: str, datatype: str, shape: tuple[int, ...] | None) -> tensors.Tensor:
    return tensors.Tensor(name=name, graph_name=f"{name}:0", dtype="DT", datatype=datatype, shape=shape)


def signature(method: str, *inputs: tensors.Tensor) -> tensors.Signature:
    return tensors.Signature(
        name="serving_default", method=method, inputs={one.name: one for one in inputs}, outputs={"y": inputs[0]}
    )


SIGNATURES = [
    signature("predict", tensor("x", "FP32", (-1, 3))),
    signature("predict", tensor("x", "FP16", None)),
    signature("predict", tensor("x", "BF16", (-1, -1))),
    signature("predict", tensor("x", "BYTES", None)),
    signature("predict", tensor("x", "INT8", (-1,)), tensor("z", "BOOL", (-1,))),
]
EXAMPLES = {
    "classify": signature("tensorflow/serving/classify", tensor("x", "BYTES", (-1,))),
    "regress": signature("tensorflow/serving/regress", tensor("x", "BYTES", (-1,))),
}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text(max_size=8)
    | st.sampled_from(["x", "z", "y", "FP32", "BYTES", "INT8", "\ud800", "b64"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["b64", "x", "z", "data"]), inner, max_size=3)
    ),
    max_leaves=12,
)
sizes = st.lists(st.integers(-2, 4) | st.sampled_from([2**31, 2**63, 2**70]), max_size=5)


def read(codec: Any, call: model.Call, one: tensors.Signature) -> tensors.Inference | None:
    """Decode; None if it is refused as it should be. Anything else raises through."""
    try:
        found: tensors.Inference = codec.decode(call, {one.name: one}, one.name)
    except errors.InvalidInputError as exc:
        json.dumps({"error": str(exc)}).encode()  # what the client is told can be told
        return None
    for name, array in found.inputs.items():
        assert array.dtype == np.dtype(tensors.DATATYPES[one.inputs[name].datatype])
        tensors.check_shape(name, array.shape, one.inputs[name])
    return found


@fuzzed
@hypothesis.given(
    st.sampled_from(SIGNATURES),
    st.fixed_dictionaries(
        {},
        optional={
            "id": values,
            "parameters": values | st.fixed_dictionaries({"binary_data_output": values}),
            "inputs": values
            | st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "name": st.sampled_from(["x", "z"]) | values,
                        "shape": sizes | values,
                        "datatype": st.sampled_from([*tensors.DATATYPES]) | values,
                        "data": values,
                        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40)}) | values,
                    },
                ),
                max_size=3,
            ),
            "outputs": values | st.lists(st.fixed_dictionaries({"name": st.just("y") | values}), max_size=2),
        },
    ),
    st.binary(max_size=40),
    st.booleans(),
)
def test_v2_documents(one: tensors.Signature, document: Any, raw: bytes, binary: bool) -> None:
    head = json.dumps(document).encode()
    read(v2_codec, model.Call("v2", head + raw, len(head)) if binary else model.Call("v2", head), one)


@fuzzed
@hypothesis.given(
    st.sampled_from(SIGNATURES),
    st.fixed_dictionaries(
        {}, optional={"instances": values, "inputs": values, "signature_name": values, "examples": values}
    ),
)
def test_tensorflow_serving_documents(one: tensors.Signature, document: Any) -> None:
    call = model.Call("tfs", json.dumps(document).encode())
    read(tfserving_codec, call, one)


@fuzzed
@hypothesis.given(
    st.sampled_from(["classify", "regress"]),
    st.fixed_dictionaries(
        {"examples": values | st.lists(st.dictionaries(st.text(max_size=4), values, max_size=3), max_size=3)},
        optional={"context": values, "signature_name": values},
    ),
)
def test_examples(verb: Any, document: Any) -> None:
    call = model.Call("tfs", json.dumps(document).encode())
    read(examples_codec.Examples(verb=verb, grpc=False), call, EXAMPLES[verb])


@st.composite
def v2_messages(draw: st.DrawFn) -> bytes:
    """Messages that are nearly right, some with a bit turned."""
    message = v2_wire.ModelInferRequest(model_name="m", id=draw(st.text("ab", max_size=3)))
    for name in draw(st.lists(st.sampled_from(["x", "z", ""]), max_size=3)):
        shape = [size for size in draw(sizes) if abs(size) < 2**63]
        entry = message.inputs.add(name=name, datatype=draw(st.sampled_from([*tensors.DATATYPES, ""])), shape=shape)
        entry.contents.fp32_contents.extend(draw(st.lists(st.floats(width=32), max_size=4)))
        entry.contents.int_contents.extend(draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)))
        entry.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=3), max_size=3)))
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=16), max_size=3)))
    return turned(draw, message.SerializeToString())


@st.composite
def predict_messages(draw: st.DrawFn) -> bytes:
    message = tfserving_wire.PredictRequest(output_filter=draw(st.lists(st.sampled_from(["y", "q"]), max_size=2)))
    for name in draw(st.lists(st.sampled_from(["x", "z", "w"]), max_size=3)):
        proto = message.inputs[name]
        proto.dtype = draw(st.integers(0, 30))
        for size in draw(sizes):
            if abs(size) < 2**63:
                proto.tensor_shape.dim.add(size=size)
        proto.tensor_content = draw(st.just(b"") | st.binary(max_size=16))
        proto.float_val.extend(draw(st.lists(st.floats(width=32), max_size=4)))
        proto.half_val.extend(draw(st.lists(st.integers(-1, 2**16), max_size=4)))
        proto.int_val.extend(draw(st.lists(st.integers(-200, 200), max_size=4)))
        proto.bool_val.extend(draw(st.lists(st.booleans(), max_size=4)))
        proto.string_val.extend(draw(st.lists(st.binary(max_size=4), max_size=4)))
    return turned(draw, message.SerializeToString())


def turned(draw: st.DrawFn, body: bytes) -> bytes:
    if not body or draw(st.booleans()):
        return body
    at, bit = draw(st.integers(0, len(body) - 1)), draw(st.integers(0, 7))
    return body[:at] + bytes([body[at] ^ (1 << bit)]) + body[at + 1 :]


@fuzzed
@hypothesis.given(st.sampled_from(SIGNATURES), v2_messages() | st.binary(max_size=60))
def test_v2_messages(one: tensors.Signature, body: bytes) -> None:
    read(v2_grpc_codec, model.Call("v2-grpc", body), one)


@fuzzed
@hypothesis.given(st.sampled_from(SIGNATURES), predict_messages() | st.binary(max_size=60))
def test_predict_messages(one: tensors.Signature, body: bytes) -> None:
    read(tfserving_grpc_codec, model.Call("tfs-grpc", body), one)


@fuzzed
@hypothesis.given(st.sampled_from(["classify", "regress"]), st.binary(max_size=60))
def test_example_messages(verb: Any, body: bytes) -> None:
    read(examples_codec.Examples(verb=verb, grpc=True), model.Call("tfs-grpc", body), EXAMPLES[verb])


@fuzzed
@hypothesis.given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate", b"br", b"\xff", b""]))
async def test_compressed_bodies(body: bytes, encoding: bytes) -> None:
    with contextlib.suppress(errors.InvalidInputError, statuses.StatusError):
        assert len(await compression.unpack(body, encoding, limit=1000)) <= 1000


@fuzzed
@hypothesis.given(st.binary(max_size=60))
def test_accepted_encodings(accepted: bytes) -> None:
    assert compression.preferred(accepted, binary=False) in ("gzip", "deflate", None)


HEADERS = (
    inference.DEADLINE_HEADER,
    inference.PRIORITY_HEADER,
    inference.PROXY_HEADER,
    inference.HEADER_LENGTH,
    access.REQUEST_ID,
    b"authorization",
    b"traceparent",
    b"content-length",
    b"host",
)
headers = st.dictionaries(
    st.sampled_from(HEADERS),
    st.binary(max_size=30) | st.integers().map(lambda n: str(n).encode()) | st.floats().map(lambda n: str(n).encode()),
)


@fuzzed
@hypothesis.given(headers)
def test_headers(given: dict[bytes, bytes]) -> None:
    with contextlib.suppress(errors.InvalidInputError):
        wishes = inference.wishes_of(given)
        assert wishes.use_s is None or 0 < wishes.use_s <= 3600
        assert wishes.wait_s is None or wishes.wait_s > 0
    note = access.begin(given)
    assert 1 <= len(note.id) <= 128
    assert note.id.isascii()
    assert note.id.isprintable()
    with contextlib.suppress(statuses.StatusError):
        guard.check_local(given)


@fuzzed
@hypothesis.given(st.binary(max_size=80))
def test_authorizations(given: bytes) -> None:
    doorman = guard.Guard(settings.GatewaySettings(token="secret"))
    with pytest.raises(statuses.StatusError) as refused:
        doorman.admit("here", given, frozenset({"read"}))
    assert refused.value.status == 401


@fuzzed
@hypothesis.given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "X", ""]),
    st.lists(
        st.sampled_from(["v2", "v1", "models", "infer", "m", "repository", "index", "mlscale", "", ".."]) | st.text()
    ),
)
def test_every_path_needs_a_scope_and_changes_need_admin(method: str, parts: list[str]) -> None:
    needed = authority.needed(method, parts)
    assert "admin" in needed
    if method not in ("GET", "HEAD") and "read" in needed:
        assert parts[:3] == ["v2", "repository", "index"]


@fuzzed
@hypothesis.given(
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
    | st.fixed_dictionaries(
        {
            "tokens": st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "name": scalars,
                        "sha256": scalars,
                        "scopes": st.lists(scalars),
                        "rate_per_s": scalars,
                        "expires": scalars,
                    },
                )
            )
        }
    )
)
def test_token_files(document: Any) -> None:
    with tempfile.NamedTemporaryFile("w") as file:
        json.dump(document, file)
        file.flush()
        with contextlib.suppress(errors.InvalidInputError):
            tokens.load(Path(file.name))


@pytest.mark.parametrize("depth", [60, 500, 5000])
def test_deep_nesting(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    for one in SIGNATURES[:1] + SIGNATURES[3:4]:
        for body in (b'{"instances": ' + nested + b"}", b'{"inputs": ' + nested + b"}"):
            _deep(tfserving_codec, body, one)
        entry = b'{"name": "x", "shape": [1], "datatype": "BYTES", "data": ' + nested + b"}"
        _deep(v2_codec, b'{"inputs": [' + entry + b"]}", one)


def _deep(codec: Any, body: bytes, one: tensors.Signature) -> None:
    try:
        read(codec, model.Call("v2", body), one)
    except RecursionError:  # the worker tells that of any codec; see worker.Runner
        assert len(body) > 500


@fuzzed
@hypothesis.given(
    st.sampled_from([name for name in tensors.DATATYPES if name != "BYTES"]), st.binary(min_size=1, max_size=64)
)
def test_numbers_come_out_of_messages_as_they_went_in(datatype: str, raw: bytes) -> None:
    dtype = np.dtype(tensors.DATATYPES[datatype])
    raw = bytes(byte & 1 for byte in raw) if datatype == "BOOL" else raw
    array = np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype=dtype)
    one = signature("predict", tensor("x", datatype, (-1,)))
    request = v2_wire.ModelInferRequest(raw_input_contents=[array.tobytes()])
    request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    found = read(v2_grpc_codec, model.Call("v2-grpc", request.SerializeToString()), one)
    assert found is not None
    assert found.inputs["x"].tobytes() == array.tobytes()
    body = v2_grpc_codec.encode(found, {"y": array}, name="m", version="1").body
    assert v2_wire.ModelInferResponse.FromString(body).raw_output_contents == [array.tobytes()]
    answer = tfserving_grpc_codec.encode(_as_predict(found), {"y": array}, name="m", version="1").body
    sent = tfserving_wire.PredictRequest()
    sent.inputs["x"].MergeFromString(tfserving_wire.PredictResponse.FromString(answer).outputs["y"].SerializeToString())
    again = read(tfserving_grpc_codec, model.Call("tfs-grpc", sent.SerializeToString()), one)
    assert again is not None
    wide = np.float64 if datatype in tensors.FLOATS else dtype  # numpy knows no NaN among bfloat16
    np.testing.assert_array_equal(again.inputs["x"].astype(wide), array.astype(wide))


def _as_predict(found: tensors.Inference) -> tensors.Inference:
    request = tfserving_wire.PredictRequest()
    name, one = next(iter(found.signature.inputs.items()))
    request.inputs[name].dtype = tfserving_wire.NUMBERS[one.datatype]
    request.inputs[name].tensor_shape.dim.add(size=0)
    decoded = read(tfserving_grpc_codec, model.Call("tfs-grpc", request.SerializeToString()), found.signature)
    assert decoded is not None
    return decoded
