"""The gateway's side of model workers: starting the processes and talking to them over a Unix socket.

Workers connect back to one abstract socket (no file to leave behind) and prove by user id and by a secret
from their environment that they are the process that was started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, cast

import psutil

from airflow_mlscale import errors
from airflow_mlscale.roma import model, ports
from airflow_mlscale.roma.adapters import frames
from airflow_mlscale.runtime import processes

log = logging.getLogger(__name__)

ADDRESS_VARIABLE = "MLSCALE_ROMA_SOCKET"
SECRET_VARIABLE = "MLSCALE_ROMA_WORKER"  # noqa: S105 (the variable's name)


class ProcessLauncher:
    """Starts worker processes that end with this one."""

    def __init__(self, log_dir: Path, *, start_timeout_s: float = 60.0, grace_s: float = 15.0) -> None:
        self._log_dir = log_dir
        self._start_timeout_s = start_timeout_s
        self._grace_s = grace_s
        self._address = f"\0mlscale-roma-{secrets.token_hex(16)}"
        self._expected: dict[str, asyncio.Future[tuple[Connection, int]]] = {}
        self._server: asyncio.AbstractServer | None = None

    async def open(self) -> None:
        """Listen for workers."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Connection(self._greeted), self._address)

    async def close(self) -> None:
        """Stop listening; workers that are connected stay."""
        if self._server:
            self._server.close()

    async def launch(self, name: str, entry_files: Sequence[Path]) -> ProcessWorker:
        """Start one worker and wait for its first word; see `ports.LauncherPort`."""
        # Its place is the CPU: what GPUs there are belong to their executors.
        started = await self.start("worker", name, entry_files, {"CUDA_VISIBLE_DEVICES": "-1"})
        return ProcessWorker(*started)

    async def start(
        self, module: str, name: str, entry_files: Sequence[Path], environment: Mapping[str, str]
    ) -> tuple[processes.Child, Connection, int, Path]:
        """Start a process that runs one of this room's modules and greets.

        Args:
            module: the module.
            name: of its log.
            entry_files: into which it first writes its process id.
            environment: variables on top of this process's own.

        Raises:
            WorkerLostError: it ended, or said nothing in time.
        """
        secret = secrets.token_hex(16)
        greeted = self._expected[secret] = asyncio.get_running_loop().create_future()
        log_path = self._log_dir / f"{name}.log"
        command = [sys.executable, "-m", f"airflow_mlscale.roma.adapters.{module}", *map(str, entry_files)]
        env = {
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **os.environ,
            **environment,
            ADDRESS_VARIABLE: self._address[1:],
            SECRET_VARIABLE: secret,
        }
        # The grace is the daemon's own time to drain: told to end with it, a worker goes on until it is let go.
        spawning = asyncio.ensure_future(
            asyncio.to_thread(processes.spawn, name, command, env=env, log_path=log_path, grace_s=self._grace_s)
        )
        try:
            child = await asyncio.shield(spawning)
            with exit_of(child) as ended:
                await asyncio.wait({greeted, ended}, timeout=self._start_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not greeted.done():
                raise ports.WorkerLostError(f"the worker said nothing, see {log_path}")
            return child, *greeted.result(), log_path
        except BaseException:
            await asyncio.wait([spawning])  # a cancelled caller's process comes all the same
            if not spawning.exception():
                await asyncio.to_thread(spawning.result().end)
            raise
        finally:
            self._expected.pop(secret, None)

    def _greeted(self, connection: Connection, header: frames.Header) -> None:
        greeted = self._expected.pop(str(header.get("secret")), None)
        if greeted is None or greeted.done():
            connection.close()
        else:
            greeted.set_result((connection, int(header["pid"])))


class Connection(asyncio.Protocol):
    """One worker's end of the socket."""

    def __init__(self, on_greeting: Callable[[Connection, frames.Header], None]) -> None:
        self.on_frame: Callable[[frames.Header, bytes], None] = lambda header, body: on_greeting(self, header)
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._splitter = frames.Splitter(lambda header, body: self.on_frame(header, body))
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        peer: socket.socket = transport.get_extra_info("socket")
        credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] != os.getuid():
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._splitter.feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def send(self, header: frames.Header, bodies: Sequence[bytes] = ()) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.write(frames.pack(header, bodies))

    def close(self) -> None:
        if self._transport:
            self._transport.close()


class ProcessWorker:
    """A `ports.WorkerPort` over a process and its connection."""

    def __init__(self, child: processes.Child, connection: Connection, pid: int, log_path: Path) -> None:
        loop = asyncio.get_running_loop()
        self.pid = pid
        self._process = psutil.Process(pid)
        self.lost: asyncio.Future[str] = loop.create_future()
        self._child = child
        self._connection = connection
        self._log_path = log_path
        self._numbers = count()
        self._executing: dict[int, asyncio.Future[ports.Served]] = {}
        self._loading: asyncio.Future[ports.Loaded] | None = None
        self._progress: Callable[[model.State], None] = lambda state: None
        connection.on_frame = self._receive
        connection.closed.add_done_callback(lambda _: self._closed())

    async def load(self, order: ports.LoadOrder, progress: Callable[[model.State], None]) -> ports.Loaded:
        self._loading = asyncio.get_running_loop().create_future()
        self._progress = progress
        if self.lost.done():
            raise ports.WorkerLostError(self.lost.result())
        self._connection.send(
            {
                "kind": "load",
                "name": order.name,
                "version": order.version,
                "artefact": order.artefact,
                "threads": order.threads,
                "max_batch": order.max_batch,
                "objective_s": order.objective_s,
                "runtime": asdict(order.runtime),
            }
        )
        return await self._loading

    def infer(self, calls: Sequence[model.Call]) -> asyncio.Future[ports.Served]:
        future: asyncio.Future[ports.Served] = asyncio.get_running_loop().create_future()
        if self.lost.done():
            future.set_exception(ports.WorkerLostError(self.lost.result()))
            return future
        number = next(self._numbers)
        self._executing[number] = future
        items = [[call.protocol, len(call.body), call.header_length] for call in calls]
        self._connection.send({"kind": "infer", "id": number, "calls": items}, [call.body for call in calls])
        return future

    def memory_bytes(self) -> int:
        try:
            return int(self._process.memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    async def rest(self, timeout_s: float) -> None:
        if self._executing:
            await asyncio.wait(list(self._executing.values()), timeout=timeout_s)

    async def end(self) -> None:
        self._connection.close()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.kill()  # it has nothing to put in order
        await asyncio.to_thread(self._child.end)

    def _receive(self, header: frames.Header, body: bytes) -> None:
        match header["kind"]:
            case "served":
                future = self._executing.pop(header["id"])
                if not future.done():
                    future.set_result(served(header, body))
            case "state":
                self._progress(model.State(header["state"]))
            case "loaded" if self._loading and not self._loading.done():
                self._loading.set_result(_loaded(header))
            case "failed" if self._loading and not self._loading.done():
                why = errors.ModelArtefactError(header["field"], header["value"], header["fix"])
                self._loading.set_exception(why)

    def _closed(self) -> None:
        """The process is going or gone. ``lost`` comes first: who waits for an answer asks what happened."""
        if self.lost.done():
            return
        code = self._child.poll()
        why = (
            f"worker {self.pid} ended" + (f" with code {code}" if code is not None else "") + f", see {self._log_path}"
        )
        self.lost.set_result(why)
        waiting: list[asyncio.Future[Any]] = [*self._executing.values()]
        self._executing.clear()
        if self._loading and not self._loading.done():
            waiting.append(self._loading)
        for future in waiting:
            if not future.done():
                future.set_exception(ports.WorkerLostError(why))


def described(answers: Sequence[model.Answer]) -> list[list[Any]]:
    """Answers in a frame's header; their bodies follow it."""
    return [[answer.status, len(answer.body), answer.header_length, answer.nan] for answer in answers]


def served(header: frames.Header, body: bytes) -> ports.Served:
    """A worker's answers."""
    answers = header["answers"]
    parts = frames.cut(body, [length for _, length, _, _ in answers])
    return ports.Served(
        answers=tuple(
            model.Answer(status, part, header_length, nan=nan)
            for (status, _, header_length, nan), part in zip(answers, parts, strict=True)
        ),
        service_s=header["service_s"],
        cpu_s=header["cpu_s"],
    )


def _loaded(header: frames.Header) -> ports.Loaded:
    return ports.Loaded(
        signatures=header["signatures"],
        default_signature=header["default_signature"],
        batchable=header["batchable"],
        service_s={int(size): seconds for size, seconds in header["service_s"].items()},
        note=header["note"],
        runtime=header["runtime"],
    )


@contextlib.contextmanager
def exit_of(child: processes.Child) -> Iterator[asyncio.Future[None]]:
    """A future that is set when the process has ended."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    descriptor = os.pidfd_open(child.pid)
    loop.add_reader(descriptor, lambda: None if ended.done() else ended.set_result(None))
    try:
        yield ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
