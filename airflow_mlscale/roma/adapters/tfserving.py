"""TensorFlow Serving's REST API: status, metadata, predict.

https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

from typing import Any

from airflow_mlscale.roma import deployment, fleet, model
from airflow_mlscale.roma.adapters import http, inference

_STATES = {
    model.State.READY: "AVAILABLE",
    model.State.RESTARTING: "LOADING",
    model.State.UNLOADED: "END",
    model.State.FAILED: "END",
}


class TensorFlowServing:
    """Everything under ``/v1``."""

    def __init__(self, models: fleet.Fleet) -> None:
        self._models = models

    async def __call__(self, exchange: http.Exchange, parts: list[str]) -> http.Reply:
        """Answer; ``parts`` is the path after ``/v1``."""
        match parts:
            case ["models", last]:
                name, _, verb = last.partition(":")
                return await self._model(exchange, name, None, verb)
            case ["models", name, "versions", last]:
                version, _, verb = last.partition(":")
                return await self._model(exchange, name, version, verb)
            case ["models", name, "metadata"]:
                return await self._model(exchange, name, None, "metadata")
            case ["models", name, "versions", version, "metadata"]:
                return await self._model(exchange, name, version, "metadata")
        raise http.StatusError(404, f"Malformed request: {exchange.method} {exchange.path}")

    async def _model(self, exchange: http.Exchange, name: str, version: str | None, verb: str) -> http.Reply:
        match verb:
            case "predict":
                exchange.allow("POST")
                return await inference.infer(self._models, exchange, protocol="tfs", name=name, version=version)
            case "metadata":
                exchange.allow("GET")
                return http.json_reply(_metadata(self._models[name], version))
            case "":
                exchange.allow("GET")
                return http.json_reply(_status(self._models[name], version))
        raise http.StatusError(404, f"Malformed request: {exchange.method} {exchange.path}; only :predict is served")


def _status(one: deployment.Deployment, version: str | None) -> dict[str, Any]:
    if version is not None and version != one.spec.version:
        one.replica(version)
    failed = one.state is model.State.FAILED
    error = (
        {"error_code": "UNKNOWN", "error_message": one.reason} if failed else {"error_code": "OK", "error_message": ""}
    )
    versions = [{"version": one.spec.version, "state": _STATES.get(one.state, "LOADING"), "status": error}]
    if one.active and one.candidate:
        fine = {"error_code": "OK", "error_message": ""}
        versions.append({"version": one.candidate.spec.version, "state": "LOADING", "status": fine})
    return {"model_version_status": versions}


def _metadata(one: deployment.Deployment, version: str | None) -> dict[str, Any]:
    replica = one.replica(version)
    if replica.loaded is None:
        raise deployment.NotReadyError(f"model {one.name!r} is {replica.supervisor.state}")
    signatures = {
        name: {
            "inputs": {tensor["name"]: _tensor(tensor) for tensor in signature["inputs"]},
            "outputs": {tensor["name"]: _tensor(tensor) for tensor in signature["outputs"]},
            "method_name": signature["method"],
        }
        for name, signature in replica.loaded.signatures.items()
    }
    return {
        "model_spec": {"name": one.name, "signature_name": "", "version": replica.spec.version},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def _tensor(described: dict[str, Any]) -> dict[str, Any]:
    shape = described["shape"]
    dims = [{"size": str(size), "name": ""} for size in shape or ()]
    return {
        "dtype": described["dtype"],
        "tensor_shape": {"dim": dims, "unknown_rank": shape is None},
        "name": described["graph_name"],
    }
