"""The gRPC codecs, good and bad, and the declared messages against the official ones."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.roma.adapters import (
    examples_codec,
    tensors,
    tfserving_grpc_codec,
    tfserving_wire,
    v2_codec,
    v2_grpc_codec,
    v2_wire,
    worker,
)

PREDICT = "tensorflow/serving/predict"


def tensor(name: str, datatype: str, shape: tuple[int, ...] | None) -> tensors.Tensor:
    return tensors.Tensor(name=name, graph_name=f"{name}:0", dtype="DT", datatype=datatype, shape=shape)


def signature(
    inputs: list[tensors.Tensor], outputs: list[tensors.Tensor], method: str = PREDICT
) -> dict[str, tensors.Signature]:
    one = tensors.Signature(
        name="serving_default",
        method=method,
        inputs={each.name: each for each in inputs},
        outputs={each.name: each for each in outputs},
    )
    return {one.name: one}


def values(datatype: str) -> tensors.Array:
    if datatype == "BYTES":
        found = np.empty((1, 2), dtype=object)
        found[0] = [b"\x00\xff", b"text"]
        return found
    return np.array([[1, 0]]).astype(tensors.DATATYPES[datatype])


def same(datatype: str) -> dict[str, tensors.Signature]:
    """A signature that gives back what it takes."""
    return signature([tensor("x", datatype, (-1, 2))], [tensor("y", datatype, (-1, 2))])


def infer(datatype: str, **fields: Any) -> Any:
    request = v2_wire.ModelInferRequest(model_name="m", **fields)
    request.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    return request


def decoded(request: Any, signatures: dict[str, tensors.Signature]) -> tensors.Inference:
    return v2_grpc_codec.decode(model.Call("v2-grpc", request.SerializeToString()), signatures, "serving_default")


@pytest.mark.parametrize("datatype", [*tensors.DATATYPES])
def test_raw_tensors_come_and_go_in_every_type(datatype: str) -> None:
    raw = tensors.to_raw(values(datatype))
    inference = decoded(infer(datatype, raw_input_contents=[raw], id="7"), same(datatype))
    np.testing.assert_array_equal(inference.inputs["x"], values(datatype))
    answer = v2_grpc_codec.encode(inference, {"y": values(datatype)}, name="m", version="3")
    response = v2_wire.ModelInferResponse.FromString(answer.body)
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "7")
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", datatype, [1, 2])
    assert response.raw_output_contents == [raw]


@pytest.mark.parametrize("datatype", [*v2_wire.CONTENTS])
def test_typed_tensors_come_and_go_in_every_type_that_has_a_form(datatype: str) -> None:
    request, field = infer(datatype), v2_wire.CONTENTS[datatype]
    getattr(request.inputs[0].contents, field).extend(values(datatype).ravel().tolist())
    inference = decoded(request, same(datatype))
    np.testing.assert_array_equal(inference.inputs["x"], values(datatype))
    answer = v2_grpc_codec.encode(inference, {"y": values(datatype)}, name="m", version="3")
    response = v2_wire.ModelInferResponse.FromString(answer.body)
    contents = v2_wire.Contents.FromString(response.outputs[0].contents.SerializeToString())
    assert list(getattr(contents, field)) == values(datatype).ravel().tolist()
    assert not response.raw_output_contents


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_types_without_a_typed_form_are_answered_raw(datatype: str) -> None:
    signatures = signature([tensor("x", "BOOL", (-1, 2))], [tensor("y", datatype, (-1, 2))])
    request = infer("BOOL")
    request.inputs[0].contents.bool_contents.extend([True, False])
    answer = v2_grpc_codec.encode(decoded(request, signatures), {"y": values(datatype)}, name="m", version="1")
    response = v2_wire.ModelInferResponse.FromString(answer.body)
    assert response.raw_output_contents == [tensors.to_raw(values(datatype))]


def changed(**fields: Any) -> Any:
    """A good request of FP32 with something changed in it."""
    request = infer("FP32", raw_input_contents=[bytes(8)])
    for name, value in fields.items():
        if name in ("name", "datatype"):
            setattr(request.inputs[0], name, value)
        elif name == "shape":
            request.inputs[0].shape[:] = value
        elif name == "raw":
            request.raw_input_contents[:] = value
        elif name == "outputs":
            for output in value:
                request.outputs.add(name=output)
        else:
            raise AssertionError(name)
    return request


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "z"}, "inputs"),
        ({"datatype": "FP64"}, "input 'x' datatype"),
        ({"shape": [2, 2]}, "input 'x'"),
        ({"shape": [1, 3]}, "input 'x' shape"),
        ({"shape": [-1, 2]}, "input 'x' shape"),
        ({"raw": [bytes(7)]}, "input 'x'"),
        ({"raw": [bytes(8), bytes(8)]}, "raw_input_contents"),
        ({"raw": []}, "input 'x' shape"),
        ({"outputs": ["q"]}, "outputs[0].name"),
    ],
)
def test_v2_messages_name_what_is_wrong(fields: Any, field: str) -> None:
    with pytest.raises(errors.InvalidInputError) as refused:
        decoded(changed(**fields), same("FP32"))
    assert refused.value.field == field


def test_extensions_that_are_not_served_are_refused() -> None:
    request = changed()
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(errors.InvalidInputError, match="shared memory"):
        decoded(request, same("FP32"))
    request = changed(outputs=["y"])
    request.outputs[0].parameters["classification"].int64_param = 3
    with pytest.raises(errors.InvalidInputError, match="classification"):
        decoded(request, same("FP32"))
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    asked = {**body, "outputs": [{"name": "y", "parameters": {"classification": 3}}]}
    with pytest.raises(errors.InvalidInputError, match="classification"):
        v2_codec.decode(model.Call("v2", json.dumps(asked).encode()), same("FP32"), "serving_default")


def test_numbers_that_json_has_not_are_null() -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    inference = v2_codec.decode(model.Call("v2", json.dumps(body).encode()), same("FP32"), "serving_default")
    output = np.array([[np.nan, 0.5]], dtype=np.float32)
    answer = v2_codec.encode(inference, {"y": output}, name="m", version="1").body
    assert json.loads(answer, parse_constant=pytest.fail)["outputs"][0]["data"] == [None, 0.5]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_short_floats_in_json(datatype: str) -> None:
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": datatype, "data": [1.5, 2]}]}
    inference = v2_codec.decode(model.Call("v2", json.dumps(body).encode()), same(datatype), "serving_default")
    assert inference.inputs["x"].dtype == np.dtype(tensors.DATATYPES[datatype])
    answer = v2_codec.encode(inference, {"y": inference.inputs["x"]}, name="m", version="1").body
    assert json.loads(answer)["outputs"][0]["data"] == [1.5, 2.0]


def predict(datatype: str, **fields: Any) -> Any:
    request = tfserving_wire.PredictRequest()
    proto = request.inputs["x"]
    proto.dtype = tfserving_wire.NUMBERS[datatype]
    for size in fields.pop("shape", [1, 2]):
        proto.tensor_shape.dim.add(size=size)
    for name, value in fields.items():
        if name == "tensor_content":
            proto.tensor_content = value
        else:
            getattr(proto, name).extend(value)
    return request


def decoded_predict(request: Any, signatures: dict[str, tensors.Signature]) -> tensors.Inference:
    return tfserving_grpc_codec.decode(
        model.Call("tfs-grpc", request.SerializeToString()), signatures, "serving_default"
    )


@pytest.mark.parametrize("datatype", [*tensors.DATATYPES])
def test_predict_in_every_type(datatype: str) -> None:
    array = values(datatype)
    flat = array.ravel()
    typed = (flat.view(np.uint16) if datatype in ("FP16", "BF16") else flat).tolist()
    forms = [{tfserving_wire.VALUES[datatype]: typed}]
    if datatype != "BYTES":
        forms.append({"tensor_content": tensors.to_raw(array)})
    for form in forms:
        inference = decoded_predict(predict(datatype, **form), same(datatype))
        np.testing.assert_array_equal(inference.inputs["x"], array)
        body = tfserving_grpc_codec.encode(inference, {"y": array}, name="m", version="3").body
        response = tfserving_wire.PredictResponse.FromString(body)
        assert (response.model_spec.name, response.model_spec.version.value) == ("m", 3)
        proto = tfserving_wire.TensorProto.FromString(response.outputs["y"].SerializeToString())
        assert list(getattr(proto, tfserving_wire.VALUES[datatype])) == typed


def test_one_value_fills_a_tensor() -> None:
    inference = decoded_predict(predict("FP32", shape=[3, 2], float_val=[1.5, 2.5]), same("FP32"))
    assert inference.inputs["x"].tolist() == [[1.5, 2.5], [2.5, 2.5], [2.5, 2.5]]
    assert decoded_predict(predict("FP32"), same("FP32")).inputs["x"].tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (predict("FP64", double_val=[1, 2]), "input 'x' datatype"),
        (predict("FP32", shape=[1, 3]), "input 'x' shape"),
        (predict("FP32", shape=[-1, 2]), "input 'x' shape"),
        (predict("FP32", float_val=[1, 2, 3]), "input 'x' shape"),
        (predict("FP32", tensor_content=bytes(7)), "input 'x'"),
        (predict("FP32", shape=[2**40, 2], float_val=[1]), "input 'x' shape"),
    ],
)
def test_predict_names_what_is_wrong(request_: Any, field: str) -> None:
    with pytest.raises(errors.InvalidInputError) as refused:
        decoded_predict(request_, same("FP32"))
    assert refused.value.field == field


def test_predict_answers_only_what_was_asked_for() -> None:
    request = predict("FP32", float_val=[1, 2])
    request.output_filter.append("q")
    with pytest.raises(errors.InvalidInputError, match="output_filter"):
        decoded_predict(request, same("FP32"))


CLASSIFY = signature(
    [tensor("inputs", "BYTES", (-1,))],
    [tensor("classes", "BYTES", (-1, -1)), tensor("scores", "FP32", (-1, -1))],
    "tensorflow/serving/classify",
)
REGRESS = signature(
    [tensor("inputs", "BYTES", (-1,))], [tensor("outputs", "FP32", (-1, 1))], "tensorflow/serving/regress"
)


def features(serialised: bytes) -> dict[str, Any]:
    found = tfserving_wire.Example.FromString(serialised).features.feature
    return {name: [list(kind.value) for _, kind in found[name].ListFields()] for name in found}


def test_examples_from_json() -> None:
    body = {
        "context": {"c": 1.5, "a": [7]},
        "examples": [{"a": [1, 2], "s": ["x", {"b64": "/w=="}], "t": True}, {"c": []}],
    }
    codec = examples_codec.Examples(verb="classify", grpc=False)
    inference = codec.decode(model.Call("tfs-classify", json.dumps(body).encode()), CLASSIFY, "serving_default")
    first, second = map(features, inference.inputs["inputs"])
    assert first == {"a": [[1, 2]], "s": [[b"x", b"\xff"]], "t": [[1]], "c": [[1.5]]}  # its own a counts
    assert second == {"a": [[7]], "c": [[]]}


def test_examples_from_messages() -> None:
    example = tfserving_wire.Example()
    example.features.feature["a"].int64_list.value.append(5)
    context = tfserving_wire.Example()
    context.features.feature["c"].int64_list.value.append(6)
    plain, both = tfserving_wire.ExamplesRequest(), tfserving_wire.ExamplesRequest()
    plain.input.example_list.examples.append(example.SerializeToString())
    both.input.example_list_with_context.examples.append(example.SerializeToString())
    both.input.example_list_with_context.context = context.SerializeToString()
    codec = examples_codec.Examples(verb="regress", grpc=True)
    for request, want in ((plain, {"a": [[5]]}), (both, {"a": [[5]], "c": [[6]]})):
        call = model.Call("tfs-grpc-regress", request.SerializeToString())
        inference = codec.decode(call, REGRESS, "serving_default")
        assert features(inference.inputs["inputs"][0]) == want


def test_classes_and_numbers_are_written_in_both_forms() -> None:
    body = json.dumps({"examples": [{}, {}]}).encode()
    outputs = {
        "classes": np.array([[b"a", b"b"]] * 2, dtype=object),
        "scores": np.array([[0.25, 0.75], [1, 0]], dtype=np.float32),
    }
    rest = examples_codec.Examples(verb="classify", grpc=False)
    inference = rest.decode(model.Call("tfs-classify", body), CLASSIFY, "serving_default")
    answer = rest.encode(inference, outputs, name="m", version="2").body
    assert json.loads(answer) == {"results": [[["a", 0.25], ["b", 0.75]], [["a", 1.0], ["b", 0.0]]]}
    message = examples_codec.Examples(verb="classify", grpc=True).encode(inference, outputs, name="m", version="2").body
    response = tfserving_wire.ClassificationResponse.FromString(message)
    assert response.model_spec.version.value == 2
    rows = [[(one.label, one.score) for one in row.classes] for row in response.result.classifications]
    assert rows == [[("a", 0.25), ("b", 0.75)], [("a", 1.0), ("b", 0.0)]]
    regress = examples_codec.Examples(verb="regress", grpc=False)
    inference = regress.decode(model.Call("tfs-regress", body), REGRESS, "serving_default")
    numbers = {"outputs": np.array([[1.5], [2.5]], dtype=np.float32)}
    assert json.loads(regress.encode(inference, numbers, name="m", version="2").body) == {"results": [1.5, 2.5]}
    message = examples_codec.Examples(verb="regress", grpc=True).encode(inference, numbers, name="m", version="2").body
    response = tfserving_wire.RegressionResponse.FromString(message)
    assert [one.value for one in response.result.regressions] == [1.5, 2.5]


@pytest.mark.parametrize(
    ("document", "signatures", "field"),
    [
        ({"examples": [{}]}, REGRESS, "signature_name"),
        ({"examples": [{}]}, same("FP32"), "signature_name"),
        ({"examples": []}, CLASSIFY, "examples"),
        ({"examples": [5]}, CLASSIFY, "examples[0]"),
        ({"examples": [{"a": [1, 1.5]}]}, CLASSIFY, "examples[0] 'a'"),
        ({"examples": [{"a": None}]}, CLASSIFY, "examples[0] 'a'"),
        ({"examples": [{"a": 2**70}]}, CLASSIFY, "examples[0] 'a'"),
        ({"examples": [{"a": {"b64": "%"}}]}, CLASSIFY, "examples[0] 'a'"),
        ({"context": 5, "examples": [{}]}, CLASSIFY, "context"),
    ],
)
def test_examples_name_what_is_wrong(document: Any, signatures: Any, field: str) -> None:
    codec = examples_codec.Examples(verb="classify", grpc=False)
    with pytest.raises(errors.InvalidInputError) as refused:
        codec.decode(model.Call("tfs-classify", json.dumps(document).encode()), signatures, "serving_default")
    assert refused.value.field == field


class Doubling:
    """A model in place of TensorFlow's."""

    signatures = same("FP32")
    default = "serving_default"

    def run(self, signature: tensors.Signature, inputs: dict[str, tensors.Array]) -> dict[str, tensors.Array]:
        return {"y": inputs["x"] * 2}


def test_calls_of_all_protocols_are_joined_into_one_execution() -> None:
    loaded = Doubling()
    runner = worker.Runner(loaded, name="m", version="1")  # type: ignore[arg-type]
    calls = [
        model.Call(
            "v2", json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}).encode()
        ),
        model.Call(
            "v2-grpc", infer("FP32", raw_input_contents=[np.array([3, 4], "<f4").tobytes()]).SerializeToString()
        ),
        model.Call("tfs", b'{"instances": [[5, 6], [7, 8]]}'),
        model.Call("tfs-grpc", predict("FP32", float_val=[9, 10]).SerializeToString()),
        model.Call("tfs", b"[" * 100_000),
    ]
    v2, v2_grpc, tfs, tfs_grpc, bad = runner.run(calls)
    assert json.loads(v2.body)["outputs"][0]["data"] == [2, 4]
    raw = v2_wire.ModelInferResponse.FromString(v2_grpc.body).raw_output_contents[0]
    assert np.frombuffer(raw, "<f4").tolist() == [6, 8]
    assert json.loads(tfs.body) == {"predictions": [[10, 12], [14, 16]]}
    proto = tfserving_wire.PredictResponse.FromString(tfs_grpc.body).outputs["y"].SerializeToString()
    assert list(tfserving_wire.TensorProto.FromString(proto).float_val) == [18, 20]
    assert bad.status == 400


class Broken(Doubling):
    """Raises what no runtime should, or answers what has no rows."""

    def run(self, signature: tensors.Signature, inputs: dict[str, tensors.Array]) -> dict[str, tensors.Array]:
        if inputs["x"][0, 0] == 13:
            raise ValueError("not today")
        return {"y": np.float32(7)}  # type: ignore[dict-item]


def test_whatever_a_model_raises_each_call_is_answered() -> None:
    runner = worker.Runner(Broken(), name="m", version="1")  # type: ignore[arg-type]
    good, bad = (model.Call("tfs", json.dumps({"instances": [[value, 1]]}).encode()) for value in (5, 13))
    alone = runner.run([bad])
    assert [(one.status, json.loads(one.body)["error"]) for one in alone] == [(500, "ValueError: not today")]
    together = runner.run([bad, good, good])
    assert len(together) == 3
    assert together[0].status == 500


def test_answers_that_hold_nan_are_marked() -> None:
    runner = worker.Runner(Doubling(), name="m", version="1")  # type: ignore[arg-type]
    calls = [model.Call("tfs-grpc", predict("FP32", float_val=values).SerializeToString()) for values in NAN_ROWS]
    assert [one.nan for one in runner.run(calls)] == [False, True, False]


NAN_ROWS = ([1, 2], [3, float("nan")], [float("inf"), 4])
