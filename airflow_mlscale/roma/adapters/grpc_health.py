"""The standard health service, ``grpc.health.v1.Health``, as load balancers and Kubernetes' probes ask it."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_mlscale.roma import fleet
from airflow_mlscale.roma.adapters import grpc_server, statuses, tfserving_wire, v2_wire, wire

_KNOWN = ("", v2_wire.SERVICE, tfserving_wire.PREDICTION_SERVICE, tfserving_wire.MODEL_SERVICE)
_SERVING, _NOT_SERVING = 1, 2

_CLASSES = wire.declare("roma.health", {"Request": "service=1:string", "Response": "status=1:int32"})


class Health:
    """A `grpc_server.Service`; serving means that every model that should serve does."""

    name = "grpc.health.v1.Health"
    protocol = "v2-grpc"
    open_methods = frozenset({"Check"})
    streams: Mapping[str, grpc_server.Method] = {}

    def __init__(self, models: fleet.Fleet) -> None:
        self._models = models
        self.methods: Mapping[str, grpc_server.Method] = {"Check": self._check}

    def told(self, message: str) -> bytes:
        raise AssertionError("this service does not stream")

    async def _check(self, exchange: grpc_server.Exchange) -> bytes:
        request = wire.parse(_CLASSES["Request"], exchange.request)
        if request.service not in _KNOWN:
            raise statuses.StatusError(404, f"unknown service {request.service[:80]!r}")
        status = _SERVING if self._models.ready else _NOT_SERVING
        serialised: bytes = _CLASSES["Response"](status=status).SerializeToString()
        return serialised
