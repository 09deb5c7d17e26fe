"""A second daemon takes over from the first under load: nothing fails, nothing is forgotten."""

from __future__ import annotations

import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from tritonclient import grpc as triton

from airflow_mlscale.runtime import processes
from tests.fakes import nvml
from tests.integration import roma_daemon, roma_models

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roma_models.built(tmp_path_factory)


@contextmanager
def successor(daemon: roma_daemon.Daemon, log_path: Path) -> Iterator[processes.Child]:
    ports = ["--port", str(daemon.port), "--grpc-port", str(daemon.grpc_port)]
    command = [sys.executable, "-m", "airflow_mlscale.cli", "roma", "serve", *ports, "--state", str(daemon.state)]
    command += daemon.arguments
    child = processes.spawn("roma", [*command, "--take-over"], log_path=log_path, grace_s=15)
    try:
        yield child
    finally:
        child.end()


def seated(daemon: roma_daemon.Daemon, pid: int = 0) -> int:
    """The process of the executor, another one than ``pid``, once the model has a seat there."""

    def executor() -> int:
        (host,) = daemon.call("GET", "/v2/mlscale/host").json()["gpus"]
        return int(host["executor"]["pid"]) if host["models"].get("m") == "ready" else 0

    processes.wait_until(lambda: executor() not in (0, pid), what="a seat", timeout_s=120, log_path=daemon.log_path)
    return executor()


@pytest.mark.long
def test_the_gpus_go_over_to_the_next_daemon_under_load(
    tmp_path: Path, artefacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Memory for one of them: 8192 · 0.95 − 600 for the runtime leave 7182 MiB.
    state = nvml.State(tmp_path / "nvml", nvml.gpu("GPU-a", total=8192, used=0))
    for name, value in state.environment().items():
        monkeypatch.setenv(name, value)
    with roma_daemon.running(tmp_path / "old", "--gpus", "auto", "--emulate-gpus") as daemon:
        assert daemon.child is not None
        daemon.deploy("m", artefacts / "line1", device="gpu", gpu_memory_mb=6000, objective={"milliseconds": 1000})
        before = seated(daemon)
        with (
            daemon.load("m", requests=1_000_000, clients=4, deadline_ms=60_000) as report,
            successor(daemon, tmp_path / "new.log") as child,
        ):
            old, log = daemon.child, tmp_path / "new.log"
            processes.wait_until(
                lambda: old.poll() is not None,
                what="the new ROMA",
                timeout_s=120,
                alive=lambda: child.poll() is None,
                log_path=log,
            )
            assert old.poll() == 0
            after = seated(daemon, before)
            assert not psutil.pid_exists(before)
            count = daemon.status("m")["answered"].get("emulated-gpu", 0)
            daemon.until("m", lambda one: one["answered"].get("emulated-gpu", 0) > count + 50, "load on the GPU")
            found = report(stop=True)
            assert (found["wrong"], set(found["statuses"])) == ([], {"200"})
            told = daemon.log_path.read_text()
            assert told.index("the GPUs are left to the daemon that has taken over") > told.index(f"executor {before}")
            told = log.read_text()
            assert told.index("the GPUs are this daemon's") < told.index(f"executor {after}")


@contextmanager
def asking_over_grpc(daemon: roma_daemon.Daemon, name: str) -> Iterator[Counter[str]]:
    """One client after another answer, over one channel, in a thread."""
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    def ask() -> None:
        x = triton.InferInput("x", [1, 3], "FP32")
        x.set_data_from_numpy(np.array([[1, 2, 3]], dtype=np.float32))
        with triton.InferenceServerClient(f"127.0.0.1:{daemon.grpc_port}") as client:
            while not stop.is_set():
                try:
                    client.infer(name, [x], headers={"x-mlscale-deadline-ms": "60000"})
                    outcomes["answered"] += 1
                except Exception as exc:
                    outcomes[str(exc)] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        thread.join()


def test_another_daemon_takes_over_under_load_without_a_failure(tmp_path: Path, artefacts: Path) -> None:
    with roma_daemon.running(tmp_path / "old") as daemon:
        assert daemon.child is not None
        daemon.deploy("m", artefacts / "line1", version="1", objective={"milliseconds": 1000})
        kept = daemon.state / "artefacts"  # without its files no successor can load the model
        kept.rename(tmp_path / "away")
        with successor(daemon, tmp_path / "failing.log") as child:
            assert child.wait(120) == 2
        assert "did not come up beside the running daemon, which goes on" in (tmp_path / "failing.log").read_text()
        shutil.rmtree(kept, ignore_errors=True)
        (tmp_path / "away").rename(kept)
        daemon.deploy("m", artefacts / "line2", version="2", canary={"fraction": 0.5})  # changes are taken again
        before = daemon.status("m")
        with (
            daemon.load("m", requests=1_000_000, clients=4, deadline_ms=60_000) as report,
            asking_over_grpc(daemon, "m") as over_grpc,
            successor(daemon, tmp_path / "new.log") as child,
        ):
            old = daemon.child
            processes.wait_until(
                lambda: old.poll() is not None,
                what="the new ROMA",
                timeout_s=120,
                alive=lambda: child.poll() is None,
                log_path=tmp_path / "new.log",
            )
            assert old.poll() == 0
            after = daemon.status("m")
            count = over_grpc["answered"]
            processes.wait_until(lambda: over_grpc["answered"] > count + 10, what="answers", timeout_s=60)
            found = report(stop=True)
            assert set(found["statuses"]) == {"200"}
            assert found["wrong"] == []
            assert set(found["versions"]) == {"1", "2"}
            assert set(over_grpc) == {"answered"}
            assert after["worker"]["pid"] != before["worker"]["pid"]
            assert (after["version"], after["canary"]["version"]) == ("1", "2")
            answer = daemon.call("POST", "/v2/mlscale/models/m/promote", json={})  # it takes changes
            assert answer.json()["version"] == "2", answer.text
