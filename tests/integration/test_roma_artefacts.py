"""Models from archives, URLs and directories on a real daemon, whose disk is nearly full."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import signal
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale.roma.adapters import checksums
from tests.fakes import disk
from tests.integration import roma_daemon, roma_models

pytestmark = pytest.mark.engine

LINE = {
    "inputs": [
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]},
        {"name": "b", "shape": [1, 1], "datatype": "FP32", "data": [0.5]},
    ]
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return roma_models.built(tmp_path_factory)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[roma_daemon.Daemon]:
    with contextlib.ExitStack() as ending:
        with disk.nearly_full():  # which its processes inherit
            one = ending.enter_context(roma_daemon.running(tmp_path_factory.mktemp("artefacts")))
        yield one


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A directory, and the address at which it is served."""
    directory = tmp_path / "web"
    directory.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield directory, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def line(daemon: roma_daemon.Daemon) -> dict[str, Any]:
    answer = daemon.call("POST", "/v2/models/line/infer", json=LINE)
    assert answer.status_code == 200, answer.text
    return {one["name"]: one["data"] for one in answer.json()["outputs"]}


def kept(daemon: roma_daemon.Daemon) -> list[str]:
    return sorted(one.name for one in (daemon.state / "artefacts").iterdir())


def test_a_zip_file_at_a_url_is_served_and_outlives_it(
    daemon: roma_daemon.Daemon, models: Path, web: tuple[Path, str]
) -> None:
    directory, address = web
    packed = directory / "line.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(models / "line.onnx", "export/line.onnx")
    url = f"{address}/line.zip?signature=hunter2"
    refused = daemon.call("PUT", "/v2/mlscale/models/line", json={"artefact": url, "checksum": "0" * 64})
    assert refused.json()["field"] == "objective"  # what is wrong in itself is not even fetched
    body = {"artefact": url, "objective": {"milliseconds": 500}, "checksum": "0" * 64}
    refused = daemon.call("PUT", "/v2/mlscale/models/line", json=body)
    assert (refused.status_code, refused.json()["field"]) == (400, "checksum")
    body |= {"checksum": checksums.of(packed), "runtime": "auto"}
    assert daemon.call("PUT", "/v2/mlscale/models/line", json=body).status_code == 202
    status = daemon.settled("line")
    assert (status["state"], status["artefact"]) == ("ready", f"{address}/line.zip")
    assert status["checksum"] == checksums.of(models / "line.onnx")
    assert [one["runtime"] for one in status["runtime"]["candidates"]] == ["onnxruntime", "openvino"]
    assert line(daemon) == {"y": [2.5, 4.5], "most": [4.5]}
    assert "hunter2" not in daemon.log_path.read_text()
    assert "hunter2" not in json.dumps(status)

    shutil.rmtree(directory)
    os.kill(status["worker"]["pid"], signal.SIGKILL)
    again = daemon.until("line", lambda seen: seen["state"] == "ready" and bool(seen["worker"]["restarts"]), "restart")
    assert again["runtime"] == status["runtime"]  # chosen once for each version
    assert line(daemon) == {"y": [2.5, 4.5], "most": [4.5]}


def test_another_runtime_is_another_version(daemon: roma_daemon.Daemon, models: Path) -> None:
    first = daemon.deploy("line", models / "line.onnx", runtime="onnxruntime")
    assert daemon.deploy("line", models / "line.onnx")["version"] == first["version"]
    second = daemon.deploy("line", models / "line.onnx", runtime="openvino")
    assert int(second["version"]) == int(first["version"]) + 1
    assert second["runtime"]["name"] == "openvino"
    assert line(daemon) == {"y": [2.5, 4.5], "most": [4.5]}
    assert daemon.call("GET", "/v2/models/line").json()["platform"] == "openvino"


def test_a_full_disk_costs_nothing_but_the_deployment(daemon: roma_daemon.Daemon, models: Path, tmp_path: Path) -> None:
    daemon.deploy("line", models / "line.onnx")
    before = kept(daemon)
    shutil.copytree(models / "line1", tmp_path / "large")
    (tmp_path / "large" / "assets" / "table").parent.mkdir(exist_ok=True)
    (tmp_path / "large" / "assets" / "table").write_bytes(bytes(2 * disk.ROOM_BYTES))
    body = {"artefact": str(tmp_path / "large"), "objective": {"milliseconds": 500}}
    for name in ("new", "line"):
        refused = daemon.call("PUT", f"/v2/mlscale/models/{name}", json=body)
        assert refused.status_code == 503, refused.text
        assert "make room" in refused.json()["error"]
        assert int(refused.headers["Retry-After"]) == 60
    assert kept(daemon) == before
    assert daemon.call("GET", "/v2/mlscale/models/new").status_code == 404
    assert line(daemon) == {"y": [2.5, 4.5], "most": [4.5]}
