"""From one daemon to the next: the successor loads every model beside the running one, then takes its sockets.

The running daemon waits at an abstract Unix socket of its state directory for one of the same user. It sends its
listening socket and what it serves, and takes no more changes. Once the successor says that it is ready, the state
directory is the successor's; the old daemon takes no new connections, finishes what it has, and ends. A successor
that goes away before leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from airflow_mlscale import errors
from airflow_mlscale.roma import fleet, model, ports

log = logging.getLogger(__name__)

_READY, _YOURS = b"ready\n", b"yours\n"
_ANSWER_S = 30.0
"""How long one daemon waits for a word of the other that needs no work."""


class StateLock:
    """One daemon for each state directory; the lock goes with the process, however it ends."""

    def __init__(self, state_dir: Path, name: str = "lock") -> None:
        self._state_dir = state_dir
        self._name = name
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Take it.

        Raises:
            InvalidInputError: another daemon has it.
        """
        self._state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (self._state_dir / self._name).open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            file.close()
            fix = "another daemon uses this directory; stop it or give another --state"
            raise errors.InvalidInputError("state", str(self._state_dir), fix) from exc
        self._file = file

    def release(self) -> None:
        """Let go of it; nothing happens if it is not held."""
        if self._file:
            self._file.close()
            self._file = None


class HeldState:
    """A `ports.StatePort` whose writes wait until the state is ours."""

    def __init__(self, store: ports.StatePort) -> None:
        self._store = store
        self._waiting: dict[str, model.Desired | None] | None = {}
        """The last write by model, None being a removal; None once nothing waits any more."""

    def load(self) -> list[model.Desired]:
        return self._store.load()

    def save(self, desired: model.Desired) -> None:
        if self._waiting is None:
            self._store.save(desired)
        else:
            self._waiting[desired.name] = desired

    def remove(self, name: str) -> None:
        if self._waiting is None:
            self._store.remove(name)
        else:
            self._waiting[name] = None

    def release(self) -> None:
        """Write what waits, and everything else at once from now on."""
        waiting, self._waiting = self._waiting or {}, None
        for name, desired in waiting.items():
            if desired is None:
                self._store.remove(name)
            else:
                self._store.save(desired)


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a running daemon hands over."""

    connection: socket.socket
    listener: socket.socket
    serving: Mapping[str, str]
    """Version by model."""
    generation: int
    """From which on groups of workers may be numbered."""

    async def accept(self, models: fleet.Fleet, lock: StateLock, held: HeldState, *, timeout_s: float) -> None:
        """Load everything that is served, and take over.

        Raises:
            RunFailedError: a model does not come up; the running daemon goes on.
            UnreachableError: the running daemon went away.
        """
        try:
            async with asyncio.timeout(timeout_s):
                for one in models:
                    await one.wait_settled(timeout_s)
        except TimeoutError:
            log.warning("not everything was loaded after %.0f s", timeout_s)
        for name, version in self.serving.items():
            serves, reason = _serves(models, name)
            if serves != version:
                raise errors.RunFailedError(
                    f"version {version} of model {name!r} did not come up beside the running daemon, which goes on"
                    f"{f': {reason}' if reason else ''}"
                )
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self.connection, _READY)
            async with asyncio.timeout(_ANSWER_S):
                said = await loop.sock_recv(self.connection, len(_YOURS))
        except (OSError, TimeoutError):
            said = b""
        if said != _YOURS:
            raise errors.UnreachableError("the running ROMA", "its state directory", "it ended meanwhile; start anew")
        lock.take()
        held.release()
        log.info("taken over from the daemon that ran before")


def _serves(models: fleet.Fleet, name: str) -> tuple[str | None, str]:
    try:
        one = models[name]
    except fleet.UnknownModelError as exc:
        return None, str(exc)
    up = one.active and one.active.supervisor.state is model.State.READY
    return (one.active.spec.version if one.active and up else None), one.reason or one.desired.failure or ""


@contextlib.contextmanager
def offered(state_dir: Path) -> Iterator[Offer]:
    """What the daemon that runs on a state directory hands over.

    Raises:
        UnreachableError: none runs there, or it does not hand over.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with connection:
        connection.settimeout(_ANSWER_S)
        try:
            connection.connect(_address(state_dir))
            message, descriptors, _, _ = socket.recv_fds(connection, 2**20, 1)
            while message and not message.endswith(b"\n"):
                message += connection.recv(2**20)
        except OSError as exc:
            fix = f"no daemon hands over there ({exc}); start one with `mlscale roma serve`"
            raise errors.UnreachableError("ROMA", str(state_dir), fix) from exc
        if not descriptors:
            raise errors.UnreachableError("ROMA", str(state_dir), "it hands over to somebody else, or ends")
        with socket.socket(fileno=descriptors[0]) as listener:
            connection.setblocking(False)
            told = json.loads(message)
            yield Offer(
                connection=connection, listener=listener, serving=told["serving"], generation=told["generation"]
            )


class Door:
    """Where a successor of this daemon knocks."""

    def __init__(
        self,
        state_dir: Path,
        listener: socket.socket,
        models: fleet.Fleet,
        lock: StateLock,
        *,
        patience_s: float,
        leave: Callable[[], None],
    ) -> None:
        self._address = _address(state_dir)
        self._listener = listener
        self._models = models
        self._lock = lock
        self._patience_s = patience_s
        self._leave = leave

    async def run(self) -> None:
        """Wait for successors until one has taken over."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.setblocking(False)
            door.bind(self._address)
            door.listen(1)
            while True:
                successor, _ = await loop.sock_accept(door)
                with successor:
                    if await self._prepared(successor):
                        door.close()  # the successor waits for its own successors here
                        self._lock.release()
                        with contextlib.suppress(OSError):
                            await loop.sock_sendall(successor, _YOURS)
                        log.info("another daemon has taken over; this one finishes what it has")
                        return self._leave()

    async def _prepared(self, successor: socket.socket) -> bool:
        """Whether a successor is ready; changes are refused meanwhile."""
        credentials = successor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        if struct.unpack("3i", credentials)[1] != os.getuid():
            return False
        log.info("another daemon prepares to take over")
        loop, models = asyncio.get_running_loop(), self._models
        await models.freeze()
        said = b""
        try:
            looping = model.State.CRASH_LOOP  # what does not serve here need not serve there
            serving = {one.name: one.active.spec.version for one in models if one.active and one.state is not looping}
            told = {"serving": serving, "generation": models.next_generation()}
            socket.send_fds(successor, [json.dumps(told).encode() + b"\n"], [self._listener.fileno()])
            async with asyncio.timeout(self._patience_s):
                said = await loop.sock_recv(successor, len(_READY))
        except (OSError, TimeoutError) as exc:
            log.warning("the daemon that prepared to take over: %s", exc or "too slow")
        if said != _READY:
            log.warning("nobody takes over; this daemon goes on")
            models.thaw()
        return said == _READY


def _address(state_dir: Path) -> str:
    """Abstract: it leaves no file behind, and long paths fit."""
    return f"\0mlscale-roma-{hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:32]}"
