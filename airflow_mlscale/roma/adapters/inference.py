"""From an HTTP request to a place in a model's line and back: what both inference protocols share."""

from __future__ import annotations

from airflow_mlscale import errors
from airflow_mlscale.roma import fleet, model
from airflow_mlscale.roma.adapters import http

DEADLINE_HEADER = b"x-mlscale-deadline-ms"
"""Milliseconds after which the client has no use for the answer."""

HEADER_LENGTH = b"inference-header-content-length"
"""Open Inference Protocol: bytes of JSON before the binary tensors."""

MAX_DEADLINE_MS = 3_600_000


async def infer(
    models: fleet.Fleet, exchange: http.Exchange, *, protocol: str, name: str, version: str | None
) -> http.Reply:
    """Take a request through its model."""
    exchange.model_name = name
    replica = models[name].replica(version)
    deadline_s = _deadline_s(exchange)
    body = await exchange.body()
    call = model.Call(protocol, body, _header_length(exchange, len(body)) if protocol == "v2" else None)
    if replica is not models[name].active:  # a new version took over while the body arrived
        replica = models[name].replica(version)
    request = replica.accept(call, deadline_s)
    try:
        answer = await exchange.unless_gone(request.answer)
    finally:
        replica.forget(request)
    return _reply(answer)


def _reply(answer: model.Answer) -> http.Reply:
    if answer.header_length is None:
        return http.Reply(answer.status, answer.body)
    length = str(answer.header_length).encode()
    return http.Reply(answer.status, answer.body, ((HEADER_LENGTH, length),), b"application/octet-stream")


def _deadline_s(exchange: http.Exchange) -> float | None:
    given = exchange.headers.get(DEADLINE_HEADER)
    if given is None:
        return None
    text = given.decode("latin-1")
    return http.bounded("X-Mlscale-Deadline-Ms", text, low=0.001, high=MAX_DEADLINE_MS) / 1000


def _header_length(exchange: http.Exchange, size: int) -> int | None:
    given = exchange.headers.get(HEADER_LENGTH)
    if given is None:
        return None
    if not given.isdigit() or int(given) > size:
        fix = f"give the length of the JSON part, at most the body's {size} bytes"
        raise errors.InvalidInputError("Inference-Header-Content-Length", given.decode("latin-1"), fix)
    return int(given)
