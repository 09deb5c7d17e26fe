"""Open Inference Protocol v2 over REST, with the model repository extension.

https://github.com/open-inference/open-inference-protocol. What both transports say is in the functions below the
class; `v2_grpc` says it again in messages.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from airflow_mlscale import __version__, errors
from airflow_mlscale.roma import deployment, feedback, fleet, model
from airflow_mlscale.roma.adapters import http, inference

EXTENSIONS = ("model_repository", "binary_tensor_data", "mlscale")

LOAD_S = 60.0
"""How long a load waits for its model unless the client says otherwise."""


QUALITY_S = 3600.0
"""Over which quality is told unless somebody says otherwise."""


class OpenInference:
    """Everything under ``/v2`` but the control API."""

    def __init__(self, models: fleet.Fleet) -> None:
        self._models = models

    async def __call__(self, exchange: http.Exchange, parts: list[str]) -> http.Reply:
        """Answer; ``parts`` is the path after ``/v2``."""
        match parts:
            case []:
                exchange.allow("GET")
                return http.json_reply(server())
            case ["health", "live"]:
                exchange.allow("GET")
                return http.json_reply({"live": True})
            case ["health", "ready"]:
                exchange.allow("GET")
                return http.json_reply({"ready": self._models.ready}, 200 if self._models.ready else 503)
            case ["repository", *rest]:
                return await self._repository(exchange, rest)
            case ["models", name, "versions", version, *rest]:
                return await self._model(exchange, inference.Target(name=name, version=version), rest)
            case ["models", name, *rest]:
                return await self._model(exchange, inference.Target(name=name), rest)
        raise http.StatusError(404, f"no such endpoint: {exchange.path}")

    async def _model(self, exchange: http.Exchange, target: inference.Target, rest: list[str]) -> http.Reply:
        match rest:
            case ["infer"]:
                exchange.allow("POST")
                return await inference.infer(self._models, exchange, protocol="v2", target=target)
            case ["ready"]:
                exchange.allow("GET")
                check_ready(self._models, target)
                return http.json_reply({"name": target.name, "ready": True})
            case ["feedback"] if target.free:
                exchange.allow("GET", "POST")
                return await self._feedback(exchange, target.name)
            case []:
                exchange.allow("GET")
                return http.json_reply(metadata(self._models, target))
        raise http.StatusError(404, f"no such endpoint: {exchange.path}")

    async def _feedback(self, exchange: http.Exchange, name: str) -> http.Reply:
        models, now = self._models, time.time()
        one = models[name]
        if exchange.method == "GET":
            window_s = exchange.number("window_s", QUALITY_S, low=feedback.SLOT_S, high=feedback.KEEP_S)
            found = feedback.as_json(models.quality.since(name, now - window_s))
            return http.json_reply({"name": name, "window_s": window_s, "versions": found})
        known = feedback.read(await exchange.json())
        counted, unknown = feedback.tallies(known, models.recent, name, one.spec.version)
        feedback.check_versions(models.quality.since(name, now - feedback.KEEP_S), counted)
        models.quality.add(name, now, counted)
        records = sum(tally.records for tally in counted.values())
        return http.json_reply({"counted": records, "unknown_ids": unknown[:100]})

    async def _repository(self, exchange: http.Exchange, rest: list[str]) -> http.Reply:
        match rest:
            case ["index"]:
                exchange.allow("POST")
                wish = await exchange.json()
                if not isinstance(wish, dict):
                    raise errors.InvalidInputError("body", repr(wish)[:60], 'send {} or {"ready": true}')
                only_ready = wish.get("ready", False)
                if not isinstance(only_ready, bool):
                    raise errors.InvalidInputError("ready", repr(only_ready)[:60], "give true or false")
                return http.json_reply(await index(self._models, only_ready=only_ready))
            case ["models", name, "load"]:
                exchange.allow("POST")
                parameters = _parameters(await exchange.json())
                wait_s = exchange.number("wait_s", LOAD_S, low=0, high=600)
                await load(self._models, name, parameters, wait_s=wait_s)
                return http.json_reply({})
            case ["models", name, "unload"]:
                exchange.allow("POST")
                _parameters(await exchange.json())
                await self._models.unload(name)
                return http.json_reply({})
        raise http.StatusError(404, f"no such endpoint: {exchange.path}")


def server() -> dict[str, Any]:
    """What serves, and which extensions it knows."""
    return {"name": "mlscale-roma", "version": __version__, "extensions": list(EXTENSIONS)}


def check_ready(models: fleet.Fleet, target: inference.Target) -> None:
    """Return if the model can answer now.

    Raises:
        NotReadyError: it cannot.
    """
    supervisor = inference.replica_of(models, target).supervisor
    if supervisor.state is not model.State.READY:
        raise deployment.NotReadyError(
            f"model {target.name!r} is {supervisor.state}", retry_after_s=supervisor.back_in_s()
        )


_PLATFORMS = {
    "tensorflow": "tensorflow_savedmodel",
    "onnxruntime": "onnxruntime_onnx",
    "openvino": "openvino",
    "openvino-bf16": "openvino",
}
"""The protocol's names of runtimes."""


def metadata(models: fleet.Fleet, target: inference.Target) -> dict[str, Any]:
    """Inputs and outputs of the default signature."""
    replica = inference.replica_of(models, target)
    loaded = replica.loaded
    if loaded is None:
        raise deployment.NotReadyError(f"model {target.name!r} is {replica.supervisor.state}")
    signature = loaded.signatures[loaded.default_signature]
    return {
        "name": target.name,
        "versions": [one.replica.spec.version for one in models[target.name].serving()],
        "platform": _PLATFORMS[loaded.runtime["name"]],
        "inputs": [_tensor(tensor) for tensor in signature["inputs"]],
        "outputs": [_tensor(tensor) for tensor in signature["outputs"]],
    }


async def index(models: fleet.Fleet, *, only_ready: bool) -> list[dict[str, str]]:
    """Every model that is known or could be loaded, in the repository extension's words."""
    known = [_indexed(one) for one in models]
    if only_ready:
        return [one for one in known if one["state"] == "READY"]
    waiting = await models.loadable()
    return known + [
        {"name": name, "version": version, "state": "UNAVAILABLE", "reason": "not loaded yet"}
        for name, version in waiting.items()
    ]


async def load(models: fleet.Fleet, name: str, parameters: Mapping[str, Any], *, wait_s: float) -> None:
    """Serve a model again, or one found under the model root; waits until it is ready, has failed, or time is up.

    With ``wait_s`` 0 it returns as soon as the load is under way.

    Raises:
        InvalidInputError: the client sent a configuration or files, which are not taken.
        StatusError: it failed to load (400).
        NotReadyError: it was not loaded in time; it goes on loading.
    """
    for parameter in parameters:
        if parameter == "config" or parameter.startswith("file:"):
            fix = "models are not configured here; deploy it with PUT /v2/mlscale/models/{name}"
            raise errors.InvalidInputError(f"parameters {parameter}", "…", fix)
    one = await models.load(name)
    await one.wait_settled(wait_s)
    if one.active is None and one.settled:
        raise http.StatusError(400, f"model {name!r} failed to load: {one.reason}")
    if one.active is None and wait_s:
        told = f"model {name!r} is still {one.state} after {wait_s:g} s and goes on; ask for its readiness"
        raise deployment.NotReadyError(told, retry_after_s=2)


def _parameters(document: Any) -> dict[str, Any]:
    parameters = document.get("parameters") or {} if isinstance(document, dict) else None
    if not isinstance(parameters, dict):
        raise errors.InvalidInputError("body", repr(document)[:60], 'send nothing or {"parameters": {…}}')
    return parameters


def _tensor(described: dict[str, Any]) -> dict[str, Any]:
    shape = described["shape"]
    return {"name": described["name"], "datatype": described["datatype"], "shape": [-1] if shape is None else shape}


def _indexed(one: deployment.Deployment) -> dict[str, str]:
    states = {model.State.READY: "READY", model.State.UNLOADED: "UNAVAILABLE", model.State.FAILED: "UNAVAILABLE"}
    return {
        "name": one.name,
        "version": one.spec.version,
        "state": states.get(one.state, "LOADING"),
        "reason": one.reason,
    }
