"""The ASGI application: who may come in, where a request goes, what is written down about it."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable

from airflow_mlscale.roma import settings
from airflow_mlscale.roma.adapters import http, metrics

log = logging.getLogger(__name__)
access = logging.getLogger("roma.access")

Handler = Callable[[http.Exchange, list[str]], Awaitable[http.Reply]]

OPEN_PATHS = ("/v2/health/live", "/v2/health/ready")
"""Answered without a token."""


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
    ) -> None:
        self._settings = gateway
        self._token = gateway.token.encode() if gateway.token else None
        self._open_inference = open_inference
        self._tensorflow_serving = tensorflow_serving
        self._control_api = control_api
        self._metrics = counted
        self._budget = http.Budget(gateway.buffered_bytes)

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        if scope["type"] != "http":
            return
        exchange = http.Exchange(
            scope, receive, self._settings.max_body_bytes, self._settings.body_timeout_s, self._budget
        )
        began = time.perf_counter()
        status = 499  # nginx's: the client closed the connection
        try:
            reply = await self._reply(exchange)
            status = reply.status
            await reply.send(send)
        except http.ClientGoneError:
            return
        finally:
            self._budget.used -= exchange.held
            self._write_down(exchange, status, time.perf_counter() - began)

    async def _reply(self, exchange: http.Exchange) -> http.Reply:
        try:
            self._let_in(exchange)
            return await self._route(exchange)
        except (http.ClientGoneError, asyncio.CancelledError):
            raise
        except Exception as exc:
            reply = http.error_reply(exc)
            if reply.status == 500:
                log.exception("%s %s failed", exchange.method, exchange.path)
            return reply

    async def _route(self, exchange: http.Exchange) -> http.Reply:
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
        raise http.StatusError(404, f"no such endpoint: {exchange.path}; see /v2")

    def _let_in(self, exchange: http.Exchange) -> None:
        """A token if one is set; without one, only requests that no foreign web page can send."""
        if exchange.path in OPEN_PATHS:
            return
        if self._token is not None:
            scheme, _, given = exchange.headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
                raise http.StatusError(401, "give the token: Authorization: Bearer …")
            return
        host = exchange.headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0] or "localhost"
        if not settings.is_loopback(host) or b"origin" in exchange.headers:
            raise http.StatusError(403, "without a token only local programs are served, no web pages")

    def _write_down(self, exchange: http.Exchange, status: int, seconds: float) -> None:
        if exchange.model_name is not None and exchange.method == "POST" and status not in (404, 499):
            protocol = "tfs" if exchange.path.startswith("/v1/") else "v2"
            self._metrics.observe(exchange.model_name, protocol, status, seconds)
        if self._settings.access_log:
            client = exchange.scope.get("client") or ("",)
            entry = {
                "client": client[0],
                "method": exchange.method,
                "path": exchange.path,
                "status": status,
                "ms": round(1000 * seconds, 3),
                "bytes": exchange.held,
                "model": exchange.model_name,
            }
            access.info(json.dumps(entry))
