"""A real daemon with emulated GPUs: NVML calls to a stand-in library, TensorFlow in an executor on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_mlscale.runtime import processes
from tests.fakes import nvml
from tests.integration import roma_daemon, roma_models

pytestmark = pytest.mark.engine

GPU = nvml.gpu("GPU-a", total=8192, used=500)
LINE = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roma_models.built(tmp_path_factory)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> nvml.State:
    return nvml.State(tmp_path_factory.mktemp("nvml") / "state", GPU)


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, state: nvml.State, artefacts: Path
) -> Iterator[roma_daemon.Daemon]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in state.environment().items():
            patch.setenv(name, value)
        with roma_daemon.running(tmp_path_factory.mktemp("gpus"), "--gpus", "auto", "--emulate-gpus") as one:
            one.deploy("line", artefacts / "line1", device="gpu")
            seated(one)
            yield one


def seated(daemon: roma_daemon.Daemon) -> dict[str, Any]:
    """The status once the model has its seat."""
    return daemon.until("line", lambda status: status["gpu"]["state"] == "ready", "a seat on the GPU")


def on_gpu(status: dict[str, Any]) -> int:
    return int(status["answered"].get("emulated-gpu", 0))


def executor(daemon: roma_daemon.Daemon) -> int:
    (host,) = daemon.call("GET", "/v2/mlscale/host").json()["gpus"]
    return int(host["executor"]["pid"])


def test_a_model_runs_on_an_emulated_gpu_that_says_so(daemon: roma_daemon.Daemon) -> None:
    before = on_gpu(daemon.status("line"))
    for _ in range(3):
        answer = daemon.call("POST", "/v2/models/line/infer", json=LINE)
        assert answer.json()["outputs"][0]["data"] == [3.0, 5.0, 7.0]
    status = daemon.status("line")
    assert on_gpu(status) == before + 3
    assert (status["device"], status["gpu"]["device"], status["gpu"]["uuid"]) == ("gpu", "emulated-gpu", "GPU-a")
    (host,) = daemon.call("GET", "/v2/mlscale/host").json()["gpus"]
    assert (host["device"], host["state"], host["models"]) == ("emulated-gpu", "ready", {"line": "ready"})
    assert (host["used_bytes"], host["utilisation"]) == (500 * 2**20, 0.25)
    environment = psutil.Process(host["executor"]["pid"]).environ()
    assert environment["CUDA_VISIBLE_DEVICES"] == "-1"
    metrics = daemon.call("GET", "/metrics").text
    assert 'mlscale_roma_gpu_usable{device="emulated-gpu",gpu="GPU-a"} 1.0' in metrics
    assert 'mlscale_roma_answered_requests_total{device="emulated-gpu",model="line",version="1"}' in metrics
    records = daemon.call("GET", "/v2/mlscale/models/line/journal").json()["records"]
    assert any(one["decided"].get("device") == "emulated-gpu" for one in records)
    assert "emulated-gpu GPU-a" in daemon.log_path.read_text()


def test_a_gpu_that_is_lost_under_load_loses_no_request(daemon: roma_daemon.Daemon, state: nvml.State) -> None:
    try:
        with daemon.load("line", requests=50_000, clients=8, deadline_ms=120_000) as report:
            before = on_gpu(daemon.status("line"))
            daemon.until("line", lambda status: on_gpu(status) > before + 50, "load on the GPU")
            state.write(nvml.gpu("GPU-a", error=nvml.LOST))
            lost = daemon.until("line", lambda status: status["gpu"]["state"] == "none", "the loss")
            served = lost["totals"]["served"]
            daemon.until("line", lambda status: status["totals"]["served"] > served + 50, "load on the CPU")
            found = report(stop=True)
    finally:
        state.write(GPU)
    assert (found["wrong"], list(found["statuses"])) == ([], ["200"])
    assert lost["gpu"]["note"] == "the GPU is lost: NVML: GPU is lost"
    seated(daemon)


@pytest.mark.long  # another executor imports TensorFlow; that no request is lost is also shown with fakes
def test_an_executor_that_is_killed_under_load_loses_no_request(daemon: roma_daemon.Daemon) -> None:
    seated(daemon)
    pid = executor(daemon)
    with daemon.load("line", requests=50_000, clients=8, deadline_ms=120_000) as report:
        before = on_gpu(daemon.status("line"))
        daemon.until("line", lambda status: on_gpu(status) > before + 50, "load on the GPU")
        roma_daemon.kill(psutil.Process(pid))
        processes.wait_until(
            lambda: bool(daemon.call("GET", "/v2/mlscale/host").json()["gpus"][0]["executor"]),
            what="another executor",
            timeout_s=60,
        )
        before = on_gpu(seated(daemon))
        daemon.until("line", lambda status: on_gpu(status) > before + 50, "load on the GPU again")
        found = report(stop=True)
    assert (found["wrong"], list(found["statuses"])) == ([], ["200"])
    assert executor(daemon) != pid


def test_the_device_is_changed_while_running(daemon: roma_daemon.Daemon, artefacts: Path) -> None:
    worker = seated(daemon)["worker"]["pid"]
    daemon.deploy("line", artefacts / "line1", device="cpu")
    status = daemon.until("line", lambda status: status["gpu"]["state"] == "none", "its leave")
    before = on_gpu(status)
    assert daemon.call("POST", "/v2/models/line/infer", json=LINE).is_success
    status = daemon.status("line")
    assert (on_gpu(status), status["worker"]["pid"]) == (before, worker)
    daemon.deploy("line", artefacts / "line1", device="gpu")
    seated(daemon)


def test_gpus_without_a_driver_are_refused_before_anything_starts(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != nvml.STATE_VARIABLE}
    path = {**environment, "LD_LIBRARY_PATH": str(nvml.built())}  # a library, but nothing behind it
    done = roma_daemon.refused(tmp_path, "--gpus", "auto", environment=path)
    assert "gpus" in done
    assert "--gpus none" in done
    assert not (tmp_path / "state").exists()
