"""CPU shares from the host agent: each `apply` takes or renews a lease."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import httpx

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports

log = logging.getLogger(__name__)

TIMEOUT_S = 1.0
"""For each call: control goes on without an answer rather than waiting for one."""


class LeasePort:
    """`CpuPort` through an agent; see there for what its methods do.

    Groups are opened again by themselves when the agent was restarted.
    """

    name = "lease"

    def __init__(self, address: str, *, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        """Connect to an agent.

        Args:
            address: ``unix:/path/to/socket`` or ``http://host:port``.
            token: bearer token, if the agent asks for one.
            timeout_s: for each call.

        Raises:
            InvalidInputError: the address has another form, or the token is refused.
            UnreachableError: no agent answers there.
        """
        self.address = address
        self._http = _client(address, token, timeout_s)
        self._open: set[str] = set()
        self._lock = threading.Lock()
        host = self._call("GET", "/v1/host")
        self.enforces: bool = host["enforces"]
        self.host_cores: float = host["host_cores"]
        self.backend: str = host["backend"]
        """Name of the agent's own adapter."""

    def open(self, group: str) -> None:
        self._call("PUT", f"/v1/groups/{ports.check_group(group)}")
        with self._lock:
            self._open.add(group)

    def apply(self, group: str, share: ports.CpuShare, terms: ports.Terms = ports.Terms()) -> ports.CpuShare:
        self._check_open(group)
        lease = {
            "guaranteed_cores": share.guaranteed_cores,
            "ceiling_cores": share.ceiling_cores,
            "minimum_cores": terms.minimum_cores,
            "priority": terms.priority,
            "deadline_at": terms.deadline_at if isfinite(terms.deadline_at) else None,
            "ttl_s": terms.ttl_s,
        }
        return _share(self._call("PUT", f"/v1/groups/{group}/lease", lease)["share"])

    def usage(self, group: str) -> ports.CpuUsage:
        return ports.CpuUsage(**self._on_open(group, "GET", "usage"))

    def admit(self, group: str, pid: int) -> None:
        self._on_open(group, "POST", "members", {"pid": pid})

    def admit_matching(self, group: str, words: Sequence[str]) -> tuple[int, ...]:
        """Move all processes of the agent's host into the group whose command line has all the words as arguments.

        What descends from them follows. Returns the ids of those that match, descendants not among them.

        Raises:
            InvalidInputError: the words are so few or short that they could mean processes of others.
        """
        found = self._on_open(group, "POST", "members", {"command_contains": list(words)})
        return tuple(found["matched"])

    def entry_files(self, group: str) -> tuple[Path, ...]:
        return tuple(Path(path) for path in self._on_open(group, "GET", "entry-files")["files"])

    def groups(self) -> list[ports.GroupInfo]:
        return [
            ports.GroupInfo(name=row["name"], share=_share(row["share"]), members=tuple(row["members"]))
            for row in self.status()
        ]

    def status(self) -> list[dict[str, Any]]:
        """All groups of the agent with ``name``, ``share``, ``members``, ``usage`` and ``lease_left_s``."""
        return list(self._call("GET", "/v1/groups")["groups"])

    def close(self, group: str) -> None:
        with self._lock:
            if ports.check_group(group) not in self._open:
                return
            self._open.discard(group)
        try:
            self._call("DELETE", f"/v1/groups/{group}")
        except errors.UnreachableError as exc:
            log.warning("cannot release CPU group %s, its lease runs out by itself: %s", group, exc)

    def _check_open(self, group: str) -> None:
        if ports.check_group(group) not in self._open:
            raise KeyError(group)

    def _on_open(self, group: str, method: str, part: str, body: Mapping[str, Any] | None = None) -> Any:
        self._check_open(group)
        try:
            return self._call(method, f"/v1/groups/{group}/{part}", body)
        except KeyError:  # an agent that was restarted meanwhile
            self.open(group)
            return self._call(method, f"/v1/groups/{group}/{part}", body)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            try:
                answer = self._http.request(method, path, json=body)
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                # A kept-alive connection to an agent that was restarted; every call can be repeated.
                answer = self._http.request(method, path, json=body)
        except httpx.TransportError as exc:
            raise errors.UnreachableError(
                "host agent", self.address, "start it with `mlscale agent`", retry_after_s=1.0
            ) from exc
        return _content(answer, self.address)


@dataclass(frozen=True)
class _Quiet(logging.Filter):
    """Drops httpx's line for each request to one agent: a controller renews every second."""

    base_url: str

    def filter(self, record: logging.LogRecord) -> bool:
        return self.base_url not in record.getMessage()


def _client(address: str, token: str | None, timeout_s: float) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    transport = None
    base_url = address
    if address.startswith("unix:/"):
        base_url = "http://agent.mlscale"
        transport = httpx.HTTPTransport(uds=address.removeprefix("unix:"))
    elif not address.startswith(("http://", "https://")):
        raise errors.InvalidInputError("agent", address, "use unix:/path/to/socket or http://host:port")
    logging.getLogger("httpx").addFilter(_Quiet(f"{base_url}/v1/"))
    # The environment's proxies are for the world outside, never for an agent.
    try:
        return httpx.Client(base_url=base_url, transport=transport, headers=headers, timeout=timeout_s, trust_env=False)
    except httpx.InvalidURL as exc:
        raise errors.InvalidInputError("agent", address, f"use http://host:port ({exc})") from exc


def _share(row: Mapping[str, Any]) -> ports.CpuShare:
    return ports.CpuShare(guaranteed_cores=row["guaranteed_cores"], ceiling_cores=row["ceiling_cores"])


def _content(answer: httpx.Response, address: str) -> Any:
    """The body of a good answer; the agent's errors become the port's."""
    if answer.is_success:
        return answer.json()
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = {"message": answer.text[:200]}
    message = str(error.get("message"))
    match answer.status_code:
        case 400 | 413 | 422:
            raise errors.InvalidInputError(error.get("field", "request"), error.get("value"), error.get("fix", message))
        case 401:
            raise errors.InvalidInputError("agent_token", "***", f"the host agent at {address} refuses it")
        case 404:
            raise KeyError(message)
        case 409:
            raise errors.AdmissionRefusedError(message)
        case _:
            raise errors.TransientError(f"host agent at {address}: {answer.status_code} {message}")
