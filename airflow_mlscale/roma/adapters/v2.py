"""Open Inference Protocol v2 over REST, with the model repository extension.

https://github.com/open-inference/open-inference-protocol
"""

from __future__ import annotations

from typing import Any

from airflow_mlscale import __version__, errors
from airflow_mlscale.roma import deployment, fleet, model
from airflow_mlscale.roma.adapters import http, inference


class OpenInference:
    """Everything under ``/v2`` but the control API."""

    def __init__(self, models: fleet.Fleet) -> None:
        self._models = models

    async def __call__(self, exchange: http.Exchange, parts: list[str]) -> http.Reply:
        """Answer; ``parts`` is the path after ``/v2``."""
        match parts:
            case []:
                exchange.allow("GET")
                extensions = ["model_repository", "binary_tensor_data", "mlscale"]
                return http.json_reply({"name": "mlscale-roma", "version": __version__, "extensions": extensions})
            case ["health", "live"]:
                exchange.allow("GET")
                return http.json_reply({"live": True})
            case ["health", "ready"]:
                exchange.allow("GET")
                return http.json_reply({"ready": self._models.ready}, 200 if self._models.ready else 503)
            case ["repository", *rest]:
                return await self._repository(exchange, rest)
            case ["models", name, "versions", version, *rest]:
                return await self._model(exchange, name, version, rest)
            case ["models", name, *rest]:
                return await self._model(exchange, name, None, rest)
        raise http.StatusError(404, f"no such endpoint: {exchange.path}")

    async def _model(self, exchange: http.Exchange, name: str, version: str | None, rest: list[str]) -> http.Reply:
        match rest:
            case ["infer"]:
                exchange.allow("POST")
                return await inference.infer(self._models, exchange, protocol="v2", name=name, version=version)
            case ["ready"]:
                exchange.allow("GET")
                replica = self._models[name].replica(version)
                ready = replica.supervisor.state is model.State.READY
                if not ready:
                    raise deployment.NotReadyError(
                        f"model {name!r} is {replica.supervisor.state}", retry_after_s=replica.supervisor.back_in_s()
                    )
                return http.json_reply({"name": name, "ready": True})
            case []:
                exchange.allow("GET")
                return http.json_reply(self._metadata(name, version))
        raise http.StatusError(404, f"no such endpoint: {exchange.path}")

    def _metadata(self, name: str, version: str | None) -> dict[str, Any]:
        replica = self._models[name].replica(version)
        loaded = replica.loaded
        if loaded is None:
            raise deployment.NotReadyError(f"model {name!r} is {replica.supervisor.state}")
        signature = loaded.signatures[loaded.default_signature]
        return {
            "name": name,
            "versions": [replica.spec.version],
            "platform": "tensorflow_savedmodel",
            "inputs": [_tensor(tensor) for tensor in signature["inputs"]],
            "outputs": [_tensor(tensor) for tensor in signature["outputs"]],
        }

    async def _repository(self, exchange: http.Exchange, rest: list[str]) -> http.Reply:
        exchange.allow("POST")
        match rest:
            case ["index"]:
                wish = await exchange.json()
                if not isinstance(wish, dict):
                    raise errors.InvalidInputError("body", wish, 'send {} or {"ready": true}')
                index = [_indexed(one) for one in self._models]
                return http.json_reply([one for one in index if not wish.get("ready") or one["state"] == "READY"])
            case ["models", name, "load"]:
                await exchange.body()
                one = await self._models.load(name)
                await one.wait_settled(exchange.number("wait_s", 60, low=0, high=600))
                if one.active is None and one.settled:
                    raise http.StatusError(400, f"model {name!r} failed to load: {one.reason}")
                return http.json_reply({})
            case ["models", name, "unload"]:
                await exchange.body()
                await self._models.unload(name)
                return http.json_reply({})
        raise http.StatusError(404, f"no such endpoint: {exchange.path}")


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
