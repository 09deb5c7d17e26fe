"""Asks a daemon through the official stubs of TensorFlow Serving: ``python roma_tfs_client.py ADDRESS [MODEL X…]``.

With a model and a row for its input ``x`` only that is asked, and its ``y`` printed.
A process of its own, because the stubs import TensorFlow. Prints what it was told as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import grpc
import tensorflow as tf  # noqa: TID253 (this is a process of its own)
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

TIMEOUT_S = 30.0


def main(address: str) -> dict[str, Any]:
    with grpc.insecure_channel(address) as channel:
        return {**predictions(channel), **examples(channel), **described(channel)}


def predictions(channel: grpc.Channel) -> dict[str, Any]:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    told: dict[str, Any] = {}

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "line"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([[1.0, 2.0, 3.0]]))
    response = stub.Predict(request, TIMEOUT_S)
    told["line"] = tf.make_ndarray(response.outputs["y"]).tolist()
    told["float_val"] = list(response.outputs["y"].float_val)
    told["spec"] = [response.model_spec.name, response.model_spec.version.value, response.model_spec.signature_name]

    request.model_spec.version_label = "stable"
    told["labelled"] = tf.make_ndarray(stub.Predict(request, TIMEOUT_S).outputs["y"]).tolist()

    request = predict_pb2.PredictRequest(output_filter=["joined"])
    request.model_spec.name, request.model_spec.signature_name = "words", "serving_default"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"a\xff", b"b"]))
    request.inputs["n"].CopyFrom(tf.make_tensor_proto([1, 22], dtype=tf.int64))
    response = stub.Predict(request, TIMEOUT_S)
    told["words"] = {name: tf.make_ndarray(proto).tolist() for name, proto in response.outputs.items()}
    told["words"]["joined"] = [element.decode("latin-1") for element in told["words"]["joined"]]

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "short"
    request.inputs["half"].CopyFrom(tf.make_tensor_proto([[1.5, 2.0]], dtype=tf.float16))
    request.inputs["brain"].CopyFrom(tf.make_tensor_proto([[0.5, 4.0]], dtype=tf.bfloat16))
    response = stub.Predict(request, TIMEOUT_S)
    told["short"] = {name: tf.make_ndarray(proto).astype(float).tolist() for name, proto in response.outputs.items()}

    request.model_spec.name = "nobody"
    try:
        stub.Predict(request, TIMEOUT_S)
    except grpc.RpcError as exc:
        told["unknown"] = exc.code().name
    return told


def one_row(address: str, name: str, *values: str) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([[float(value) for value in values]]))
    with grpc.insecure_channel(address) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, TIMEOUT_S)
    return tf.make_ndarray(response.outputs["y"]).tolist()


def examples(channel: grpc.Channel) -> dict[str, Any]:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    given = tf.train.Example()
    given.features.feature["a"].float_list.value.append(0.25)
    context = tf.train.Example()
    context.features.feature["b"].float_list.value.append(2.0)

    classify = classification_pb2.ClassificationRequest()
    classify.model_spec.name = "examples"
    classify.input.example_list.examples.append(given)
    result = stub.Classify(classify, TIMEOUT_S).result
    rows = [[[one.label, one.score] for one in row.classes] for row in result.classifications]

    regress = regression_pb2.RegressionRequest()
    regress.model_spec.name, regress.model_spec.signature_name = "examples", "sum"
    regress.input.example_list_with_context.examples.append(given)
    regress.input.example_list_with_context.context.CopyFrom(context)
    numbers = [one.value for one in stub.Regress(regress, TIMEOUT_S).result.regressions]

    classify.model_spec.name = "line"
    try:
        stub.Classify(classify, TIMEOUT_S)
    except grpc.RpcError as exc:
        return {"classes": rows, "numbers": numbers, "not_allowed": exc.code().name}
    return {"classes": rows, "numbers": numbers}


def described(channel: grpc.Channel) -> dict[str, Any]:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "words"
    response = stub.GetModelMetadata(request, TIMEOUT_S)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    unpacked = response.metadata["signature_def"].Unpack(signatures)
    inputs = signatures.signature_def["serving_default"].inputs
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "line"
    states = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(status, TIMEOUT_S).model_version_status
    return {
        "unpacked": unpacked,
        "inputs": {name: [info.dtype, [dim.size for dim in info.tensor_shape.dim]] for name, info in inputs.items()},
        "status": [[one.version, one.State.Name(one.state), one.status.error_code] for one in states],
    }


if __name__ == "__main__":
    print(json.dumps(one_row(*sys.argv[1:]) if sys.argv[2:] else main(sys.argv[1])))
