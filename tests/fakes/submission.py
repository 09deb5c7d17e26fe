"""A `spark-submit` that hands its arguments to the test, and a driver that exists only as its REST API."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_SUBMIT = """\
#!{python}
import json, sys, urllib.request
body = json.dumps(sys.argv[1:]).encode()
print(urllib.request.urlopen(urllib.request.Request("{url}", data=body)).read().decode())
"""


def properties(arguments: Sequence[str]) -> dict[str, str]:
    """Spark properties among the arguments of spark-submit."""
    return dict(value.split("=", 1) for name, value in itertools.pairwise(arguments) if name == "--conf")


@contextmanager
def spark_home(folder: Path, submit: Callable[[list[str]], str]) -> Iterator[Path]:
    """A Spark installation whose `spark-submit` calls ``submit`` with its arguments and prints what that returns."""

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        return 200, submit(json.loads(body)).encode()

    with http_server(answer) as url:
        (folder / "bin").mkdir(parents=True)
        (folder / "jars").mkdir()
        (folder / "jars" / "spark-core_2.13-4.3.0.jar").touch()
        script = folder / "bin" / "spark-submit"
        script.write_text(_SUBMIT.format(python=sys.executable, url=url))
        script.chmod(0o755)
        yield folder


@dataclass
class FakeDriver:
    """Finishes one of its tasks each time somebody reads its stages, and its application with the last one."""

    run: str
    tasks: int = 8
    patience: Callable[[], bool] = lambda: True
    """The last task is kept until this is true."""
    application_id: str = "app-1"
    complete: int = 0
    asked: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.complete >= self.tasks

    def answer(self, path: str) -> Any:
        """What ``/api/v1`` answers below that path; None for what is not there."""
        self.asked.append(path)
        match path.removeprefix(f"/applications/{self.application_id}"):
            case "/applications":
                return [{"id": self.application_id}]
            case "/environment":
                return {"sparkProperties": [["spark.mlscale.run", self.run]]}
            case "/stages" | "/stages?withSummaries=true":
                return [self._stage()]
            case "/executors" | "/allexecutors":
                return [{"id": "1", "isActive": True, "totalCores": 2, "hostPort": "10.0.0.2:7079", "activeTasks": 2}]
            case "/stages/0/0/taskSummary?quantiles=1.0":
                return {"quantiles": [1.0], "executorRunTime": [1000.0]}
        return None

    def _stage(self) -> dict[str, Any]:
        if self.complete + 1 < self.tasks or self.patience():
            self.complete = min(self.tasks, self.complete + 1)
        over = {"completionTime": "2026-01-01T00:01:00.000GMT"} if self.finished else {}
        return {
            "stageId": 0,
            "attemptId": 0,
            "name": "count at job.py:1",
            "status": "COMPLETE" if self.finished else "ACTIVE",
            "numTasks": self.tasks,
            "numActiveTasks": 0 if self.finished else 1,
            "numCompleteTasks": self.complete,
            "numCompletedIndices": self.complete,
            "numFailedTasks": 0,
            "executorRunTime": 1000 * self.complete,
            "submissionTime": "2026-01-01T00:00:00.000GMT",
            **over,
        }


@contextmanager
def http_server(answer: Callable[[str, str, bytes], tuple[int, bytes]]) -> Iterator[str]:
    """A server on loopback that answers method, path with query, and body; its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = answer(self.command, self.path, body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
