"""Messages of the Open Inference Protocol over gRPC (service ``inference.GRPCInferenceService``).

https://github.com/open-inference/open-inference-protocol, with the model repository extension as Triton has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_mlscale.roma.adapters import wire

SERVICE = "inference.GRPCInferenceService"

_NAMED = "name=1:string version=2:string"
_TENSOR = "name=1:string datatype=2:string shape=3:*int64"
_INTEGERS = "int_contents=2:*int32 int64_contents=3:*int64 uint_contents=4:*uint32 uint64_contents=5:*uint64"
_HEAD = "model_name=1:string model_version=2:string id=3:string parameters=4:map<Parameter>"
_REPOSITORY = "repository_name=1:string model_name=2:string parameters=3:map<RepositoryParameter>"

MESSAGES: Mapping[str, str] = {
    "ServerLiveResponse": "live=1:bool",
    "ServerReadyResponse": "ready=1:bool",
    "ModelReadyRequest": _NAMED,
    "ModelReadyResponse": "ready=1:bool",
    "ServerMetadataResponse": "name=1:string version=2:string extensions=3:*string",
    "ModelMetadataRequest": _NAMED,
    "TensorMetadata": _TENSOR,
    "ModelMetadataResponse": "name=1:string versions=2:*string platform=3:string "
    "inputs=4:*TensorMetadata outputs=5:*TensorMetadata",
    "Parameter": "bool_param=1:bool? int64_param=2:int64? string_param=3:string? double_param=4:double? "
    "uint64_param=5:uint64?",
    "Contents": f"bool_contents=1:*bool {_INTEGERS} fp32_contents=6:*float fp64_contents=7:*double "
    "bytes_contents=8:*bytes",
    "InferInputTensor": f"{_TENSOR} parameters=4:map<Parameter> contents=5:Contents",
    "InferRequestedOutputTensor": "name=1:string parameters=2:map<Parameter>",
    "InferHead": _HEAD,
    "ModelInferRequest": f"{_HEAD} inputs=5:*InferInputTensor outputs=6:*InferRequestedOutputTensor "
    "raw_input_contents=7:*bytes",
    "PackedContents": f"bool_contents=1:bytes {_INTEGERS} fp32_contents=6:bytes fp64_contents=7:bytes "
    "bytes_contents=8:*bytes",
    "InferOutputTensor": f"{_TENSOR} parameters=4:map<Parameter> contents=5:PackedContents",
    "ModelInferResponse": f"{_HEAD} outputs=5:*InferOutputTensor raw_output_contents=6:*bytes",
    "ModelStreamInferResponse": "error_message=1:string infer_response=2:bytes",
    "RepositoryParameter": "bool_param=1:bool? int64_param=2:int64? string_param=3:string? bytes_param=4:bytes?",
    "RepositoryIndexRequest": "repository_name=1:string ready=2:bool",
    "ModelIndex": "name=1:string version=2:string state=3:string reason=4:string",
    "RepositoryIndexResponse": "models=1:*ModelIndex",
    "RepositoryModelLoadRequest": _REPOSITORY,
    "RepositoryModelUnloadRequest": _REPOSITORY,
}

_CLASSES = wire.declare("roma.v2", MESSAGES)

ServerLiveResponse = _CLASSES["ServerLiveResponse"]
ServerReadyResponse = _CLASSES["ServerReadyResponse"]
ModelReadyRequest = _CLASSES["ModelReadyRequest"]
ModelReadyResponse = _CLASSES["ModelReadyResponse"]
ServerMetadataResponse = _CLASSES["ServerMetadataResponse"]
ModelMetadataRequest = _CLASSES["ModelMetadataRequest"]
ModelMetadataResponse = _CLASSES["ModelMetadataResponse"]
Contents = _CLASSES["Contents"]
InferHead = _CLASSES["InferHead"]
"""What the gateway needs to know of a `ModelInferRequest`; the tensors stay unread."""
ModelInferRequest = _CLASSES["ModelInferRequest"]
ModelInferResponse = _CLASSES["ModelInferResponse"]
ModelStreamInferResponse = _CLASSES["ModelStreamInferResponse"]
RepositoryIndexRequest = _CLASSES["RepositoryIndexRequest"]
RepositoryIndexResponse = _CLASSES["RepositoryIndexResponse"]
RepositoryModelLoadRequest = _CLASSES["RepositoryModelLoadRequest"]
RepositoryModelUnloadRequest = _CLASSES["RepositoryModelUnloadRequest"]

CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype → field of the contents; the 16-bit floats have none and travel raw."""


def parameters(given: Mapping[str, wire.Message]) -> dict[str, Any]:
    """Parameters as plain values."""
    values = {}
    for name, parameter in given.items():
        for field, value in parameter.ListFields():
            values[name] = value
            if field.name == "bool_param":
                values[name] = bool(value)
    return values
