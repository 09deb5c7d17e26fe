"""A client of ROMA's control API, for the command line, hooks and tests. Plain HTTP does everything it does."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import httpx

from airflow_mlscale import errors
from airflow_mlscale.roma import model

TIMEOUT_S = 10.0


def order_body(order: model.DeployOrder) -> dict[str, Any]:
    """The JSON body of a deployment: what is None is left out and keeps its value or default."""
    objective = order.objective
    fields = {
        "artefact": order.artefact,
        "version": order.version,
        "objective": objective and {"milliseconds": objective.milliseconds, "percentile": objective.percentile},
        "min_cores": order.min_cores,
        "max_cores": order.max_cores,
        "priority": order.priority,
        "max_batch": order.max_batch,
    }
    return {name: value for name, value in fields.items() if value is not None}


class RomaClient:
    """Blocking calls. Errors are those of `airflow_mlscale.errors`."""

    def __init__(self, address: str, *, token: str | None = None) -> None:
        self.address = address
        self._http = httpx.Client(**_arguments(address, token))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def live(self) -> bool:
        """Whether the daemon answers."""
        return bool(self._call("GET", "/v2/health/live").get("live"))

    def host(self) -> dict[str, Any]:
        """What divides the host's cores: ``{cpu, enforces, cores}``."""
        return self._call("GET", "/v2/mlscale/host")

    def models(self) -> list[dict[str, Any]]:
        """The status of every model."""
        found: list[dict[str, Any]] = self._call("GET", "/v2/mlscale/models")["models"]
        return found

    def deploy(self, order: model.DeployOrder) -> dict[str, Any]:
        """Deploy or update; returns the status at once, long before the model is ready."""
        return self._call("PUT", _path(order.name), json=order_body(order), timeout=30)

    def status(self, name: str, *, window_s: float = 60, settled_within_s: float = 0) -> dict[str, Any]:
        """One model; with ``settled_within_s`` the daemon answers when nothing is being brought up any more."""
        query = {"window_s": window_s, "settled_within_s": settled_within_s}
        timeout_s = TIMEOUT_S + settled_within_s
        return self._call("GET", _path(name), params=query, timeout=timeout_s)

    def journal(self, name: str, *, since: float = 0) -> list[dict[str, Any]]:
        """Decisions about a model since a wall time."""
        found = self._call("GET", f"{_path(name)}/journal", params={"since": since})
        records: list[dict[str, Any]] = found["records"]
        return records

    def remove(self, name: str) -> None:
        """Undeploy and forget."""
        self._call("DELETE", _path(name), timeout=60)

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            return read(self.address, self._http.request(method, path, **arguments))
        except httpx.HTTPError as exc:
            raise unreachable(self.address, exc) from exc


class AsyncRomaClient:
    """The one call that waits, for triggers."""

    def __init__(self, address: str, *, token: str | None = None) -> None:
        self.address = address
        self._http = httpx.AsyncClient(**_arguments(address, token))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def status(self, name: str, *, window_s: float = 60, settled_within_s: float = 0) -> dict[str, Any]:
        """As `RomaClient.status`."""
        query = {"window_s": window_s, "settled_within_s": settled_within_s}
        path = _path(name)
        try:
            response = await self._http.get(path, params=query, timeout=TIMEOUT_S + settled_within_s)
        except httpx.HTTPError as exc:
            raise unreachable(self.address, exc) from exc
        return read(self.address, response)


def _path(name: str) -> str:
    """Of a model; a name that is none must not lead to another endpoint."""
    return f"/v2/mlscale/models/{model.check_name('model_name', name)}"


def read(address: str, response: httpx.Response) -> dict[str, Any]:
    """The JSON of a good response, or the error that a bad one stands for."""
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise errors.UnreachableError("ROMA", address, "something else answers there; check host and port")
    if response.is_success:
        return document
    message = str(document.get("error", f"status {response.status_code}"))
    match response.status_code:
        case 401 | 403:
            raise errors.InvalidInputError("token", "…", f"ROMA at {address} refuses it ({message})")
        case 400 | 404 | 405 | 413 if "field" in document:
            raise errors.InvalidInputError(document["field"], _Shown(document["value"]), document["fix"])
        case 409:
            raise errors.AdmissionRefusedError(message)
        case status if status < 500:
            raise errors.InvalidInputError("request", status, message)
    retry_after_s = response.headers.get("retry-after", "5")
    raise errors.TransientError(
        f"ROMA at {address}: {message}", retry_after_s=float(retry_after_s) if retry_after_s.isdigit() else 5.0
    )


def unreachable(address: str, exc: httpx.HTTPError) -> errors.UnreachableError:
    """A connection that failed, with what to do about it."""
    reason = str(exc) or type(exc).__name__
    return errors.UnreachableError("ROMA", address, f"start it with `mlscale roma up` or mend the address ({reason})")


class _Shown(str):
    """A value that is already written as it should appear."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _arguments(address: str, token: str | None) -> Mapping[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # Proxies from the environment are for the internet, not for this service.
    return {"base_url": address, "headers": headers, "timeout": TIMEOUT_S, "trust_env": False}
