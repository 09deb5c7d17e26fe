"""Both protocols' bodies, good and bad, without TensorFlow."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.roma.adapters import frames, tensors, tfserving_codec, v2_codec


def tensor(name: str, datatype: str, shape: tuple[int, ...] | None) -> tensors.Tensor:
    return tensors.Tensor(name=name, graph_name=f"{name}:0", dtype="DT", datatype=datatype, shape=shape)


def signature(inputs: list[tensors.Tensor], outputs: list[tensors.Tensor]) -> tensors.Signature:
    return tensors.Signature(
        name="serving_default",
        method="predict",
        inputs={one.name: one for one in inputs},
        outputs={one.name: one for one in outputs},
    )


NUMBERS = signature([tensor("x", "FP32", (-1, 3))], [tensor("y", "FP32", (-1, 3))])
TWO = signature(
    [tensor("a", "INT64", (-1,)), tensor("s", "BYTES", (-1,))],
    [tensor("n", "INT64", (-1,)), tensor("t_bytes", "BYTES", (-1,)), tensor("t", "BYTES", (-1,))],
)
X = {"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}


def v2(document: Any, one: tensors.Signature = NUMBERS, raw: bytes | None = None) -> tensors.Inference:
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    call = model.Call("v2", head + (raw or b""), None if raw is None else len(head))
    return v2_codec.decode(call, {one.name: one}, one.name)


def tfs(document: Any, one: tensors.Signature = NUMBERS) -> tensors.Inference:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return tfserving_codec.decode(model.Call("tfs", body), {one.name: one}, one.name)


@pytest.mark.parametrize("data", [[1, 2, 3, 4, 5, 6], [[1, 2, 3], [4, 5, 6]]])
def test_v2_data_is_flat_or_nested(data: Any) -> None:
    array = v2({"inputs": [{**X, "data": data}]}).inputs["x"]
    assert array.dtype == np.float32
    assert array.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_v2_binary_tensors() -> None:
    values = np.array([[1.5, 2, 3]], dtype="<f4")
    entry = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12}}
    inference = v2({"inputs": [entry], "parameters": {"binary_data_output": True}}, raw=values.tobytes())
    assert inference.inputs["x"].tolist() == [[1.5, 2.0, 3.0]]
    answer = v2_codec.encode(inference, {"y": values}, name="m", version="1")
    assert answer.header_length is not None
    head = json.loads(answer.body[: answer.header_length])
    assert head["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
    ]
    assert answer.body[answer.header_length :] == values.tobytes()


def test_v2_binary_strings_have_their_lengths_before_them() -> None:
    raw = struct.pack("<q", 7) + struct.pack("<I", 2) + b"hi"
    entries = [
        {"name": "a", "shape": [1], "datatype": "INT64", "parameters": {"binary_data_size": 8}},
        {"name": "s", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}},
    ]
    inference = v2({"inputs": entries}, TWO, raw)
    assert inference.inputs["s"].tolist() == [b"hi"]
    assert inference.inputs["a"].tolist() == [7]


def test_v2_answers_with_the_id_and_only_with_what_was_asked_for() -> None:
    inference = v2(
        {
            "id": "q1",
            "inputs": [
                {"name": "a", "shape": [1], "datatype": "INT64", "data": [1]},
                {"name": "s", "shape": [1], "datatype": "BYTES", "data": ["é"]},
            ],
            "outputs": [{"name": "t"}],
        },
        TWO,
    )
    text = np.array(["é".encode()], dtype=object)
    outputs = {"n": np.array([3]), "t_bytes": text, "t": text}
    answer = json.loads(v2_codec.encode(inference, outputs, name="m", version="4").body)
    assert answer == {
        "model_name": "m",
        "model_version": "4",
        "id": "q1",
        "outputs": [{"name": "t", "datatype": "BYTES", "shape": [1], "data": ["é"]}],
    }


@pytest.mark.parametrize(
    ("document", "field"),
    [
        (b"{", "body"),
        (b"\xff\xfe", "body"),
        (b"[" * 100_000, "body"),
        ([], "body"),
        ({}, "inputs"),
        ({"inputs": []}, "inputs"),
        ({"inputs": [5]}, "inputs[0]"),
        ({"inputs": [{**X, "name": "z"}]}, "inputs"),
        ({"inputs": [X, X]}, "inputs[1].name"),
        ({"inputs": [{**X, "datatype": "FP64"}]}, "input 'x' datatype"),
        ({"inputs": [{**X, "shape": [3, 2]}]}, "input 'x' shape"),
        ({"inputs": [{**X, "shape": [2, 4]}]}, "input 'x' shape"),
        ({"inputs": [{**X, "shape": [-2, -3]}]}, "input 'x' shape"),
        ({"inputs": [{**X, "shape": [2**40, 2**40], "data": []}]}, "input 'x' shape"),
        ({"inputs": [{**X, "shape": "2,3"}]}, "input 'x' shape"),
        ({"inputs": [{**X, "data": [1, 2, 3, 4, 5, "six"]}]}, "input 'x'"),
        ({"inputs": [{**X, "data": [[1, 2], [3]]}]}, "input 'x'"),
        ({"inputs": [{**X, "data": [None] * 6}]}, "input 'x'"),
        ({"inputs": [{key: X[key] for key in ("name", "shape", "datatype")}]}, "input 'x' data"),
        ({"inputs": [X], "id": 5}, "id"),
        ({"inputs": [X], "outputs": [{"name": "q"}]}, "outputs[0].name"),
        ({"inputs": [X], "outputs": [{"name": ["y"]}]}, "outputs[0].name"),
        ({"inputs": [X], "parameters": {"signature_name": "other"}}, "signature_name"),
    ],
)
def test_v2_names_what_is_wrong(document: Any, field: str) -> None:
    with pytest.raises(errors.InvalidInputError) as refused:
        v2(document)
    assert refused.value.field == field
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("size", "raw"), [(12, b"short"), (8, b"x" * 8), (12, b"x" * 13), (-1, b""), ("12", b"x" * 12)]
)
def test_v2_binary_sizes_must_agree(size: Any, raw: bytes) -> None:
    entry = {"name": "x", "shape": [1, 3], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    with pytest.raises(errors.InvalidInputError):
        v2({"inputs": [entry]}, raw=raw)


@pytest.mark.parametrize(
    ("values", "datatype"), [([1.5], "INT32"), ([300], "INT8"), ([-1], "UINT8"), ([2**70], "INT64"), ([1], "BOOL")]
)
def test_numbers_that_do_not_fit_are_refused_not_bent(values: list[Any], datatype: str) -> None:
    with pytest.raises(errors.InvalidInputError, match=datatype if datatype != "INT64" else "equal length|fit|only"):
        tensors.from_values("x", values, tensor("x", datatype, (-1,)))


def test_large_and_small_unsigned_numbers_stand_beside_each_other() -> None:
    array = tensors.from_values("x", [1, 2**64 - 1], tensor("x", "UINT64", (-1,)))
    assert array.tolist() == [1, 2**64 - 1]
    with pytest.raises(errors.InvalidInputError, match="does not fit"):
        tensors.from_values("x", [1, 2**63], tensor("x", "INT64", (-1,)))


@pytest.mark.parametrize(
    "document",
    [
        {"instances": [[1, 2, 3], [4, 5, 6]]},
        {"instances": [{"x": [1, 2, 3]}, {"x": [4, 5, 6]}]},
        {"inputs": [[1, 2, 3], [4, 5, 6]]},
        {"inputs": {"x": [[1, 2, 3], [4, 5, 6]]}, "signature_name": "serving_default"},
    ],
)
def test_tfs_rows_and_columns(document: Any) -> None:
    assert tfs(document).inputs["x"].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_tfs_answers_rows_with_rows_and_columns_with_columns() -> None:
    outputs = {"y": np.array([[1.0, 2, 3]], dtype=np.float32)}
    rows, columns = tfs({"instances": [[1, 2, 3]]}), tfs({"inputs": [[1, 2, 3]]})
    encode = tfserving_codec.encode
    assert json.loads(encode(rows, outputs, name="m", version="1").body) == {"predictions": [[1.0, 2.0, 3.0]]}
    assert json.loads(encode(columns, outputs, name="m", version="1").body) == {"outputs": [[1.0, 2.0, 3.0]]}


def test_tfs_strings_are_text_or_base64() -> None:
    raw = b"\x00\xff"
    encoded = {"b64": base64.b64encode(raw).decode()}
    inference = tfs({"instances": [{"a": 1, "s": encoded}, {"a": 2, "s": "text"}]}, TWO)
    assert inference.inputs["s"].tolist() == [raw, b"text"]
    strings = np.array([raw, b"text"], dtype=object)
    answer = tfserving_codec.encode(
        inference, {"n": np.array([1, 2]), "t_bytes": strings, "t": strings}, name="m", version="1"
    )
    assert json.loads(answer.body)["predictions"][0]["t_bytes"] == encoded
    assert json.loads(answer.body)["predictions"][1] == {
        "n": 2,
        "t": "text",
        "t_bytes": {"b64": base64.b64encode(b"text").decode()},
    }


@pytest.mark.parametrize(
    ("document", "field", "one"),
    [
        (b"nonsense", "body", NUMBERS),
        ({}, "body", NUMBERS),
        ({"instances": [[1, 2, 3]], "inputs": [[1, 2, 3]]}, "body", NUMBERS),
        ({"instances": []}, "instances", NUMBERS),
        ({"instances": 5}, "instances", NUMBERS),
        ({"instances": [[1, 2]]}, "input 'x' shape", NUMBERS),
        ({"instances": [[1, 2, "3"]]}, "input 'x'", NUMBERS),
        ({"instances": [{"x": [1, 2, 3]}, [4, 5, 6]]}, "instances", NUMBERS),
        ({"instances": [{"z": [1, 2, 3]}]}, "inputs", NUMBERS),
        ({"instances": [[1, 2, 3]], "signature_name": "none"}, "signature_name", NUMBERS),
        ({"instances": [1]}, "instances", TWO),
        ({"inputs": {"a": [1]}}, "inputs", TWO),
        ({"inputs": {"a": [1, 2], "s": ["x"]}}, "inputs", TWO),
        ({"inputs": {"a": [1], "s": [{"b64": "%%%"}]}}, "input 's'", TWO),
        ({"inputs": {"a": [1], "s": [7]}}, "input 's'", TWO),
    ],
)
def test_tfs_names_what_is_wrong(document: Any, field: str, one: tensors.Signature) -> None:
    with pytest.raises(errors.InvalidInputError) as refused:
        tfs(document, one)
    assert refused.value.field == field


def test_tfs_rows_need_a_row_of_every_output() -> None:
    with pytest.raises(errors.InvalidInputError, match="use the 'inputs' format"):
        tfserving_codec.encode(tfs({"instances": [[1, 2, 3]]}), {"y": np.array(5.0)}, name="m", version="1")


def test_frames_survive_any_cutting_of_the_stream() -> None:
    sent = [({"kind": "a"}, b"xyz"), ({"kind": "b", "n": 1}, b""), ({"kind": "c"}, bytes(range(256)))]
    stream = b"".join(frames.pack(header, [body]) for header, body in sent)
    for step in (1, 3, 7, len(stream)):
        received: list[tuple[frames.Header, bytes]] = []
        splitter = frames.Splitter(lambda header, body, to=received: to.append((header, body)))
        for start in range(0, len(stream), step):
            splitter.feed(stream[start : start + step])
        assert received == sent
