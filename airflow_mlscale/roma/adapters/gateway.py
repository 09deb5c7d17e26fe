"""The ASGI application: who may come in, where a request goes, what is written down about it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from airflow_mlscale.roma import authority, settings
from airflow_mlscale.roma.adapters import access, compression, dashboard, guard, http, metrics, openapi

log = logging.getLogger(__name__)

Handler = Callable[[http.Exchange, list[str]], Awaitable[http.Reply]]

OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")
"""Answered without a token."""

SEND_TIMEOUT_S = 30.0
"""A client that does not take a large answer for this long is let go."""


class Gateway:
    """Everything that HTTP brings in."""

    def __init__(
        self,
        gateway: settings.GatewaySettings,
        *,
        open_inference: Handler,
        tensorflow_serving: Handler,
        control_api: Handler,
        counted: metrics.Metrics,
        book: access.AccessBook,
        budget: http.Budget,
        doorman: guard.Guard,
    ) -> None:
        self._settings = gateway
        self._guard = doorman
        self._open_inference = open_inference
        self._tensorflow_serving = tensorflow_serving
        self._control_api = control_api
        self._metrics = counted
        self._book = book
        self._budget = budget

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        if scope["type"] != "http":
            return
        exchange = http.Exchange(
            scope, receive, self._settings.max_body_bytes, self._settings.body_timeout_s, self._budget
        )
        began = time.perf_counter()
        note = access.begin(exchange.headers)
        status, sent = access.CLIENT_LEFT, 0
        try:
            reply = await self._packed(exchange, await self._reply(exchange, note))
            reply = replace(reply, headers=(*reply.headers, (access.REQUEST_ID, note.id.encode())))
            await self._send(reply, send)
            status, sent = reply.status, len(reply.body)
        except http.ClientGoneError:
            return
        finally:
            self._budget.used -= exchange.held
            self._write_down(exchange, note, status=status, sent=sent, seconds=time.perf_counter() - began)

    async def _reply(self, exchange: http.Exchange, note: access.Note) -> http.Reply:
        try:
            note.token = self._admit(exchange)
            return await self._route(exchange)
        except (http.ClientGoneError, asyncio.CancelledError):
            raise
        except Exception as exc:
            reply = http.error_reply(exc)
            if reply.status == 500:
                log.exception("%s %s failed", exchange.method, exchange.path)
            return reply

    def _admit(self, exchange: http.Exchange) -> str | None:
        """Let it in; returns the name of its token."""
        if exchange.path in OPEN_PATHS or (self._guard.asks and exchange.path in dashboard.PATHS):
            return None
        if not self._guard.asks:
            guard.check_local(exchange.headers)
        needed = authority.needed(exchange.method, exchange.path.strip("/").split("/"))
        authorization = exchange.headers.get(b"authorization", b"")
        return self._guard.admit(exchange.client, authorization, needed)

    async def _packed(self, exchange: http.Exchange, reply: http.Reply) -> http.Reply:
        accepted = exchange.headers.get(b"accept-encoding")
        if accepted is None or len(reply.body) < self._settings.compress_from_bytes:
            return reply
        binary = reply.content_type == b"application/octet-stream"
        encoding = compression.preferred(accepted, binary=binary)
        if encoding is None:
            return reply
        headers = (*reply.headers, (b"content-encoding", encoding.encode()), (b"vary", b"accept-encoding"))
        return replace(reply, body=await compression.pack(reply.body, encoding), headers=headers)

    async def _send(self, reply: http.Reply, send: http.Send) -> None:
        if len(reply.body) < compression.ASIDE_BYTES:  # fits the system's buffers: nobody waits
            await reply.send(send)
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await reply.send(send)
        except TimeoutError:
            raise http.ClientGoneError("the client does not take its answer") from None

    async def _route(self, exchange: http.Exchange) -> http.Reply:
        if exchange.path in dashboard.PATHS:
            return dashboard.reply(exchange)
        match exchange.path.strip("/").split("/"):
            case ["v2", "mlscale", *rest]:
                return await self._control_api(exchange, rest)
            case ["v2", *rest]:
                return await self._open_inference(exchange, rest)
            case ["v1", *rest]:
                return await self._tensorflow_serving(exchange, rest)
            case ["metrics"]:
                exchange.allow("GET")
                return http.Reply(200, self._metrics.text(), content_type=b"text/plain; version=0.0.4; charset=utf-8")
            case ["openapi.json"]:
                exchange.allow("GET")
                return http.Reply(200, openapi.text(token=self._guard.asks))
        raise http.StatusError(404, f"no such endpoint: {exchange.path}; see /openapi.json, or /dashboard")

    def _write_down(
        self, exchange: http.Exchange, note: access.Note, *, status: int, sent: int, seconds: float
    ) -> None:
        self._book.enter(
            access.Entry(
                protocol=_protocol(exchange.path),
                client=exchange.client,
                method=exchange.method,
                path=exchange.path,
                status=status,
                seconds=seconds,
                size=exchange.held,
                sent=sent,
                model=exchange.model_name,
                note=note,
            )
        )


def _protocol(path: str) -> str:
    if path.startswith("/v1/"):
        return "tfs"
    return "v2" if path.startswith("/v2") else "http"
