"""Requests that are wrong in every way that came to mind, made up from a seed."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

GOOD = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
TFS = {"instances": [[1, 2, 3]]}
TOKENS = [
    b"\x00",
    b"\xff",
    b"\r\n",
    b":",
    b"{",
    b"]",
    b'"',
    b"-1",
    b"1e999",
    b"null",
    b"NaN",
    b"\xed\xa0\x80",
    b"[" * 300,
]


@dataclass(frozen=True)
class Sent:
    """Bytes for one connection."""

    data: bytes
    whole: bool
    """Whether the other end knows where it ends, and so must answer; else we hang up."""


@dataclass
class Report:
    """What came back."""

    statuses: Counter[int] = field(default_factory=Counter)
    unanswered: list[bytes] = field(default_factory=list)
    """Whole requests without an answer."""


def made(seed: int, name: str) -> Iterator[Sent]:
    """Without end. Nothing among it would deploy, unload or remove ``name``."""
    chance = random.Random(seed)
    kinds: list[Callable[[random.Random, str], Sent]] = [_head, _cut, _body, _tensors, _path, _packed, _chunks, _own]
    while True:
        yield chance.choice(kinds)(chance, name)


async def send(port: int, requests: Iterator[Sent], count: int, *, side_by_side: int = 16) -> Report:
    """Each over a connection of its own; returns when all are answered or closed."""
    report = Report()

    async def some(number: int) -> None:
        for _ in range(number):
            sent = next(requests)
            answer = await asyncio.wait_for(exchange(port, sent), 60)
            if answer.startswith(b"HTTP/1.1 "):
                report.statuses[int(answer[9:12])] += 1
            elif sent.whole:
                report.unanswered.append(sent.data[:500])

    await asyncio.gather(*(some(count // side_by_side) for _ in range(side_by_side)))
    return report


async def exchange(port: int, sent: Sent) -> bytes:
    """What comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        writer.write(sent.data)
        if not sent.whole:
            writer.write_eof()
        answer = await reader.read(4096)
        while await reader.read(65536):
            continue
    except ConnectionError:
        pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return answer


def junk(chance: random.Random, most: int = 200) -> bytes:
    return chance.randbytes(chance.randrange(1, most))


def frames(chance: random.Random) -> Sent:
    """For an HTTP/2 port: its preface, then frames that are none."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    if chance.random() < 0.3:
        return Sent(junk(chance), False)
    settings = b"\0\0\0\4\0\0\0\0\0"
    made = b"".join(_frame(chance) for _ in range(chance.randrange(1, 6)))
    return Sent(preface + settings * (chance.random() < 0.8) + made, False)


def _frame(chance: random.Random) -> bytes:
    payload = junk(chance, 60)
    size = len(payload) if chance.random() < 0.8 else chance.randrange(2**24)
    kind, flags, stream = chance.randrange(12), chance.randrange(256), chance.randrange(8)
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _request(path: str, body: bytes, *headers: str, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1", "replace") + body


def _mutated(chance: random.Random, body: bytes) -> bytes:
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(body) + 1)
        body = (
            body[:at] + chance.choice([b"", junk(chance, 6), chance.choice(TOKENS)]) + body[at + chance.randrange(4) :]
        )
    return body


def _head(chance: random.Random, name: str) -> Sent:
    lines = [
        chance.choice(
            ["GET /v2 HTTP/1.1", "GET /v2 HTTP/9.9", "get /v2", "\0", "POST  /v2 HTTP/1.1", "GET * HTTP/1.1"]
        ),
        chance.choice(["host: localhost", "host", "host: evil.example", ": x", "host : a", "a\0b: c", " folded"]),
        chance.choice(["content-length: -1", "content-length: 1e3", "content-length: 5\r\ncontent-length: 6", "x: y"]),
        chance.choice(["transfer-encoding: chunked, chunked", "x: " + "y" * chance.choice([10, 40_000]), "z:\x80"]),
    ]
    return Sent(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), False)


def _cut(chance: random.Random, name: str) -> Sent:
    whole = _request(f"/v2/models/{name}/infer", json.dumps(GOOD).encode())
    return Sent(whole[: chance.randrange(1, len(whole))], False)


def _body(chance: random.Random, name: str) -> Sent:
    path, document = chance.choice([(f"/v2/models/{name}/infer", GOOD), (f"/v1/models/{name}:predict", TFS)])
    return Sent(_request(path, _mutated(chance, json.dumps(document).encode())), True)


def _tensors(chance: random.Random, name: str) -> Sent:
    size = chance.choice([12, 11, 0, -4, 2**31, 2**63])
    entry = {"name": "x", "shape": [chance.choice([1, 2, -1, 2**40]), 3], "datatype": chance.choice(["FP32", "BYTES"])}
    head = json.dumps({"inputs": [{**entry, "parameters": {"binary_data_size": size}}]}).encode()
    length = chance.choice([str(len(head)), str(len(head) - 1), "0", "99999", "-1", "1e2", "", "\xb2"])
    body = head + junk(chance, 20)
    return Sent(_request(f"/v2/models/{name}/infer", body, f"inference-header-content-length: {length}"), True)


def _path(chance: random.Random, name: str) -> Sent:
    parts = [
        "v2",
        "v1",
        "models",
        "nobody",
        "..",
        "%2e%2e",
        "infer",
        "versions",
        "mlscale",
        "journal",
        "dashboard",
        "",
        "%00",
    ]
    path = "/" + "/".join(chance.choices(parts, k=chance.randrange(1, 7)))
    query = chance.choice(["", "?since=x", "?window_s=nan", "?" + "a" * 500, "?%ff=%zz", "?since=-1&since=1e999"])
    method = chance.choice(["GET", "POST", "PUT", "PATCH", "OPTIONS", "TRACE"])
    return Sent(_request(path + query, _mutated(chance, b'{"artefact": "/nowhere/at/all"}'), method=method), True)


def _packed(chance: random.Random, name: str) -> Sent:
    packed = gzip.compress(json.dumps(GOOD).encode())
    body = chance.choice([junk(chance), packed[:-4], _mutated(chance, packed), gzip.compress(bytes(2**21))])
    encoding = chance.choice(["gzip", "deflate", "br", "gzip, gzip", ""])
    return Sent(_request(f"/v2/models/{name}/infer", body, f"content-encoding: {encoding}"), True)


def _chunks(chance: random.Random, name: str) -> Sent:
    head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    chunks = b"".join(
        chance.choice(
            [b'5\r\n{"a":\r\n', b"zz\r\n", b"-1\r\n", b"ffffffffffffffff\r\n", junk(chance, 30), b"0\r\n\r\n"]
        )
        for _ in range(chance.randrange(1, 5))
    )
    return Sent(head + chunks, False)


def _own(chance: random.Random, name: str) -> Sent:
    header = chance.choice(
        ["x-mlscale-deadline-ms", "x-mlscale-priority", "x-mlscale-route-key", "x-request-id", "traceparent",
         "x-envoy-expected-rq-timeout-ms", "authorization", "accept-encoding"]
    )  # fmt: skip
    value = chance.choice(
        ["", "-1", "nan", "1e999", "0", "9" * 5000, "\xe9\xff", "Bearer", "00-" + "g" * 32, "gzip;q=x"]
    )
    return Sent(_request(f"/v2/models/{name}/infer", json.dumps(GOOD).encode(), f"{header}: {value}"), True)
