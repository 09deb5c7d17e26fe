"""HTTP connections within bounds: a head that is too large or too slow ends its connection, and so does a body that
still trickles in when its request has long been answered.

uvicorn's own protocol holds headers of any size, and waits for them, and for such bodies, as long as the client likes.
This module is imported only where the server is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections import Counter
from typing import Any

import uvicorn
from uvicorn.protocols.http import httptools_impl

from airflow_mlscale.roma import settings


class Server(uvicorn.Server):
    """Serves on sockets that are bound already; TLS must be agreed upon as soon as headers must be there."""

    def __init__(
        self, config: uvicorn.Config, limits: settings.GatewaySettings, context: ssl.SSLContext | None
    ) -> None:
        super().__init__(config)
        self._context = context
        self._handshake_s = limits.header_timeout_s if context else None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        loop, config = asyncio.get_running_loop(), self.config

        def protocol() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )
            return made

        self.servers = [
            await loop.create_server(
                protocol,
                sock=each,
                ssl=self._context,
                backlog=config.backlog,
                ssl_handshake_timeout=self._handshake_s,
            )
            for each in sockets or ()
        ]
        self.started = True

    async def leave(self, within_s: float) -> None:
        """Take no new connections, let each that is there go with its next answer, and stop serving then.

        One that stays silent is closed after its keep-alive time, as always.
        """
        for server in self.servers:
            server.close()
        self.config.encoded_headers = [*self.config.encoded_headers, (b"connection", b"close")]
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self.server_state.connections:  # noqa: ASYNC110 (uvicorn has no event for it)
                    await asyncio.sleep(0.05)
        self.should_exit = True


def bounded(limits: settings.GatewaySettings) -> type[httptools_impl.HttpToolsProtocol]:
    """The protocol class for ``uvicorn.Config(http=…)``."""
    # On loopback, and behind a proxy, one address stands for all clients.
    alone = settings.is_loopback(limits.host) or limits.plaintext
    people: Counter[str] = Counter()

    class Bounded(BoundedHttp):
        """With the limits of one gateway."""

        max_header_bytes = limits.max_header_bytes
        header_timeout_s = limits.header_timeout_s
        most_per_address = None if alone else limits.max_connections_per_address
        crowd = people

    return Bounded


class BoundedHttp(httptools_impl.HttpToolsProtocol):
    """One connection."""

    max_header_bytes: int
    header_timeout_s: float
    most_per_address: int | None
    crowd: Counter[str]
    """Connections by address, of all of this class together."""

    _in_head = True
    _in_message = True
    _head_bytes = 0
    _refused = False
    _timer: asyncio.TimerHandle | None = None
    """Of the head, or of the rest of a body that is no longer asked for."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self.crowd[self._address] += 1
        if self.most_per_address is not None and self.crowd[self._address] > self.most_per_address:
            self._refused = True
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.crowd[self._address] -= 1
        if not self.crowd[self._address]:
            del self.crowd[self._address]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self.max_header_bytes:
            self._refuse(431, f"the headers are larger than {self.max_header_bytes} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = True
        if not self._in_head:  # the next request of a connection that is kept
            self._in_head, self._head_bytes = True, 0
            self._await_head()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._in_head = False
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.max_header_bytes:  # it came in one piece
            self._refuse(431, f"the headers are larger than {self.max_header_bytes} bytes")
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = False
        self._stop_timer()
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_message and not self._in_head and self.cycle.response_complete:
            self._stop_timer()
            self._timer = self.loop.call_later(self.header_timeout_s, self._leave)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is told so in the shape of all other errors."""
        if not self._refused:
            self._refuse(400, msg)

    def _await_head(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._refuse(408, f"no whole headers within {self.header_timeout_s:g} s")

    def _leave(self) -> None:
        """It was answered; what still comes is of no interest."""
        self._refused = True
        self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Answer, if nothing else is being answered on this connection, and close it."""
        self._refused = True
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(_response(status, message))
        self.transport.close()


def _response(status: int, message: str) -> bytes:
    body = json.dumps({"error": message}).encode()
    headers: dict[str, Any] = {"content-type": "application/json", "content-length": len(body), "connection": "close"}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return httptools_impl.STATUS_LINE[status] + head.encode() + b"\r\n" + body
