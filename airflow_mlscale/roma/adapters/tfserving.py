"""TensorFlow Serving's REST API: status, metadata, predict, classify, regress.

https://www.tensorflow.org/tfx/serving/api_rest. What both transports say is in the functions below the class;
`tfserving_grpc` says it again in messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_mlscale.roma import deployment, fleet, model
from airflow_mlscale.roma.adapters import http, inference

VERBS: Mapping[str, str] = {"predict": "tfs", "classify": "tfs-classify", "regress": "tfs-regress"}
"""What follows the colon → `model.Call.protocol`."""

_STATES = {
    model.State.READY: "AVAILABLE",
    model.State.RESTARTING: "LOADING",
    model.State.CRASH_LOOP: "LOADING",
    model.State.UNLOADED: "END",
    model.State.FAILED: "END",
}
_FINE = {"error_code": "OK", "error_message": ""}


class TensorFlowServing:
    """Everything under ``/v1``."""

    def __init__(self, models: fleet.Fleet) -> None:
        self._models = models

    async def __call__(self, exchange: http.Exchange, parts: list[str]) -> http.Reply:
        """Answer; ``parts`` is the path after ``/v1``."""
        metadata = parts[-1:] == ["metadata"] and len(parts) in (3, 5)
        *path, end = parts or [""]
        last, _, verb = ("metadata", "", "metadata") if metadata else end.partition(":")
        match [*path, last]:
            case ["models", name] | ["models", name, "metadata"]:
                return await self._model(exchange, inference.Target(name=name), verb)
            case ["models", name, "versions", version] | ["models", name, "versions", version, "metadata"]:
                return await self._model(exchange, inference.Target(name=name, version=version), verb)
            case ["models", name, "labels", label] | ["models", name, "labels", label, "metadata"]:
                return await self._model(exchange, inference.Target(name=name, label=label), verb)
        raise http.StatusError(404, f"Malformed request: {exchange.method} {exchange.path}")

    async def _model(self, exchange: http.Exchange, target: inference.Target, verb: str) -> http.Reply:
        if protocol := VERBS.get(verb):
            exchange.allow("POST")
            return await inference.infer(self._models, exchange, protocol=protocol, target=target)
        match verb:
            case "metadata":
                exchange.allow("GET")
                return http.json_reply(metadata(self._models, target))
            case "":
                exchange.allow("GET")
                return http.json_reply({"model_version_status": status(self._models, target)})
        known = ", ".join(f":{one}" for one in VERBS)
        raise http.StatusError(404, f"Malformed request: {exchange.method} {exchange.path}; served are {known}")


def status(models: fleet.Fleet, target: inference.Target) -> list[dict[str, Any]]:
    """The version that serves and the one being loaded, or only the one asked for."""
    one = models[target.name]
    beside = one.candidate.spec.version if one.active and one.candidate else None
    if target.label is not None or target.version not in (None, one.spec.version, beside):
        inference.replica_of(models, target)
    failed = one.state is model.State.FAILED
    error = {"error_code": "UNKNOWN", "error_message": one.reason} if failed else _FINE
    versions = [{"version": one.spec.version, "state": _STATES.get(one.state, "LOADING"), "status": error}]
    if target.label == inference.CANARY or (target.version == beside and beside):
        versions = []
    if one.active and one.candidate and (not versions or target.free):
        state = "AVAILABLE" if one.trial else "LOADING"
        versions.append({"version": one.candidate.spec.version, "state": state, "status": _FINE})
    return versions


def metadata(models: fleet.Fleet, target: inference.Target) -> dict[str, Any]:
    """All signatures."""
    replica = inference.replica_of(models, target)
    if replica.loaded is None:
        raise deployment.NotReadyError(f"model {target.name!r} is {replica.supervisor.state}")
    signatures = {
        name: {
            "inputs": {tensor["name"]: _tensor(tensor) for tensor in signature["inputs"]},
            "outputs": {tensor["name"]: _tensor(tensor) for tensor in signature["outputs"]},
            "method_name": signature["method"],
        }
        for name, signature in replica.loaded.signatures.items()
    }
    return {
        "model_spec": {"name": target.name, "signature_name": "", "version": replica.spec.version},
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
