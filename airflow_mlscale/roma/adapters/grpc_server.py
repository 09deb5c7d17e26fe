"""The gRPC side of the gateway: who may come in, what is written down, our errors as gRPC statuses.

Messages pass as bytes: the services parse what they need to know, and tensors are left to the workers.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import unquote

from airflow_mlscale import errors
from airflow_mlscale.roma import authority, settings
from airflow_mlscale.roma import request as requests
from airflow_mlscale.roma.adapters import access, guard, http, inference, statuses, tls

log = logging.getLogger(__name__)

MAX_STREAMS = 1024
"""Calls side by side over one connection."""

_CODES: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    408: "DEADLINE_EXCEEDED",
    409: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    415: "UNIMPLEMENTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}


@dataclass(slots=True)
class Exchange:
    """One message on its way through the gateway."""

    request: bytes
    metadata: Mapping[bytes, bytes]
    remaining_s: float | None
    """Until the call's own deadline."""
    model_name: str | None = None
    """For the access log: whose inference this is."""

    @property
    def wishes(self) -> inference.Wishes:
        """What the metadata says, and the gRPC deadline."""
        said = inference.wishes_of(self.metadata)
        waits = [seconds for seconds in (said.wait_s, self.remaining_s) if seconds is not None]
        return replace(said, wait_s=max(0.001, min(waits)) if waits else None)


Method = Callable[[Exchange], Awaitable[bytes]]


class Service(Protocol):
    """A gRPC service of ours."""

    name: str
    """Full, with its package."""
    protocol: str
    """For metrics and the access log."""
    open_methods: frozenset[str]
    """Answered without a token."""
    methods: Mapping[str, Method]
    """One message in, one out."""
    streams: Mapping[str, Method]
    """Many in, as many out, each answered like a call of its own; see `told`."""

    def told(self, message: str) -> bytes:
        """An error inside a stream, as the message that carries it."""


class GrpcServer:
    """The services over one port."""

    def __init__(
        self,
        config: settings.GatewaySettings,
        services: Sequence[Service],
        *,
        book: access.AccessBook,
        budget: http.Budget,
        doorman: guard.Guard,
        certificates: tls.Certificates | None = None,
    ) -> None:
        import grpc

        self._grpc = grpc
        self._guard = doorman
        self._certificates = certificates
        self._drain_s = config.drain_s
        self._book = book
        self._budget = budget
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", config.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", config.max_header_bytes),
                ("grpc.absolute_max_metadata_size", config.max_header_bytes),
                ("grpc.max_concurrent_streams", MAX_STREAMS),
                ("grpc.so_reuseport", 1),  # for a daemon that takes over; `free` tells of all others
                ("grpc.server_handshake_timeout_ms", round(1000 * config.header_timeout_s)),
                ("grpc.keepalive_time_ms", 60_000),  # connections whose other end is gone are found out
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.max_connection_idle_ms", 600_000),
            ],
            maximum_concurrent_rpcs=config.max_connections,
        )
        self._server.add_generic_rpc_handlers(tuple(self._handler(service) for service in services))
        self._address = f"[{config.host}]" if ":" in config.host else config.host
        self._port = config.grpc_port

    async def start(self) -> None:
        """Listen.

        Raises:
            InvalidInputError: the port is taken.
        """
        try:
            address = f"{self._address}:{self._port}"
            if self._certificates:
                self._port = self._server.add_secure_port(address, self._certificates.grpc_credentials())
            else:
                self._port = self._server.add_insecure_port(address)
            await self._server.start()
        except RuntimeError as exc:
            fix = "cannot listen there; choose another --grpc-port"
            raise errors.InvalidInputError("grpc_port", self._port, fix) from exc
        log.info("ROMA serves gRPC on %s:%d", self._address, self._port)

    async def stop(self) -> None:
        """Take nothing new, and let what is under way end."""
        await self._server.stop(self._drain_s)

    def _handler(self, service: Service) -> Any:
        handlers = {
            name: self._grpc.unary_unary_rpc_method_handler(self._unary(service, name, method))
            for name, method in service.methods.items()
        }
        for name, method in service.streams.items():
            handlers[name] = self._grpc.stream_stream_rpc_method_handler(self._stream(service, name, method))
        return self._grpc.method_handlers_generic_handler(service.name, handlers)

    def _unary(self, service: Service, name: str, method: Method) -> Callable[..., Awaitable[bytes]]:
        async def answer(request: bytes, context: Any) -> bytes:
            try:
                return await self._answer(service, name, method, request, context)
            except Exception as exc:
                failure = exc
            await self._abort(context, failure)
            raise AssertionError("abort raises")

        return answer

    def _stream(self, service: Service, name: str, method: Method) -> Callable[..., AsyncIterator[bytes]]:
        async def answers(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for request in requests:
                try:
                    message = await self._answer(service, name, method, request, context)
                except Exception as exc:
                    status, _ = statuses.of(exc)
                    if status in (401, 403):
                        await self._abort(context, exc)
                    message = service.told(_text(exc, status))
                yield message

        return answers

    async def _answer(self, service: Service, name: str, method: Method, request: bytes, context: Any) -> bytes:
        metadata = {key.encode(): _bytes(value) for key, value in context.invocation_metadata() or ()}
        exchange = Exchange(request, metadata, context.time_remaining())
        note = access.begin(metadata)
        context.set_trailing_metadata((("x-request-id", note.id),))
        began, status, held, sent = time.perf_counter(), access.CLIENT_LEFT, 0, 0
        try:
            if name not in service.open_methods:
                note.token = self._admit(name, metadata, context.peer())
            held = len(request)
            self._budget.hold(held)
            message = await method(exchange)
            status, sent = 200, len(message)
            return message
        except asyncio.CancelledError:
            raise
        except Exception as exc:
            status, _ = statuses.of(exc)
            if status == 500 and not isinstance(exc, statuses.StatusError):
                log.exception("/%s/%s failed", service.name, name)
            raise
        finally:
            self._budget.used -= held
            self._book.enter(
                access.Entry(
                    protocol=service.protocol,
                    client=context.peer(),
                    method="POST",
                    path=f"/{service.name}/{name}",
                    status=status,
                    seconds=time.perf_counter() - began,
                    size=len(request),
                    sent=sent,
                    model=exchange.model_name,
                    note=note,
                )
            )

    def _admit(self, method: str, metadata: Mapping[bytes, bytes], peer: str) -> str | None:
        return self._guard.admit(address(peer), metadata.get(b"authorization", b""), authority.needed_for_rpc(method))

    async def _abort(self, context: Any, exc: Exception) -> None:
        status, retry_after_s = statuses.of(exc)
        code = self._grpc.StatusCode[_CODES.get(status, "INTERNAL")]
        trailing: tuple[tuple[str, str], ...] = tuple(context.trailing_metadata() or ())
        if retry_after_s is not None:
            seconds = requests.retry_after(retry_after_s)
            # The second is what gRPC's own retry policies obey.
            trailing += (("retry-after", str(seconds)), ("grpc-retry-pushback-ms", str(1000 * seconds)))
        await context.abort(code, _text(exc, status), trailing)


def address(peer: str) -> str:
    """As HTTP has it: of ``ipv4:127.0.0.1:4711`` or ``ipv6:%5B::1%5D:4711`` the middle."""
    return unquote(peer.partition(":")[2].rpartition(":")[0]).strip("[]") or peer


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _text(exc: Exception, status: int) -> str:
    """Statuses travel as UTF-8 in headers: no lone surrogates, and no more than a header holds."""
    text = str(exc) if isinstance(exc, statuses.StatusError) else statuses.told(exc, status)
    return text.encode("utf-8", errors="replace").decode()[:1500]


def free(host: str, port: int) -> None:
    """Return if the port can be had; gRPC itself says too late and too little.

    Raises:
        InvalidInputError: it cannot.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as exc:
        fix = f"cannot listen there ({exc.strerror}); choose another --grpc-port"
        raise errors.InvalidInputError("grpc_port", f"{host}:{port}", fix) from exc
