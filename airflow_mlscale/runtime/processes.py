"""Local processes that end with their owner, or are detached on purpose and can be found again.

Every process is started through `runtime.guard`, in a session of its own. `spawn` ties it to the caller's
life; `detach` leaves it running, recorded in a file under the home directory (`MLSCALE_HOME`, default
``~/.mlscale``), until `end_service`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

import psutil

from airflow_mlscale import errors


def home() -> Path:
    """Where local services keep their state: ``$MLSCALE_HOME`` or ``~/.mlscale``."""
    return Path(os.environ.get("MLSCALE_HOME", "~/.mlscale")).expanduser()


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@dataclass
class Child:
    """A process tied to this one."""

    name: str
    guard: subprocess.Popen[bytes]
    grace_s: float = 10.0
    """Between the request to end and the end by force."""

    @property
    def pid(self) -> int:
        """Process id of the guard; the command and all its descendants are below it."""
        return self.guard.pid

    def command_pid(self) -> int | None:
        """Process id of the command itself while it runs; None before it has started and after its end."""
        return command_pid(self.pid)

    def poll(self) -> int | None:
        return self.guard.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        return self.guard.wait(timeout_s)

    def end(self, timeout_s: float | None = None) -> int:
        """End the command and everything it started; returns its exit code.

        ``timeout_s`` (default: the grace time and 5 s) bounds the wait for the guard before all are killed.
        """
        if self.guard.poll() is None:
            self.guard.terminate()
        try:
            return self.guard.wait(self.grace_s + 5 if timeout_s is None else timeout_s)
        except subprocess.TimeoutExpired:
            _kill([*_below(self.pid), psutil.Process(self.pid)])
            return self.guard.wait()
        finally:
            if self.guard.stdin:
                self.guard.stdin.close()


def command_pid(guard_pid: int) -> int | None:
    """Process id of the command below a guard; None before it has started and after its end."""
    try:
        # guard, its twin, the command; between fork and exec the command still is a copy of the twin
        (twin,) = psutil.Process(guard_pid).children()
        # the oldest: orphans of the command come later
        command = min(
            (child for child in twin.children() if child.cmdline() != twin.cmdline()),
            key=psutil.Process.create_time,
        )
    except (psutil.NoSuchProcess, ValueError):
        return None
    return int(command.pid)


def spawn(
    name: str,
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log_path: Path | None = None,
    grace_s: float = 10.0,
) -> Child:
    """Start a command that ends when this process ends, however it ends."""
    guard = _start(command, env=env, cwd=cwd, log_path=log_path, grace_s=grace_s, detached=False)
    return Child(name, guard, grace_s)


@dataclass(frozen=True)
class Service:
    """A detached process, as recorded in its file."""

    name: str
    pid: int
    """Of the guard."""
    created: float
    """Its creation time, so that a reused process id is not mistaken for it."""
    command: list[str]
    log: str | None = None
    details: dict[str, str] = field(default_factory=dict)
    """What its clients need: addresses, directories. Never secrets."""

    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 2 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def detach(
    name: str,
    command: Sequence[str],
    *,
    details: Mapping[str, str],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log_path: Path | None = None,
    grace_s: float = 10.0,
) -> Service:
    """Start a command that outlives this process; `service(name)` finds it again.

    Its output goes to ``log_path``, or nowhere.
    """
    guard = _start(command, env=env, cwd=cwd, log_path=log_path, grace_s=grace_s, detached=True)
    record = Service(
        name=name,
        pid=guard.pid,
        created=psutil.Process(guard.pid).create_time(),
        command=list(command),
        log=str(log_path) if log_path else None,
        details=dict(details),
    )
    _write(record)
    return record


def rename_service(name: str, new: str) -> Service | None:
    """Record a service that is alive under another name, in the place of whatever had it; None if it is not alive."""
    found = service(name)
    if found:
        found = replace(found, name=new)
        _write(found)
    _record_path(name).unlink(missing_ok=True)
    return found


def _write(record: Service) -> None:
    path = _record_path(record.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(record), indent=1))
    partial.replace(path)


def service(name: str) -> Service | None:
    """The recorded service if it is still alive."""
    try:
        record = Service(**json.loads(_record_path(name).read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None
    return record if record.alive() else None


def services(prefix: str = "") -> list[Service]:
    """All recorded services that are alive and whose name begins with ``prefix``."""
    names = sorted(path.stem for path in (home() / "run").glob("*.json") if path.stem.startswith(prefix))
    return [found for name in names if (found := service(name))]


def end_service(name: str, *, timeout_s: float = 30.0) -> bool:
    """End a service and forget it; returns whether it was alive."""
    found = service(name)
    if found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(found.pid)
            everything = [process, *_below(found.pid)]
            process.send_signal(signal.SIGTERM)
            if not _ended(process, timeout_s):  # a guard ends after all that is below it
                _kill(everything)
                for straggler in everything:
                    _ended(straggler, 5.0)
    forget(name)
    return found is not None


def forget(name: str) -> None:
    """Remove the record of a service that ends by itself."""
    _record_path(name).unlink(missing_ok=True)


def wait_until(
    ready: Callable[[], bool],
    *,
    what: str,
    timeout_s: float,
    alive: Callable[[], bool] = lambda: True,
    log_path: Path | None = None,
    poll_s: float = 0.2,
) -> None:
    """Poll a foreign process until it is ready; raises `TransientError` with the end of its log otherwise.

    Polling is right here: engines that are still starting have no event to offer.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if not alive():
            raise errors.TransientError(f"{what} ended while starting{_tail(log_path)}")
        if time.monotonic() > deadline:
            raise errors.TransientError(f"{what} was not ready after {timeout_s:.0f} s{_tail(log_path)}")
        time.sleep(poll_s)


def _ended(process: psutil.Process, timeout_s: float) -> bool:
    """Wait for a process that is not a child of this one; one that nobody has reaped yet has ended too."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)


def _below(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _kill(victims: Sequence[psutil.Process]) -> None:
    for process in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _tail(log_path: Path | None, lines: int = 15) -> str:
    if not log_path or not log_path.exists():
        return ""
    text = log_path.read_text(errors="replace").splitlines()[-lines:]
    return f"; the end of {log_path}:\n" + "\n".join(text)


def _record_path(name: str) -> Path:
    return home() / "run" / f"{name}.json"


def _start(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    log_path: Path | None,
    grace_s: float,
    detached: bool,
) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "airflow_mlscale.runtime.guard", "--grace", str(grace_s)]
    argv += ["--detached"] if detached else []
    if log_path:
        log_path.parent.mkdir(parents=True, exist_ok=True)
    output: IO[bytes] | int | None = log_path.open("ab") if log_path else None
    if detached and output is None:
        output = subprocess.DEVNULL  # the caller's own output would stay open for as long as the service runs
    try:
        return subprocess.Popen(
            [*argv, "--", *command],
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    finally:
        if output is not None and not isinstance(output, int):
            output.close()
