"""Local processes that end with their owner, or are detached on purpose and can be found again.

Every process is started through `runtime.guard`, in a session of its own. `spawn` ties it to the caller's
life; `detach` leaves it running, recorded in a file under the home directory (`MLSCALE_HOME`, default
``~/.mlscale``), until `end_service`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

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

    @property
    def pid(self) -> int:
        """Process id of the guard; the command and all its descendants are below it."""
        return self.guard.pid

    def poll(self) -> int | None:
        return self.guard.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        return self.guard.wait(timeout_s)

    def end(self, timeout_s: float = 15.0) -> int:
        """End the command and everything it started; returns its exit code."""
        if self.guard.poll() is None:
            self.guard.terminate()
        try:
            return self.guard.wait(timeout_s)
        except subprocess.TimeoutExpired:
            for process in [*psutil.Process(self.pid).children(recursive=True), psutil.Process(self.pid)]:
                process.kill()
            return self.guard.wait()
        finally:
            if self.guard.stdin:
                self.guard.stdin.close()


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
    return Child(name, guard)


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
    """Start a command that outlives this process; `service(name)` finds it again."""
    guard = _start(command, env=env, cwd=cwd, log_path=log_path, grace_s=grace_s, detached=True)
    record = Service(
        name=name,
        pid=guard.pid,
        created=psutil.Process(guard.pid).create_time(),
        command=list(command),
        log=str(log_path) if log_path else None,
        details=dict(details),
    )
    path = _record_path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(record), indent=1))
    partial.replace(path)
    return record


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
        process = psutil.Process(found.pid)
        below = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs([process, *below], timeout=timeout_s)
        for straggler in left:
            straggler.kill()
        psutil.wait_procs(left, timeout=5)
    _record_path(name).unlink(missing_ok=True)
    return found is not None


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
    output = log_path.open("ab") if log_path else None
    try:
        return subprocess.Popen(
            [*argv, "--", *command],
            stdin=subprocess.DEVNULL if detached else subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            env=None if env is None else dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    finally:
        if output:
            output.close()
