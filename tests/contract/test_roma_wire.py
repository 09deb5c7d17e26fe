"""The messages that ROMA declares are those that the official packages were compiled with."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from airflow_mlscale.roma.adapters import tfserving_wire, v2_wire

_TFS = "tensorflow_serving/apis"
_TF = "tensorflow/core"
FILES = {
    "v2": ["tritonclient/grpc/service_pb2.py"],
    "tfserving": [
        *(
            f"{_TFS}/{name}_pb2.py"
            for name in (
                "model",
                "predict",
                "input",
                "classification",
                "regression",
                "get_model_metadata",
                "get_model_status",
                "status",
            )
        ),
        *(
            f"{_TF}/{name}_pb2.py"
            for name in (
                "framework/tensor",
                "framework/tensor_shape",
                "example/feature",
                "example/example",
                "protobuf/meta_graph",
                "protobuf/saved_model",
            )
        ),
    ],
}
OURS = {
    "InferHead": "ModelInferRequest",
    "PackedContents": "InferTensorContents",
    "Contents": "InferTensorContents",
    "Parameter": "InferParameter",
    "RepositoryParameter": "ModelRepositoryParameter",
    "Head": "PredictRequest",
    "PackedTensorProto": "TensorProto",
    "ExamplesRequest": "ClassificationRequest",
}
"""Messages that have another name here."""
WELL_KNOWN = {"Int64Value", "Any"}

_KIND = descriptor_pb2.FieldDescriptorProto
_WIRE_FORMS = {
    _KIND.TYPE_MESSAGE: "bytes",
    _KIND.TYPE_BYTES: "bytes",
    _KIND.TYPE_STRING: "bytes",
    _KIND.TYPE_ENUM: "varint",
    _KIND.TYPE_BOOL: "varint",
    _KIND.TYPE_INT32: "varint",
    _KIND.TYPE_INT64: "varint",
    _KIND.TYPE_UINT32: "varint",
    _KIND.TYPE_UINT64: "varint",
    _KIND.TYPE_FLOAT: "32 bits",
    _KIND.TYPE_DOUBLE: "64 bits",
}


def described(file: str) -> Any:
    """The file's descriptor as its module holds it; without importing the module, which would import the rest."""
    package = importlib.util.find_spec(file.partition("/")[0])
    assert package is not None, file
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]).parent / file
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "AddSerializedFile":
            (argument,) = node.args
            assert isinstance(argument, ast.Constant)
            return descriptor_pb2.FileDescriptorProto.FromString(argument.value)
    raise AssertionError(f"{file} holds no descriptor")


def official(files: list[str]) -> dict[str, Any]:
    def messages(found: Any) -> Iterator[tuple[str, Any]]:
        for message in found:
            yield message.name, message
            yield from messages(message.nested_type)

    return {name: message for file in files for name, message in messages(described(file).message_type)}


@pytest.mark.parametrize(
    ("protocol", "declared", "classes"),
    [("v2", v2_wire.MESSAGES, v2_wire._CLASSES), ("tfserving", tfserving_wire.MESSAGES, tfserving_wire._CLASSES)],
)
def test_every_field_has_its_number_and_wire_form(
    protocol: str, declared: Mapping[str, str], classes: Mapping[str, Any]
) -> None:
    truth = official(FILES[protocol])
    for name in declared.keys() - WELL_KNOWN:
        ours = descriptor_pb2.DescriptorProto()
        classes[name].DESCRIPTOR.CopyToProto(ours)
        theirs = {field.name: field for field in truth[OURS.get(name, name)].field}
        for field in ours.field:
            assert field.number == theirs[field.name].number, f"{name}.{field.name}"
            assert form(field) == form(theirs[field.name]), f"{name}.{field.name}"


def form(field: Any) -> tuple[str, bool]:
    """What stands on the wire, and whether it may stand there many times."""
    kind, repeated = _WIRE_FORMS[field.type], field.label == _KIND.LABEL_REPEATED
    if repeated and kind != "bytes":  # packed: one run of bytes
        return "bytes", False
    return kind, repeated


def test_types_and_services_have_their_names() -> None:
    (types,) = [one for one in described(f"{_TF}/framework/types_pb2.py").enum_type if one.name == "DataType"]
    numbers = {one.name: one.number for one in types.value}
    assert dict(tfserving_wire.TYPES) == {name: numbers[name] for name in tfserving_wire.TYPES}
    assert sorted(tfserving_wire.TYPES.values()) == sorted(tfserving_wire.DATATYPES)
    (service,) = described(FILES["v2"][0]).service
    assert f"inference.{service.name}" == v2_wire.SERVICE
    (prediction,) = described(f"{_TFS}/prediction_service_pb2.py").service
    assert f"tensorflow.serving.{prediction.name}" == tfserving_wire.PREDICTION_SERVICE
    (models,) = described(f"{_TFS}/model_service_pb2.py").service
    assert f"tensorflow.serving.{models.name}" == tfserving_wire.MODEL_SERVICE
    status = official([f"{_TFS}/get_model_status_pb2.py"])["ModelVersionStatus"]
    assert dict(tfserving_wire.STATES) == {one.name: one.number for one in status.enum_type[0].value}
