"""HTTP as the gateway speaks it: what came in, what goes out, and our errors as statuses.

Raw ASGI, because a framework costs more than the model on small requests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.roma import request as requests
from airflow_mlscale.roma.adapters import compression, statuses

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WATCH_AFTER_S = 0.02
"""An answer that takes longer is worth watching whether its client is still there."""


StatusError = statuses.StatusError
ClientGoneError = statuses.ClientGoneError


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes out."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    content_type: bytes = b"application/json"

    async def send(self, send: Send) -> None:
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", str(len(self.body)).encode()),
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@dataclass
class Budget:
    """Bytes of request bodies held at one time, over HTTP and gRPC together."""

    limit: int
    used: int = 0

    def hold(self, size: int) -> None:
        """Count bytes in; the holder gives them back whatever this says.

        Raises:
            StatusError: the gateway holds too much (503).
        """
        self.used += size
        if self.used > self.limit:
            raise StatusError(503, "the gateway holds too many request bodies; try again later", retry_after_s=1)


@dataclass
class Exchange:
    """One request on its way through the gateway."""

    scope: Scope
    receive: Receive
    max_body_bytes: int
    body_timeout_s: float
    budget: Budget
    headers: Mapping[bytes, bytes] = field(init=False)
    held: int = 0
    """Bytes of the budget that this request holds; the gateway gives them back at its end."""
    model_name: str | None = None
    """For the access log."""

    def __post_init__(self) -> None:
        self.headers = dict(self.scope["headers"])

    @property
    def method(self) -> str:
        """``GET`` for ``HEAD`` too, whose answer the server sends without its body."""
        return "GET" if self.scope["method"] == "HEAD" else str(self.scope["method"])

    @property
    def client(self) -> str:
        """The other end's address."""
        return str((self.scope.get("client") or ("",))[0])

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    def number(self, name: str, default: float, *, low: float, high: float) -> float:
        """A number from the query string."""
        given = parse_qs(self.scope["query_string"].decode("latin-1")).get(name)
        return default if given is None else bounded(name, given[-1], low=low, high=high)

    def allow(self, *methods: str) -> None:
        """Refuse other methods."""
        if self.method not in methods:
            fix = f"method {self.method} is not allowed here; use {' or '.join(methods)}"
            raise StatusError(405, fix, allow=methods)

    async def body(self) -> bytes:
        """The whole body, unpacked if it came compressed.

        Raises:
            StatusError: it is too large (413), too slow (408), in an unknown encoding (415), or the gateway
                holds too much (503).
            InvalidInputError: it is not compressed as it says.
            ClientGoneError: the client went away.
        """
        declared = self.headers.get(b"content-length", b"0")
        if declared.isdigit():
            self._check_size(int(declared))
        parts: list[bytes] = []
        more = True
        try:
            async with asyncio.timeout(self.body_timeout_s):
                while more:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError("the client went away")
                    parts.append(message.get("body", b""))
                    more = message.get("more_body", False)
                    self._hold(len(parts[-1]))
        except TimeoutError:
            limit_s = self.body_timeout_s
            raise StatusError(408, f"the body did not arrive within {limit_s:g} s; send it faster") from None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        encoding = self.headers.get(b"content-encoding")
        if encoding is None:
            return body
        content = await compression.unpack(body, encoding, limit=self.max_body_bytes)
        self._hold(len(content) - len(body))
        return content

    async def json(self) -> Any:
        """The body as JSON; an empty one is an empty object."""
        body = await self.body()
        try:
            return json.loads(body) if body.strip() else {}
        except (ValueError, RecursionError) as exc:
            raise errors.InvalidInputError("body", f"{len(body)} bytes", f"it is not JSON: {exc}") from exc

    async def unless_gone(self, answer: asyncio.Future[model.Answer]) -> model.Answer:
        """Wait for an answer, but no longer than its client does.

        Raises:
            ClientGoneError: the client went away first.
        """
        if not answer.done():
            await asyncio.wait({answer}, timeout=WATCH_AFTER_S)
        if not answer.done():
            watch = asyncio.ensure_future(self._disconnected())
            try:
                waits: set[asyncio.Future[Any]] = {answer, watch}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                watch.cancel()
            if not answer.done():
                raise ClientGoneError("the client went away")
        return answer.result()

    async def _disconnected(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            continue

    def _hold(self, size: int) -> None:
        self.held += size
        self.budget.hold(size)
        self._check_size(self.held)

    def _check_size(self, size: int) -> None:
        if size > self.max_body_bytes:
            raise StatusError(413, f"the body is larger than {self.max_body_bytes} bytes; send smaller batches")


def json_reply(document: Any, status: int = 200) -> Reply:
    """Any JSON."""
    return Reply(status, json.dumps(document).encode())


def bounded(name: str, given: Any, *, low: float, high: float) -> float:
    """A number within limits, or `InvalidInputError`."""
    try:
        value = float(given)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise errors.InvalidInputError(name, given, f"give a number from {low:g} to {high:g}")
    return value


def error_reply(exc: Exception) -> Reply:
    """Our errors in the shape that both protocols and the control API share: ``{"error": "…"}``."""
    status, retry_after_s = statuses.of(exc)
    document: dict[str, Any] = {"error": statuses.told(exc, status)}
    if isinstance(exc, errors.InvalidInputError):
        document |= {"field": exc.field, "value": repr(exc.value)[:200], "fix": exc.fix}
    headers: list[tuple[bytes, bytes]] = []
    if retry_after_s is not None:
        headers.append((b"retry-after", str(requests.retry_after(retry_after_s)).encode()))
    if isinstance(exc, StatusError) and exc.allow:
        headers.append((b"allow", ", ".join(exc.allow).encode()))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return Reply(status, json.dumps(document).encode(), tuple(headers))
