"""Who is compared: ROMA's daemon under ours and other laws, and Ray Serve; how each is started with its models."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from airflow_mlscale import errors
from airflow_mlscale.roma import model as roma
from airflow_mlscale.roma.adapters import client
from airflow_mlscale.runtime import processes
from benchmarks.serving import models, setup

ROOT = Path(__file__).parents[2]
RAY_APP = Path(__file__).with_name("apps") / "ray_app.py"
JOURNAL = "journal.jsonl"
"""In the folder of a run: what ROMA decided."""
START_S = 180.0
RAY_CORES = 0.25
"""What a replica reserves: all models begin with one, and the host has room for as many again."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One system of the comparison."""

    name: str
    says: str
    ours: bool = False
    kind: str = "roma"
    control: Mapping[str, Any] = field(default_factory=dict)
    """Of `settings.ControlSettings`."""
    paper: Mapping[str, Any] = field(default_factory=dict)
    hpa: Mapping[str, Any] = field(default_factory=dict)
    queue: Mapping[str, Any] = field(default_factory=dict)


def _quotas(law: str, dispatch: str = "arrival") -> dict[str, Any]:
    return {"law": law, "dispatch": dispatch, "mode": "reserve"}


SYSTEMS: Mapping[str, System] = {
    one.name: one
    for one in (
        System(name="static", says="an even quota for each model", control=_quotas("static")),
        System(name="sharing", says="no quotas: the kernel shares evenly", control=_quotas("sharing")),
        System(name="rules", says="the paper's rules, H1 dispatch", control=_quotas("rules", "h1")),
        System(name="ct", says="the paper's CT law, H1 dispatch", control=_quotas("ct", "h1")),
        System(
            name="ct_scaled",
            says="the same, gains × 0.02 for this many cores",
            control=_quotas("ct", "h1"),
            paper={"scale": 0.02},
        ),
        System(name="queue_length", says="the paper's queue-length law, H1", control=_quotas("queue_length", "h1")),
        System(
            name="queue_length_scaled",
            says="the same, gains × 0.02",
            control=_quotas("queue_length", "h1"),
            paper={"scale": 0.02},
        ),
        System(
            name="hpa",
            says="a threshold as Kubernetes' autoscaler has it, 80 %",
            control=_quotas("hpa"),
            hpa={"hpa_stabilisation_s": 60.0},
        ),
        System(name="ray_serve", says="Ray Serve, replicas by requests under way", kind="ray"),
        System(name="ours_work_conserving", says="ours, guarantees by weight", ours=True),
        System(
            name="ours_reserve", says="ours, guarantees as quotas, with loans", ours=True, control={"mode": "reserve"}
        ),
    )
}
QUOTAS = ("static", "rules", "ct", "ct_scaled", "queue_length", "queue_length_scaled", "hpa")
AGAINST = ("static", "rules", "ct", "ct_scaled", "hpa", "ray_serve")
"""Rivals that the targets name; the paper's laws also with gains that suit the machine."""
PLAIN = System(
    name="capacity", says="plain sharing without giving up", control=_quotas("sharing"), queue={"give_up_factor": 1e4}
)
"""What the capacity of the machine is measured with."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A system that has its models and answers."""

    root: int
    """Process id of the tree's top."""
    gateway: int | None
    port: int
    shares: Path
    targets: Sequence[dict[str, Any]]
    """Of `load`, by model."""


@contextlib.contextmanager
def running(system: System, served: Sequence[models.Served], folder: Path) -> Iterator[Running]:
    """Start a system with its models in a new folder; it has ended, whatever happened, when this returns.

    Raises:
        TransientError: it did not start, or does not answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start = _ray if system.kind == "ray" else _roma
    with start(system, served, folder) as found:
        for target in found.targets:
            probe(found.port, target)
        yield found


@contextlib.contextmanager
def _roma(system: System, served: Sequence[models.Served], folder: Path) -> Iterator[Running]:
    port, shares, log = processes.free_port(), folder / "shares.jsonl", folder / "daemon.log"
    config = {
        "cpu": "auto",
        "port": port,
        "state": str(folder / "state"),
        "shares": str(shares),
        "journal": str(folder / JOURNAL),
        **{name: dict(getattr(system, name)) for name in ("control", "paper", "hpa", "queue")},
    }
    path = folder / "daemon.json"
    path.write_text(json.dumps(config))
    command = [sys.executable, "-m", "benchmarks.serving.daemon", str(path)]
    child = processes.spawn("roma", command, cwd=ROOT, log_path=log, grace_s=15)
    try:
        address = f"http://127.0.0.1:{port}"
        with client.RomaClient(address) as daemon:
            _wait(lambda: _answers(f"{address}/v2/health/live"), "ROMA", child, log)
            targets = _deploy(daemon, served, folder)
        gateway = child.command_pid()
        yield Running(root=child.pid, gateway=gateway, port=port, shares=shares, targets=targets)
    finally:
        child.end()


def _deploy(daemon: client.RomaClient, served: Sequence[models.Served], folder: Path) -> list[dict[str, Any]]:
    for one in served:
        objective = roma.Objective(milliseconds=one.objective_ms)
        artefact = str(one.model.artefact)
        daemon.deploy(
            roma.DeployOrder(name=one.model.name, artefact=artefact, objective=objective, min_cores=one.min_cores)
        )
    targets = []
    for one in served:
        status = daemon.status(one.model.name, settled_within_s=START_S)
        if status["state"] != "ready":
            raise errors.TransientError(f"{one.model.name} is {status['state']}: {status['reason']}")
        metadata = httpx.get(f"{daemon.address}/v2/models/{one.model.name}", trust_env=False).json()
        body, headers = models.v2_binary(one.model, metadata["inputs"][0]["name"])
        path = f"/v2/models/{one.model.name}/infer"
        targets.append(_target(folder, one, path, body, headers))
    return targets


@contextlib.contextmanager
def _ray(system: System, served: Sequence[models.Served], folder: Path) -> Iterator[Running]:
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 1.0,
        "downscale_delay_s": 15.0,
        "metrics_interval_s": 0.5,
        "look_back_period_s": 3.0,
    }
    deployments = [
        {
            "name": one.model.name,
            "artefact": str(one.model.artefact),
            "shape": one.model.shape,
            "cores": RAY_CORES,
            "ongoing": 100,  # fewer, and its router backs off until next to nothing is answered
            "autoscaling": scaling,
        }
        for one in served
    ]
    with ray(deployments, folder) as (child, port):
        octets = {"Content-Type": "application/octet-stream"}
        targets = [_target(folder, one, f"/{one.model.name}", one.model.values(), octets) for one in served]
        yield Running(root=child.pid, gateway=None, port=port, shares=folder / "shares.jsonl", targets=targets)


@contextlib.contextmanager
def ray(deployments: Sequence[Mapping[str, Any]], folder: Path) -> Iterator[tuple[processes.Child, int]]:
    """Ray Serve with these deployments; yields its process and its port."""
    port, log = processes.free_port(), folder / "ray.log"
    temporary = tempfile.mkdtemp(prefix="ray-bench-")  # a socket's path has 107 bytes: not below a deep folder
    config = {
        "cores": psutil.cpu_count(),
        "port": port,
        "temporary": temporary,
        "shares": str(folder / "shares.jsonl"),
        "models": list(deployments),
    }
    path = folder / "ray.json"
    path.write_text(json.dumps(config))
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_memory_monitor_refresh_ms": "0"}
    command = [str(setup.python_of("ray")), str(RAY_APP), str(path)]
    child = processes.spawn("ray", command, env=environment, log_path=log, grace_s=20)
    try:
        _wait(lambda: log.exists() and "ready" in log.read_text().splitlines(), "Ray Serve", child, log)
        yield child, port
    finally:
        child.end()
        shutil.rmtree(temporary, ignore_errors=True)


def _target(folder: Path, one: models.Served, path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    file = folder / f"{one.model.name}.body"
    file.write_bytes(body)
    return {"name": one.model.name, "path": path, "headers": dict(headers), "body": str(file)}


def probe(port: int, target: Mapping[str, Any]) -> None:
    """One request, so that a mistake is told before it looks like slowness."""
    url, body = f"http://127.0.0.1:{port}{target['path']}", Path(target["body"]).read_bytes()
    answer = httpx.post(url, content=body, headers=target["headers"], timeout=60, trust_env=False)
    if answer.status_code != 200:
        raise errors.TransientError(f"{url} answers {answer.status_code}: {answer.text[:300]}")


def _wait(ready: Any, what: str, child: processes.Child, log: Path) -> None:
    processes.wait_until(
        ready, what=what, timeout_s=START_S, alive=lambda: child.poll() is None, log_path=log, poll_s=0.1
    )


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
