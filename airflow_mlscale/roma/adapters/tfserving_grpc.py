"""TensorFlow Serving's gRPC services: ``PredictionService`` and the status of ``ModelService``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import fleet, model
from airflow_mlscale.roma.adapters import grpc_server, inference, tfserving, tfserving_wire, v2_grpc, wire

_METADATA = "signature_def"
_TYPE = "type.googleapis.com/tensorflow.serving.SignatureDefMap"


class _Service:
    """What both services share."""

    protocol = "tfs-grpc"
    open_methods: frozenset[str] = frozenset()
    streams: Mapping[str, grpc_server.Method] = {}

    def __init__(self, models: fleet.Fleet) -> None:
        self._models = models

    def told(self, message: str) -> bytes:
        raise AssertionError("neither service streams")


class PredictionService(_Service):
    """A `grpc_server.Service`."""

    name = tfserving_wire.PREDICTION_SERVICE

    def __init__(self, models: fleet.Fleet) -> None:
        super().__init__(models)
        self.methods: Mapping[str, grpc_server.Method] = {
            "Predict": self._verb("tfs-grpc"),
            "Classify": self._verb("tfs-grpc-classify"),
            "Regress": self._verb("tfs-grpc-regress"),
            "GetModelMetadata": self._metadata,
        }

    def _verb(self, protocol: str) -> grpc_server.Method:
        async def infer(exchange: grpc_server.Exchange) -> bytes:
            target = _target(wire.parse(tfserving_wire.Head, exchange.request).model_spec)
            exchange.model_name = target.name
            call = model.Call(protocol, exchange.request)
            return v2_grpc.unwrapped(await inference.answer(self._models, target, call, exchange.wishes))

        return infer

    async def _metadata(self, exchange: grpc_server.Exchange) -> bytes:
        request = wire.parse(tfserving_wire.GetModelMetadataRequest, exchange.request)
        if list(request.metadata_field) != [_METADATA]:
            raise errors.InvalidInputError("metadata_field", list(request.metadata_field)[:3], f"ask for {_METADATA!r}")
        described = tfserving.metadata(self._models, _target(request.model_spec))
        signatures = tfserving_wire.SignatureDefMap()
        for name, signature in described["metadata"]["signature_def"]["signature_def"].items():
            _fill_signature(signatures.signature_def[name], signature)
        response = tfserving_wire.GetModelMetadataResponse()
        _fill_spec(response.model_spec, described["model_spec"])
        response.metadata[_METADATA].type_url = _TYPE
        response.metadata[_METADATA].value = signatures.SerializeToString()
        serialised: bytes = response.SerializeToString()
        return serialised


class ModelService(_Service):
    """A `grpc_server.Service`."""

    name = tfserving_wire.MODEL_SERVICE

    def __init__(self, models: fleet.Fleet) -> None:
        super().__init__(models)
        self.methods: Mapping[str, grpc_server.Method] = {"GetModelStatus": self._status}

    async def _status(self, exchange: grpc_server.Exchange) -> bytes:
        request = wire.parse(tfserving_wire.GetModelStatusRequest, exchange.request)
        response = tfserving_wire.GetModelStatusResponse()
        for one in tfserving.status(self._models, _target(request.model_spec)):
            error = one["status"]
            told = response.model_version_status.add(
                version=_number(one["version"]) or 0, state=tfserving_wire.STATES[one["state"]]
            )
            told.status.error_code = tfserving_wire.CODES[error["error_code"]]
            told.status.error_message = error["error_message"]
        serialised: bytes = response.SerializeToString()
        return serialised


def _target(spec: wire.Message) -> inference.Target:
    if not spec.name:
        raise errors.InvalidInputError("model_spec.name", "", "name the model")
    if spec.HasField("version") and spec.version_label:
        raise errors.InvalidInputError("model_spec", "version and version_label", "give one of them")
    version = str(spec.version.value) if spec.HasField("version") else None
    return inference.Target(name=spec.name, version=version, label=spec.version_label or None)


def _number(version: str) -> int | None:
    """A version as this protocol can tell it; names have no number."""
    return int(version) if version.isdecimal() and int(version) < 2**63 else None


def _fill_spec(spec: wire.Message, described: Mapping[str, Any]) -> None:
    spec.name = described["name"]
    if (number := _number(described["version"])) is not None:
        spec.version.value = number


def _fill_signature(message: wire.Message, described: Mapping[str, Any]) -> None:
    message.method_name = described["method_name"]
    for given, tensors in ((described["inputs"], message.inputs), (described["outputs"], message.outputs)):
        for name, tensor in given.items():
            info = tensors[name]
            info.name, info.dtype = tensor["name"], tfserving_wire.TYPES[tensor["dtype"]]
            info.tensor_shape.unknown_rank = tensor["tensor_shape"]["unknown_rank"]
            for dim in tensor["tensor_shape"]["dim"]:
                info.tensor_shape.dim.add(size=int(dim["size"]))
