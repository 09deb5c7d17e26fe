"""Frames between the gateway and a worker: two lengths, a JSON header, raw bytes.

::

    ┌────────────┬────────────┬────────┬──────┐
    │ u32 header │ u32 body   │ header │ body │      big-endian
    └────────────┴────────────┴────────┴──────┘
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

_LENGTHS = struct.Struct(">II")
MAX_BYTES = 2**31

Header = dict[str, Any]


def pack(header: Header, bodies: Sequence[bytes] = ()) -> bytes:
    """One frame."""
    head = json.dumps(header, separators=(",", ":")).encode()
    return b"".join((_LENGTHS.pack(len(head), sum(map(len, bodies))), head, *bodies))


def read(stream: IO[bytes]) -> tuple[Header, bytes] | None:
    """The next frame of a blocking stream; None at its end."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    head, body = _LENGTHS.unpack(lengths)
    content = stream.read(head + body)
    if len(content) < head + body:
        return None
    return json.loads(content[:head]), content[head:]


class Splitter:
    """Cuts a stream of received bytes into frames."""

    def __init__(self, on_frame: Callable[[Header, bytes], None]) -> None:
        self._buffer = bytearray()
        self._on_frame = on_frame

    def feed(self, data: bytes) -> None:
        """Add received bytes; calls back for each frame that is now complete."""
        self._buffer += data
        while len(self._buffer) >= _LENGTHS.size:
            head, body = _LENGTHS.unpack_from(self._buffer)
            end = _LENGTHS.size + head + body
            if len(self._buffer) < end:
                return
            content = bytes(self._buffer[_LENGTHS.size : end])
            del self._buffer[:end]
            self._on_frame(json.loads(content[:head]), content[head:])


def cut(body: bytes, lengths: Sequence[int]) -> Iterator[bytes]:
    """The parts of a body."""
    start = 0
    for length in lengths:
        yield body[start : start + length]
        start += length
