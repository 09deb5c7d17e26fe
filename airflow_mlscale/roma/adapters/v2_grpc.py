"""Open Inference Protocol v2 over gRPC: ``inference.GRPCInferenceService``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from airflow_mlscale.roma import deployment, fleet, model
from airflow_mlscale.roma.adapters import grpc_server, inference, statuses, v2, v2_wire, wire


class OpenInferenceGrpc:
    """A `grpc_server.Service`."""

    name = v2_wire.SERVICE
    protocol = "v2-grpc"
    open_methods = frozenset({"ServerLive", "ServerReady"})

    def __init__(self, models: fleet.Fleet) -> None:
        self._models = models
        self.methods: Mapping[str, grpc_server.Method] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        self.streams: Mapping[str, grpc_server.Method] = {"ModelStreamInfer": self._stream_infer}

    def told(self, message: str) -> bytes:
        return _bytes(v2_wire.ModelStreamInferResponse(error_message=message))

    async def _server_live(self, exchange: grpc_server.Exchange) -> bytes:
        return _bytes(v2_wire.ServerLiveResponse(live=True))

    async def _server_ready(self, exchange: grpc_server.Exchange) -> bytes:
        return _bytes(v2_wire.ServerReadyResponse(ready=self._models.ready))

    async def _server_metadata(self, exchange: grpc_server.Exchange) -> bytes:
        return _bytes(v2_wire.ServerMetadataResponse(**v2.server()))

    async def _model_ready(self, exchange: grpc_server.Exchange) -> bytes:
        request = wire.parse(v2_wire.ModelReadyRequest, exchange.request)
        try:
            v2.check_ready(self._models, _target(request.name, request.version))
        except (deployment.NotReadyError, deployment.UnknownVersionError, fleet.UnknownModelError):
            return _bytes(v2_wire.ModelReadyResponse(ready=False))
        return _bytes(v2_wire.ModelReadyResponse(ready=True))

    async def _model_metadata(self, exchange: grpc_server.Exchange) -> bytes:
        request = wire.parse(v2_wire.ModelMetadataRequest, exchange.request)
        described = v2.metadata(self._models, _target(request.name, request.version))
        return _bytes(v2_wire.ModelMetadataResponse(**described))

    async def _infer(self, exchange: grpc_server.Exchange) -> bytes:
        head = wire.parse(v2_wire.InferHead, exchange.request)
        exchange.model_name = head.model_name
        wishes = exchange.wishes
        if wishes.use_s is None:
            wishes = replace(wishes, use_s=inference.timeout_s(v2_wire.parameters(head.parameters)))
        target = _target(head.model_name, head.model_version)
        call = model.Call("v2-grpc", exchange.request)
        return unwrapped(await inference.answer(self._models, target, call, wishes))

    async def _stream_infer(self, exchange: grpc_server.Exchange) -> bytes:
        return _bytes(v2_wire.ModelStreamInferResponse(infer_response=await self._infer(exchange)))

    async def _index(self, exchange: grpc_server.Exchange) -> bytes:
        request = wire.parse(v2_wire.RepositoryIndexRequest, exchange.request)
        index = await v2.index(self._models, only_ready=request.ready)
        return _bytes(v2_wire.RepositoryIndexResponse(models=index))

    async def _load(self, exchange: grpc_server.Exchange) -> bytes:
        request = wire.parse(v2_wire.RepositoryModelLoadRequest, exchange.request)
        parameters = v2_wire.parameters(request.parameters)
        await v2.load(self._models, request.model_name, parameters, wait_s=v2.LOAD_S)
        return b""

    async def _unload(self, exchange: grpc_server.Exchange) -> bytes:
        request = wire.parse(v2_wire.RepositoryModelUnloadRequest, exchange.request)
        await self._models.unload(request.model_name)
        return b""


def unwrapped(answer: model.Answer) -> bytes:
    """The message of a good answer.

    Raises:
        StatusError: the worker's answer is an error.
    """
    if answer.status == 200:
        return answer.body
    message = json.loads(answer.body)["error"]
    raise statuses.StatusError(answer.status, message, retry_after_s=answer.retry_after_s)


def _target(name: str, version: str) -> inference.Target:
    return inference.Target(name=name, version=version or None)


def _bytes(message: wire.Message) -> bytes:
    serialised: bytes = message.SerializeToString()
    return serialised
