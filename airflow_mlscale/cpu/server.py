"""The host agent's HTTP interface: JSON over a Unix socket, and over TCP if asked for.

============================================  =====================================================
``GET  /healthz``                             answers while the agent works; never asks for a token
``GET  /metrics``                             Prometheus
``GET  /v1/host``                             backend, whether it enforces, cores
``GET  /v1/groups``                           all groups
``PUT  /v1/groups/{group}``                   open
``PUT  /v1/groups/{group}/lease``             take or renew a lease (opens the group if need be)
``GET  /v1/groups/{group}/usage``             meters
``POST /v1/groups/{group}/members``           move processes in: ``{"pid": 123}``, or all of this host whose
                                              command line has these words, with all that descends from
                                              them: ``{"command_contains": ["word", "another"]}``
``GET  /v1/groups/{group}/entry-files``       files by which a process joins the group itself
``DELETE /v1/groups/{group}``                 end the lease, remove the group once it is empty
============================================  =====================================================

Does not belong here: what the requests mean (agent), what their bodies look like (messages).
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from airflow_mlscale import errors
from airflow_mlscale.cpu import agent as agents
from airflow_mlscale.cpu import messages
from airflow_mlscale.cpu.adapters import process_table
from airflow_mlscale.runtime import loop

log = logging.getLogger(__name__)

LARGEST_BODY_BYTES = 16_384
TIDY_EVERY_S = 3.0


class Service:
    """An agent, its periodic tick and its listeners."""

    def __init__(self, agent: agents.Agent) -> None:
        self.agent = agent
        self.ticks = loop.PeriodicLoop(self, _decide, None, period_s=agent.settings.tick_s, name="host agent")
        self._tidied_s = agent.clock.monotonic()

    async def observe(self) -> tuple[str, ...]:
        """Which leases have run out."""
        return self.agent.due()

    async def act(self, plan: tuple[str, ...]) -> None:
        """End them; now and then also tidy up."""
        self.agent.expire(plan)
        if self.agent.clock.monotonic() - self._tidied_s >= TIDY_EVERY_S:
            self._tidied_s = self.agent.clock.monotonic()
            self.agent.tidy()

    async def run(self, listeners: Sequence[tuple[socket.socket, str | None]], stop: asyncio.Event) -> None:
        """Serve until ``stop`` is set, then restore every group.

        Args:
            listeners: bound sockets, each with the token it asks for, if any.
            stop: ends the service.
        """
        servers = [_Server(_config(application(self, token))) for _, token in listeners]
        self.agent.start()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.ticks.run(stop))
                for server, (listener, _) in zip(servers, listeners, strict=True):
                    tasks.create_task(server.serve([listener]))
                await stop.wait()
                for server in servers:
                    server.should_exit = True
        finally:
            self.agent.stop()


def application(service: Service, token: str | None) -> Starlette:
    """The routes; with a token, each request but ``/healthz`` must bear it."""
    handlers = _Handlers(service)
    failures = dict.fromkeys((errors.MlscaleError, KeyError), _failed)
    return Starlette(
        routes=[
            Route("/healthz", handlers.health),
            Route("/metrics", handlers.metrics),
            Route("/v1/host", handlers.host),
            Route("/v1/groups", handlers.groups),
            Route("/v1/groups/{group}", handlers.open, methods=["PUT"]),
            Route("/v1/groups/{group}", handlers.close, methods=["DELETE"]),
            Route("/v1/groups/{group}/lease", handlers.lease, methods=["PUT"]),
            Route("/v1/groups/{group}/usage", handlers.usage),
            Route("/v1/groups/{group}/members", handlers.admit, methods=["POST"]),
            Route("/v1/groups/{group}/entry-files", handlers.entry_files),
        ],
        middleware=[Middleware(_Bearer, token=token)] if token else [],
        exception_handlers={**failures, HTTPException: _no_such_route},
    )


class _Handlers:
    """One method for each route. The agent's calls take well under a millisecond, so they run in the event loop."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.agent = service.agent

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "leases": len(self.agent.leases)})

    async def metrics(self, request: Request) -> Response:
        from airflow_mlscale.cpu import metrics

        return Response(metrics.text(self.agent, self.service.ticks.health), media_type="text/plain; version=0.0.4")

    async def host(self, request: Request) -> Response:
        backend = self.agent.backend
        return JSONResponse(
            {
                "backend": backend.name,
                "enforces": backend.enforces,
                "host_cores": self.agent.pot_cores,
                "policy": self.agent.settings.policy,
            }
        )

    async def groups(self, request: Request) -> Response:
        now_s = self.agent.clock.monotonic()
        rows = []
        for info in self.agent.groups():
            lease = self.agent.leases.get(info.name)
            left_s = None if lease is None else lease.expires_s - now_s
            usage = messages.usage(self.agent.usage(info.name))
            rows.append({**messages.group(info), "usage": usage, "lease_left_s": left_s})
        return JSONResponse({"groups": rows})

    async def open(self, request: Request) -> Response:
        self.agent.open(_group(request))
        return JSONResponse({})

    async def lease(self, request: Request) -> Response:
        share, terms = messages.lease(await _body(request))
        granted = self.agent.renew(_group(request), share, terms)
        return JSONResponse({"share": messages.share(granted), "ttl_s": terms.ttl_s})

    async def usage(self, request: Request) -> Response:
        return JSONResponse(messages.usage(self.agent.usage(_group(request))))

    async def admit(self, request: Request) -> Response:
        whom = messages.admission(await _body(request))
        if isinstance(whom, int):
            self.agent.admit(_group(request), whom)
            return JSONResponse({})
        found = await asyncio.to_thread(process_table.matching, whom)  # reads every command line of the host
        self.agent.admit_all(_group(request), found.pids)
        return JSONResponse({"matched": found.matched, "pids": found.pids})

    async def entry_files(self, request: Request) -> Response:
        return JSONResponse({"files": [str(path) for path in self.agent.entry_files(_group(request))]})

    async def close(self, request: Request) -> Response:
        self.agent.close(_group(request))
        return JSONResponse({})


class _Bearer:
    """Asks each request but ``/healthz`` for the token."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", []))
        given = headers.get(b"authorization", b"")
        if scope["type"] == "http" and scope["path"] != "/healthz" and not hmac.compare_digest(given, self.expected):
            refusal = {"error": {"type": "Unauthorized", "message": "send 'Authorization: Bearer TOKEN'"}}
            await JSONResponse(refusal, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        await self.app(scope, receive, send)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the caller's, who stops all servers at once


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )


def _decide(seen: tuple[str, ...], state: None, dt_s: float) -> tuple[tuple[str, ...], None]:
    return seen, None


def _group(request: Request) -> str:
    return str(request.path_params["group"])


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY_BYTES:
            raise errors.InvalidInputError("body", f"{len(body)} bytes and more", f"send at most {LARGEST_BODY_BYTES}")
    return body


async def _failed(request: Request, exc: Exception) -> Response:
    status, body = messages.error(exc)
    return JSONResponse(body, status)


async def _no_such_route(request: Request, exc: Exception) -> Response:
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    message = f"{request.method} {request.url.path}: {getattr(exc, 'detail', exc)}"
    return JSONResponse({"error": {"type": "HTTPException", "message": message}}, status)
