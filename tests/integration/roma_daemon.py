"""A real ROMA daemon for tests: started through the command line, ended whatever happens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from airflow_mlscale.runtime import processes

LOAD = Path(__file__).with_name("roma_load.py")
READY_S = 120.0


class Daemon:
    """One daemon; `start` it again after its death to find the same state."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.state = directory / "state"
        self.log_path = directory / "daemon.log"
        self.port = processes.free_port()
        self.grpc_port = processes.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.arguments = arguments
        self.child: processes.Child | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "airflow_mlscale.cli", "roma", "serve", "--port", str(self.port)]
        command += ["--grpc-port", str(self.grpc_port), "--state", str(self.state), *self.arguments]
        child = self.child = processes.spawn("roma", command, log_path=self.log_path, grace_s=15)
        processes.wait_until(
            self.live,
            what="ROMA",
            timeout_s=READY_S,
            alive=lambda: child.poll() is None,
            log_path=self.log_path,
            poll_s=0.05,
        )

    def live(self) -> bool:
        try:
            return httpx.get(f"{self.url}/v2/health/live", trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def end(self) -> None:
        if self.child:
            self.child.end()

    def processes(self) -> list[psutil.Process]:
        """The two guards, outer first, and the daemon itself."""
        assert self.child is not None
        outer = psutil.Process(self.child.pid)
        (inner,) = outer.children()
        return [outer, inner, min(inner.children(), key=psutil.Process.create_time)]

    def call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        return httpx.request(method, self.url + path, timeout=60, trust_env=False, **arguments)

    def deploy(self, name: str, artefact: Path, **fields: Any) -> dict[str, Any]:
        """Deploy and wait until it is settled."""
        body = {"artefact": str(artefact), "objective": {"milliseconds": 100}, **fields}
        answer = self.call("PUT", f"/v2/mlscale/models/{name}", json=body)
        assert answer.is_success, answer.text
        return self.settled(name)

    def settled(self, name: str) -> dict[str, Any]:
        status = self.status(name, settled_within_s=READY_S)
        assert status["settled"], status
        return status

    def status(self, name: str, **query: float) -> dict[str, Any]:
        path = f"/v2/mlscale/models/{name}"
        answer = httpx.get(self.url + path, params=query, timeout=READY_S + 10, trust_env=False)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def until(self, name: str, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Poll the status until a condition holds."""
        seen: dict[str, Any] = {}

        def holds() -> bool:
            seen.clear()
            seen.update(self.status(name))
            return condition(seen)

        processes.wait_until(holds, what=what, timeout_s=READY_S, log_path=self.log_path, poll_s=0.05)
        return seen

    @contextmanager
    def load(
        self, name: str, *, requests: int, clients: int, deadline_ms: int | None = None
    ) -> Iterator[Callable[[], dict[str, Any]]]:
        """Load from a second process; the yielded function waits for its end and returns its report."""
        arguments: Sequence[str] = [self.url, name, str(requests), str(clients)]
        arguments = [*arguments, str(deadline_ms)] if deadline_ms else arguments
        process = subprocess.Popen(
            [sys.executable, str(LOAD), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

        def report(*, stop: bool = False) -> dict[str, Any]:
            assert process.stdin is not None
            assert process.stdout is not None
            if stop:
                process.stdin.close()
            found: dict[str, Any] = json.loads(process.stdout.read())
            return found

        try:
            yield report
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()


@contextmanager
def running(directory: Path, *arguments: str) -> Iterator[Daemon]:
    daemon = Daemon(directory, *arguments)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()


def kill(process: psutil.Process) -> None:
    """kill -9, and wait until it is gone; it may have followed one that was killed before."""
    with suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs([process], timeout=10)


def refused(directory: Path, *arguments: str, environment: dict[str, str]) -> str:
    """What a daemon that cannot be started says."""
    command = [sys.executable, "-m", "airflow_mlscale.cli", "roma", "serve", "--state", str(directory / "state")]
    command += ["--port", str(processes.free_port()), "--no-grpc", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr
