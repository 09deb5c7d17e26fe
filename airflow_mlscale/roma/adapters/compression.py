"""gzip and deflate, both ways, within bounds."""

from __future__ import annotations

import asyncio
import zlib

from airflow_mlscale import errors
from airflow_mlscale.roma.adapters import statuses

ASIDE_BYTES = 64 * 2**10
"""More than this is (de)compressed in a thread, so that nobody else's request waits for it."""

LEVEL = 1
"""The fastest: tensors gain little from more."""

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


async def unpack(body: bytes, encoding: bytes, *, limit: int) -> bytes:
    """A request body as its sender meant it; ``encoding`` is the Content-Encoding header.

    Raises:
        StatusError: the encoding is unknown (415), or the content larger than ``limit`` bytes (413).
        InvalidInputError: it is not what it says.
    """
    name = encoding.decode("latin-1").strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _WINDOWS:
        raise statuses.StatusError(415, f"content-encoding {name[:40]!r} is not served; use gzip, deflate or identity")
    if len(body) > ASIDE_BYTES:
        return await asyncio.to_thread(_unpacked, body, name, limit)
    return _unpacked(body, name, limit)


def preferred(accepted: bytes, *, binary: bool) -> str | None:
    """The encoding of an answer by the Accept-Encoding header: gzip or deflate, or None for neither.

    Binary tensors are only compressed for clients that ask for exactly one encoding: most HTTP libraries name
    all they know with each request, and compressing tensors for them would cost more than it saves.
    """
    if not accepted or (binary and b"," in accepted):
        return None
    weights = {}
    for part in accepted.decode("latin-1").lower().split(","):
        name, _, parameter = part.partition(";")
        weights[name.strip()] = _weight(parameter.strip())
    best = max(("gzip", "deflate"), key=lambda name: weights.get(name, 0.0))
    return best if weights.get(best, 0.0) > 0 else None


async def pack(body: bytes, encoding: str) -> bytes:
    """An answer's body in an encoding that `preferred` gave."""
    if len(body) > ASIDE_BYTES:
        return await asyncio.to_thread(_packed, body, encoding)
    return _packed(body, encoding)


def _unpacked(body: bytes, encoding: str, limit: int) -> bytes:
    stream = zlib.decompressobj(_WINDOWS[encoding])
    try:
        content = stream.decompress(body, limit + 1)
    except zlib.error as exc:
        raise errors.InvalidInputError("body", f"{len(body)} bytes", f"it is not {encoding}: {exc}") from exc
    if len(content) > limit:
        raise statuses.StatusError(413, f"the body is larger than {limit} bytes; send smaller batches")
    if not stream.eof or stream.unused_data:
        raise errors.InvalidInputError("body", f"{len(body)} bytes", f"it is not one whole {encoding} stream")
    return content


def _packed(body: bytes, encoding: str) -> bytes:
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, _WINDOWS[encoding])
    return stream.compress(body) + stream.flush()


def _weight(parameter: str) -> float:
    if not parameter.startswith("q="):
        return 1.0
    try:
        return float(parameter[2:])
    except ValueError:
        return 0.0
