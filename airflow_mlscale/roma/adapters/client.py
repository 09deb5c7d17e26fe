"""A client of ROMA's control API, for the command line, hooks and tests. Plain HTTP does everything it does."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from airflow_mlscale import errors
from airflow_mlscale.roma import model

TIMEOUT_S = 10.0

FETCH_S = 1800.0
"""Longest wait for a daemon that copies or downloads a model."""


def order_body(order: model.DeployOrder) -> dict[str, Any]:
    """The JSON body of a deployment: what is None is left out, unless it is lifted, and keeps its value or default."""
    objective = order.objective
    fields = {
        "artefact": order.artefact,
        "version": order.version,
        "objective": objective and {"milliseconds": objective.milliseconds, "percentile": objective.percentile},
        "min_cores": order.min_cores,
        "max_cores": order.max_cores,
        "priority": order.priority,
        "max_batch": order.max_batch,
        "device": order.device,
        "gpu_memory_mb": order.gpu_memory_mb,
        "max_memory_mb": order.max_memory_mb,
        "canary": order.canary and asdict(order.canary),
        "runtime": order.runtime and asdict(order.runtime),
        "checksum": order.checksum,
    }
    return {name: value for name, value in fields.items() if value is not None or name in order.lifted}


def trust(
    *,
    ca_file: str | Path | None = None,
    verify: bool = True,
    client_cert: str | Path | None = None,
    client_key: str | Path | None = None,
) -> ssl.SSLContext:
    """Which daemons to believe over https, and who to be for one that asks for certificates.

    Args:
        ca_file: certificates in PEM form; the system's authorities if None.
        verify: False believes everybody, and so protects from eavesdroppers only.
        client_cert: our own certificate in PEM form.
        client_key: its key, if it is in another file.

    Raises:
        InvalidInputError: a file is not what it should be.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # ssl.SSLError is one
        fix = f"it holds no certificates in PEM form ({exc.strerror or exc})"
        raise errors.InvalidInputError("ca_file", str(ca_file), fix) from exc
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return _presenting(context, client_cert, client_key)


def pinned(
    certificate: Path, *, client_cert: str | Path | None = None, client_key: str | Path | None = None
) -> ssl.SSLContext:
    """For a daemon of this machine, by any of its addresses: it must have the key of this very certificate.

    Raises:
        InvalidInputError: a file is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(certificate)
    except OSError as exc:
        fix = f"it cannot be read ({exc.strerror or exc}); give --ca-file"
        raise errors.InvalidInputError("certificate", str(certificate), fix) from exc
    return _presenting(context, client_cert, client_key)


def _presenting(context: ssl.SSLContext, certificate: str | Path | None, key: str | Path | None) -> ssl.SSLContext:
    if certificate:
        try:
            context.load_cert_chain(certificate, key, password=lambda: "")
        except (OSError, ValueError) as exc:
            fix = f"it is no certificate in PEM form, or the key does not fit ({getattr(exc, 'strerror', None) or exc})"
            raise errors.InvalidInputError("client_cert", str(certificate), fix) from exc
    return context


class RomaClient:
    """Blocking calls. Errors are those of `airflow_mlscale.errors`."""

    def __init__(self, address: str, *, token: str | None = None, trusted: ssl.SSLContext | None = None) -> None:
        self.address = address
        self._http = httpx.Client(**_arguments(address, token, trusted))

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

    def models(self, *, window_s: float = 60) -> list[dict[str, Any]]:
        """The status of every model, measured over the last ``window_s`` seconds."""
        path = "/v2/mlscale/models"
        found: list[dict[str, Any]] = self._call("GET", path, params={"window_s": window_s})["models"]
        return found

    def deploy(self, order: model.DeployOrder) -> dict[str, Any]:
        """Deploy or update; returns the status once the daemon has the files, long before the model is ready."""
        return self._call("PUT", _path(order.name), json=order_body(order), timeout=FETCH_S)

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

    def promote(self, name: str, *, version: str | None = None, reason: str | None = None) -> dict[str, Any]:
        """Let the version that is tried serve everything."""
        return self._call("POST", f"{_path(name)}/promote", json=_given(version=version, reason=reason), timeout=30)

    def roll_back(self, name: str, *, version: str | None = None, reason: str | None = None) -> dict[str, Any]:
        """Leave the version that is tried, or go back to the one that served before."""
        return self._call("POST", f"{_path(name)}/rollback", json=_given(version=version, reason=reason), timeout=30)

    def feed_back(self, name: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Tell the truth about answers: ``{"label": …, "prediction": … or "id": …}``."""
        path = f"/v2/models/{model.check_name('model_name', name)}/feedback"
        return self._call("POST", path, json={"records": [dict(one) for one in records]})

    def remove(self, name: str) -> None:
        """Undeploy and forget."""
        self._call("DELETE", _path(name), timeout=60)

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            return read(self.address, self._http.request(method, path, **arguments))
        except httpx.HTTPError as exc:
            raise unreachable(self.address, exc) from exc


class AsyncRomaClient:
    """The calls that triggers need."""

    def __init__(self, address: str, *, token: str | None = None, trusted: ssl.SSLContext | None = None) -> None:
        self.address = address
        self._http = httpx.AsyncClient(**_arguments(address, token, trusted))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def status(self, name: str, *, window_s: float = 60, settled_within_s: float = 0) -> dict[str, Any]:
        """As `RomaClient.status`."""
        query = {"window_s": window_s, "settled_within_s": settled_within_s}
        return await self._get(_path(name), query, timeout_s=TIMEOUT_S + settled_within_s)

    async def quality(self, name: str, *, window_s: float) -> dict[str, Any]:
        """By version: ``{records, accuracy, mae}`` of the feedback over a window."""
        path = f"/v2/models/{model.check_name('model_name', name)}/feedback"
        found: dict[str, Any] = (await self._get(path, {"window_s": window_s}, timeout_s=TIMEOUT_S))["versions"]
        return found

    async def _get(self, path: str, query: Mapping[str, float], *, timeout_s: float) -> dict[str, Any]:
        try:
            response = await self._http.get(path, params=dict(query), timeout=timeout_s)
        except httpx.HTTPError as exc:
            raise unreachable(self.address, exc) from exc
        return read(self.address, response)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


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
    if "CERTIFICATE" in reason.upper():
        fix = f"its TLS certificate or ours is not accepted; see ca_file, client_cert and client_key ({reason})"
        return errors.UnreachableError("ROMA", address, fix)
    return errors.UnreachableError("ROMA", address, f"start it with `mlscale roma up` or mend the address ({reason})")


class _Shown(str):
    """A value that is already written as it should appear."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _arguments(address: str, token: str | None, trusted: ssl.SSLContext | None) -> Mapping[str, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    # Proxies from the environment are for the internet, not for this service.
    arguments = {"base_url": address, "headers": headers, "timeout": TIMEOUT_S, "trust_env": False}
    return {**arguments, "verify": trusted or trust()} if address.startswith("https:") else arguments
