"""The servers of the overhead benchmark, each with the small model alone and asked in its own JSON."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from airflow_mlscale import errors
from airflow_mlscale.runtime import processes
from benchmarks.serving import models, setup, systems

APPS = Path(__file__).with_name("apps")
SMALL = models.MODELS["flight_delay"]
WIDTH = SMALL.shape[1]
ROW = [0.1] * WIDTH


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A server that answers."""

    root: int
    port: int
    target: dict[str, Any]
    """Of `load`."""


Start = Callable[[Path], AbstractContextManager[Answering]]


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[Answering]:
    """ROMA as it is by default, asked in v2's JSON."""
    served = models.Served(model=SMALL, objective_ms=1000.0, rate_per_s=0.0)
    folder.mkdir(parents=True, exist_ok=True)
    with systems.running(systems.SYSTEMS["ours_work_conserving"], [served], folder) as found:
        path = f"/v2/models/{SMALL.name}"
        metadata = httpx.get(f"http://127.0.0.1:{found.port}{path}", trust_env=False).json()
        target = json_target(folder, f"{path}/infer", v2_json(metadata["inputs"][0]["name"]))
        yield Answering(root=found.root, port=found.port, target=target)


@contextlib.contextmanager
def mlserver(folder: Path) -> Iterator[Answering]:
    """MLServer with its adaptive batching; without workers of its own, which cost it more than they give."""
    port, others = processes.free_port(), {"grpc_port": processes.free_port(), "metrics_port": processes.free_port()}
    ways = {"host": "127.0.0.1", "http_port": port, **others, "parallel_workers": 0, "debug": False}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(ways))
    model = {"name": "small", "implementation": "mlserver_app.Small", "max_batch_size": 64, "max_batch_time": 0.001}
    (folder / "model-settings.json").write_text(json.dumps(model))
    command = [str(setup.python_of("mlserver").with_name("mlserver")), "start", str(folder)]
    with _running("mlserver", command, folder, port, "/v2/models/small/infer", v2_json("features")) as found:
        yield found


@contextlib.contextmanager
def litserve(folder: Path) -> Iterator[Answering]:
    """LitServe with batches of up to 64: one process for HTTP, one for the model."""
    port = processes.free_port()
    command = [str(setup.python_of("litserve")), str(APPS / "litserve_app.py"), str(port)]
    with _running("litserve", command, folder, port, "/predict", {"rows": [ROW]}) as found:
        yield found


@contextlib.contextmanager
def bentoml(folder: Path) -> Iterator[Answering]:
    """BentoML with its adaptive batching."""
    port = processes.free_port()
    command = [str(setup.python_of("bentoml")), "-m", "bentoml", "serve", "bentoml_app:Small"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with _running("bentoml", command, folder, port, "/predict", {"rows": [ROW]}) as found:
        yield found


@contextlib.contextmanager
def ray_serve(folder: Path) -> Iterator[Answering]:
    """Ray Serve with a replica for each core and its own batching."""
    count = os.cpu_count() or 1
    deployment = {
        "name": "small",
        "artefact": str(SMALL.artefact),
        "width": WIDTH,
        "cores": 0.5,
        "ongoing": 128,
        "autoscaling": {"min_replicas": count, "max_replicas": count},
    }
    folder.mkdir(parents=True, exist_ok=True)
    with systems.ray([deployment], folder) as (child, port):
        target = json_target(folder, "/small", {"rows": [ROW]})
        systems.probe(port, target)
        yield Answering(root=child.pid, port=port, target=target)


PEERS: Mapping[str, Start] = {
    "ours": ours,
    "mlserver": mlserver,
    "litserve": litserve,
    "bentoml": bentoml,
    "ray_serve": ray_serve,
}
NEEDS = {"mlserver": "mlserver", "litserve": "litserve", "bentoml": "bentoml", "ray_serve": "ray"}
"""The environment of each."""


def v2_json(input_name: str) -> dict[str, Any]:
    """A request of the Open Inference Protocol."""
    return {"inputs": [{"name": input_name, "shape": [1, WIDTH], "datatype": "FP32", "data": ROW}]}


def json_target(folder: Path, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    file = folder / "small.json"
    file.write_text(json.dumps(body))
    return {"name": SMALL.name, "path": path, "headers": {"Content-Type": "application/json"}, "body": str(file)}


@contextlib.contextmanager
def _running(
    name: str, command: list[str], folder: Path, port: int, path: str, body: Mapping[str, Any]
) -> Iterator[Answering]:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    environment = {
        **os.environ,
        "BENCH_ARTEFACT": str(SMALL.artefact),
        "PYTHONPATH": str(APPS),
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOME": str(folder / "bentoml"),
    }
    child = processes.spawn(name, command, env=environment, cwd=APPS, log_path=log, grace_s=10)
    try:
        target = json_target(folder, path, body)
        url, content = f"http://127.0.0.1:{port}{path}", json.dumps(body)

        def answers() -> bool:
            try:
                answer = httpx.post(url, content=content, headers=target["headers"], timeout=10, trust_env=False)
            except httpx.HTTPError:
                return False
            return answer.status_code == 200

        processes.wait_until(
            answers, what=name, timeout_s=120, alive=lambda: child.poll() is None, log_path=log, poll_s=0.25
        )
        yield Answering(root=child.pid, port=port, target=target)
    finally:
        child.end()


class InProcess:
    """TensorFlow in a process of its own without a server; use as a context manager."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "in-process.log"

    def __enter__(self) -> InProcess:
        command = [sys.executable, str(APPS / "in_process.py"), str(SMALL.artefact), str(WIDTH)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def run(self, times: int) -> list[float]:
        """Seconds of each execution of one row."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{times}\n")
        self._process.stdin.flush()
        found: list[float] = json.loads(self._read())
        return found

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise errors.TransientError(f"TensorFlow in process ended, see {self._log}")
        return line
