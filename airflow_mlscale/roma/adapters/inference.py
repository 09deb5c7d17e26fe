"""From a request to a place in a model's line and back: what all inference protocols share."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import deployment, fleet, measurement, model
from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.roma.adapters import access, http

DEADLINE_HEADER = b"x-mlscale-deadline-ms"
"""Milliseconds after which the client has no use for the answer."""

PRIORITY_HEADER = b"x-mlscale-priority"
"""Among the requests of one model a higher one goes first."""

PROXY_HEADER = b"x-envoy-expected-rq-timeout-ms"
"""Milliseconds after which a proxy before us (Envoy, Istio) stops waiting."""

HEADER_LENGTH = b"inference-header-content-length"
"""Open Inference Protocol: bytes of JSON before the binary tensors."""

MAX_DEADLINE_MS = 3_600_000

KEY_HEADER = b"x-mlscale-route-key"
"""While a canary is tried, requests with the same key go to the same version."""

STABLE = "stable"
"""The label of the version that serves."""

CANARY = "canary"
"""The label of the version that is tried beside it."""

_TIMEOUT_WITHIN = 64 * 2**10
"""The JSON of longer requests is not searched for a timeout: the gateway must not decode tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Which model is asked."""

    name: str
    version: str | None = None
    label: str | None = None

    @property
    def free(self) -> bool:
        """Whether any version may answer."""
        return self.version is None and self.label is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a client says of its request; times in seconds from now."""

    use_s: float | None = None
    """After which the client has no use for the answer, as it said itself: the request's own deadline."""
    wait_s: float | None = None
    """After which something between the model and the client stops waiting. It is often set once for all calls
    and far beyond any objective, so it only counts where it ends before the request would be given up anyway."""
    priority: int = 0
    """Among the model's own requests; a higher one goes first."""
    key: str | None = None
    """Requests with the same one go to the same version."""

    def deadline_s(self, give_up_s: float) -> float | None:
        """The one deadline that a model's line knows; None for the model's own objective."""
        if self.use_s is not None:
            return self.use_s if self.wait_s is None else min(self.use_s, self.wait_s)
        return self.wait_s if self.wait_s is not None and self.wait_s < give_up_s else None


def replica_of(models: fleet.Fleet, target: Target) -> replicas.Replica:
    """The replica that serves a target.

    Raises:
        UnknownModelError: there is no such model.
        UnknownVersionError: another version serves, or the label is unknown.
        NotReadyError: none serves now.
    """
    if target.label == CANARY:
        if (trial := models[target.name].trial) is None:
            fix = f"no version of model {target.name!r} is tried now"
            raise deployment.UnknownVersionError("version_label", target.label, fix)
        return trial
    if target.label not in (None, STABLE):
        fix = f"unknown label; the serving version is labelled {STABLE!r}, one that is tried {CANARY!r}"
        raise deployment.UnknownVersionError("version_label", target.label, fix)
    return models[target.name].replica(target.version)


async def infer(models: fleet.Fleet, exchange: http.Exchange, *, protocol: str, target: Target) -> http.Reply:
    """Take a request over HTTP through its model."""
    exchange.model_name = target.name
    replica_of(models, target)  # what cannot be served is refused before its body is read
    wishes = wishes_of(exchange.headers)
    body = await exchange.body()
    call = model.Call(protocol, body, _header_length(exchange, len(body)) if protocol == "v2" else None)
    if protocol == "v2":
        wishes = _with_timeout(wishes, call)
    version, answer = await _through(models, target, call, wishes, exchange.unless_gone)
    if answer.status == 200 and answer.header_length is None:
        models.recent.remember(target.name, access.request_id(), version, answer.body)
    return _reply(answer)


async def answer(models: fleet.Fleet, target: Target, call: model.Call, wishes: Wishes) -> model.Answer:
    """Take a call that has arrived whole through its model; who is cancelled here leaves the line."""
    _, given = await _through(models, target, call, wishes, _awaited)
    return given


Wait = Callable[["asyncio.Future[model.Answer]"], Awaitable[model.Answer]]


async def _through(
    models: fleet.Fleet, target: Target, call: model.Call, wishes: Wishes, wait: Wait
) -> tuple[str, model.Answer]:
    """Through the version whose turn it is; what a canary or a replaced version fails, the serving one answers."""
    if not target.free:
        return await _ask(replica_of(models, target), call, wishes, wait)
    one, began = models[target.name], time.monotonic()
    replica = one.route(wishes.key)
    mistaken = False
    try:
        version, given = await _ask(replica, call, wishes, wait)
        if given.status < 400 or not (again := _again(one, replica, wishes, began)):
            return version, given
        mistaken = given.status < 500
    except (replicas.RefusedError, errors.InvalidInputError) as exc:
        if not (again := _again(one, replica, wishes, began)):
            raise
        mistaken = isinstance(exc, errors.InvalidInputError)
    version, given = await _ask(one.replica(), call, again, wait)
    if mistaken and given.status < 400:  # what it takes for the client's mistake is its own
        replica.meter.record(time.monotonic(), measurement.Outcome.FAILED, replica.meter.lost_s, "refused")
    return version, given


def _again(one: deployment.Deployment, asked: replicas.Replica, wishes: Wishes, began: float) -> Wishes | None:
    """What is left of the wishes for the version that serves; None if that was asked, or if it is too late."""
    if one.active is None or one.active is asked:
        return None
    if wishes.use_s is None:
        return wishes
    left_s = wishes.use_s - (time.monotonic() - began)
    return replace(wishes, use_s=left_s) if left_s > one.active.line.least_s() else None


async def _ask(replica: replicas.Replica, call: model.Call, wishes: Wishes, wait: Wait) -> tuple[str, model.Answer]:
    access.routed(replica.spec.version)
    request = replica.accept(call, wishes.deadline_s(replica.meter.lost_s), wishes.priority)
    access.accepted(request)
    try:
        return replica.spec.version, await wait(request.answer)
    finally:
        replica.forget(request)


async def _awaited(answer: asyncio.Future[model.Answer]) -> model.Answer:
    await asyncio.wait({answer})  # to await it alone would cancel it with us, unseen by the line
    return answer.result()


def wishes_of(headers: Mapping[bytes, bytes]) -> Wishes:
    """What the headers of a request say."""
    use_s = None
    if (given := headers.get(DEADLINE_HEADER)) is not None:
        shown = given.decode("latin-1")
        use_s = http.bounded("X-Mlscale-Deadline-Ms", shown, low=0.001, high=MAX_DEADLINE_MS) / 1000
    proxied = headers.get(PROXY_HEADER, b"")  # a proxy's slip is not the client's: what is no number is none
    wait_s = int(proxied) / 1000 if proxied.isdigit() and len(proxied) < 10 else 0.0
    key = headers.get(KEY_HEADER)
    return Wishes(
        use_s=use_s,
        wait_s=wait_s or None,
        priority=_priority(headers),
        key=None if key is None else key.decode("latin-1"),
    )


def timeout_s(parameters: Mapping[str, Any]) -> float | None:
    """The v2 parameter ``timeout``, in microseconds; zero and absence stand for none."""
    given = parameters.get("timeout")
    if given is None or given == 0:
        return None
    if not model.is_number(given):
        raise errors.InvalidInputError("timeout", repr(given)[:60], "give microseconds")
    return http.bounded("timeout", given, low=1, high=MAX_DEADLINE_MS * 1000) / 1e6


def _priority(headers: Mapping[bytes, bytes]) -> int:
    given = headers.get(PRIORITY_HEADER)
    if given is None:
        return 0
    try:
        return int(given[:10])
    except ValueError as exc:
        shown = given.decode("latin-1")[:40]
        raise errors.InvalidInputError("X-Mlscale-Priority", shown, "give an integer") from exc


def _with_timeout(wishes: Wishes, call: model.Call) -> Wishes:
    """The JSON body may hold a timeout; it is only parsed here if it does."""
    size = len(call.body) if call.header_length is None else call.header_length
    if wishes.use_s is not None or size > _TIMEOUT_WITHIN or call.body.find(b'"timeout"', 0, size) < 0:
        return wishes
    try:
        parameters = json.loads(call.body[:size]).get("parameters") or {}
        given = parameters.get("timeout")
    except (ValueError, AttributeError, RecursionError):  # the worker tells what is wrong with it
        return wishes
    return replace(wishes, use_s=timeout_s({"timeout": given}))


def _reply(answer: model.Answer) -> http.Reply:
    if answer.header_length is None:
        return http.Reply(answer.status, answer.body)
    length = str(answer.header_length).encode()
    return http.Reply(answer.status, answer.body, ((HEADER_LENGTH, length),), b"application/octet-stream")


def _header_length(exchange: http.Exchange, size: int) -> int | None:
    given = exchange.headers.get(HEADER_LENGTH)
    if given is None:
        return None
    if not given.isdigit() or len(given) > 10 or int(given) > size:
        fix = f"give the length of the JSON part, at most the body's {size} bytes"
        raise errors.InvalidInputError("Inference-Header-Content-Length", given.decode("latin-1")[:40], fix)
    return int(given)
