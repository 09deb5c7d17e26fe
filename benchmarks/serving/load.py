"""The source of load, in a process of its own: ``python -m benchmarks.serving.load PLAN RESULT``.

Open loop: each request is sent at its scheduled time, whatever became of those before, and its latency counts from
that time. Closed loop: so many clients ask as fast as they are answered. It says ``ready`` on standard output, waits
for a line with the time to begin (of the monotonic clock), and writes what happened to every request.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REAL_TIME = 1
"""Least real-time priority: the source must not wait behind the servers it measures, whatever their weights, as if it
were on a machine of its own; where that is permitted. It uses little."""
MOST_CONNECTIONS = 512
"""More requests than this at once wait for a connection, and their latency counts on."""
LOST, UNANSWERED = 0, -1
"""Statuses of a request whose connection broke, and of one that had no answer at the end."""


@dataclass(slots=True)
class Request:
    """One request, from its scheduled time to its answer."""

    target: int
    scheduled: float
    sent: float = 0.0
    ended: float = 0.0
    status: int = UNANSWERED
    done: asyncio.Future[None] | None = None


class Connection(asyncio.Protocol):
    """One connection that is kept, with at most one request under way."""

    def __init__(self, source: Source) -> None:
        import httptools

        self._source = source
        self._parsing = httptools.HttpResponseParser
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self.request: Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def ask(self, request: Request, message: bytes) -> None:
        self.request = request
        request.sent = time.monotonic()
        self._transport.write(message)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        status, keep = self._parser.get_status_code(), self._parser.should_keep_alive()
        if status < 200:  # more is to come
            return
        request, self.request = self.request, None
        self._parser = self._parsing(self)
        if not keep:
            self._transport.close()
        if request:
            self._source.ended(request, status, self if keep else None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._source.lost(self)
        if self.request:
            self._source.ended(self.request, LOST, None)


@dataclass
class Source:
    """Connections to one server and the requests that went over them."""

    address: tuple[str, int]
    messages: list[bytes]
    """Whole HTTP requests, by target."""
    requests: list[Request] = field(default_factory=list)
    open: int = 0
    """Requests without an answer."""
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    """Set with every answer."""
    _idle: list[Connection] = field(default_factory=list)
    _waiting: deque[Request] = field(default_factory=deque)
    _count: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def ask(self, request: Request) -> None:
        """Send it as soon as there is a connection."""
        self.requests.append(request)
        self.open += 1
        if self._idle:
            self._idle.pop().ask(request, self.messages[request.target])
            return
        self._waiting.append(request)
        if self._count < MOST_CONNECTIONS:
            self._count += 1
            task = asyncio.get_running_loop().create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def ended(self, request: Request, status: int, connection: Connection | None) -> None:
        request.status, request.ended = status, time.monotonic()
        self.open -= 1
        self.answered.set()
        if request.done and not request.done.done():
            request.done.set_result(None)
        if connection and self._waiting:
            following = self._waiting.popleft()
            connection.ask(following, self.messages[following.target])
        elif connection:
            self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self._count -= 1
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    async def _connect(self) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(self), *self.address)
        except OSError:
            self._count -= 1
            if self._waiting:
                self.ended(self._waiting.popleft(), LOST, None)
            return
        if self._waiting:
            following = self._waiting.popleft()
            connection.ask(following, self.messages[following.target])
        else:
            self._idle.append(connection)


async def open_loop(source: Source, arrivals: list[list[float]], begin: float, patience_s: float) -> None:
    """Send every ``[seconds, target]`` at its time; wait for the last answers."""
    for at, target in arrivals:
        due = begin + at
        left = due - time.monotonic()
        if left > 0:
            await asyncio.sleep(left)
        source.ask(Request(target=int(target), scheduled=due))
    end = time.monotonic() + patience_s
    while source.open and (left := end - time.monotonic()) > 0:
        source.answered.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(source.answered.wait(), left)


async def closed_loop(source: Source, clients: int, seconds: float, weights: list[float], begin: float) -> None:
    """So many clients, each with one request under way, of targets drawn by weight."""
    await asyncio.sleep(begin - time.monotonic())
    targets = range(len(weights))

    async def client(number: int) -> None:
        rng = random.Random(number)
        while (now := time.monotonic()) < begin + seconds:
            (target,) = rng.choices(targets, weights)
            request = Request(target=target, scheduled=now, done=asyncio.get_running_loop().create_future())
            source.ask(request)
            assert request.done is not None
            await request.done
            if request.status == LOST:
                await asyncio.sleep(0.01)

    await asyncio.wait([asyncio.create_task(client(number)) for number in range(clients)], timeout=seconds + 10)


async def run(plan: dict[str, Any]) -> dict[str, Any]:
    """Carry out a plan; returns the report."""
    messages = [_message(plan, target) for target in plan["targets"]]
    source = Source((plan["host"], plan["port"]), messages)
    print("ready", flush=True)
    begin = float(await asyncio.to_thread(sys.stdin.readline))
    spent_s = time.process_time()
    if "arrivals" in plan:
        await open_loop(source, plan["arrivals"], begin, plan["patience_s"])
    else:
        await closed_loop(source, plan["clients"], plan["seconds"], plan["weights"], begin)
    requests = source.requests
    return {
        "cpu_s": time.process_time() - spent_s,
        "wall_s": time.monotonic() - begin,
        "real_time": os.sched_getscheduler(0) == os.SCHED_RR,
        "targets": [one.target for one in requests],
        "at_s": [round(one.scheduled - begin, 6) for one in requests],
        "status": [one.status for one in requests],
        "late_s": [round(one.sent - one.scheduled, 6) if one.sent else None for one in requests],
        "latency_s": [round(one.ended - one.scheduled, 6) if one.ended else None for one in requests],
    }


def _message(plan: dict[str, Any], target: dict[str, Any]) -> bytes:
    body = Path(target["body"]).read_bytes()
    headers = {"Host": f"{plan['host']}:{plan['port']}", "Content-Length": str(len(body)), **target["headers"]}
    lines = [f"POST {target['path']} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def main() -> None:
    import uvloop

    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(REAL_TIME))
    plan, result = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    result.write_text(json.dumps(uvloop.run(run(plan))))


if __name__ == "__main__":
    main()
