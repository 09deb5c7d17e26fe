"""The demo as a visitor runs it: the whole pipeline through Airflow, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process that was started for this demo: all of them inherit its home."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MLSCALE_HOME", "").startswith(str(home)):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
    return found


def groups_on_this_host() -> set[Path]:
    return set(Path("/sys/fs/cgroup").glob("*/mlscale.*"))


Start = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the demo in a home of its own; end it and whatever it left, whatever happens."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "MLSCALE"))}
    command = [sys.executable, "-m", "demo", "--home", str(tmp_path / "home"), "--report", str(tmp_path / "report")]
    demos: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        demo = subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        demos.append(demo)
        return demo

    yield run
    for demo in demos:
        if demo.poll() is None:
            demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=120)
    for left in processes_of(tmp_path):
        left.kill()


def read_until(demo: subprocess.Popen[str], words: str) -> str:
    assert demo.stdout is not None
    seen = ""
    for line in demo.stdout:
        seen += line
        if words in line:
            return seen
    raise AssertionError(f"the demo ended before it said {words!r}:\n{seen}")


def test_every_promise_is_kept_and_nothing_is_left(start: Start, tmp_path: Path) -> None:
    groups = groups_on_this_host()
    demo = start()
    output, _ = demo.communicate()
    assert demo.returncode == 0, output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["dag_state"] == "success"
    assert report["spark"]["met"] is True
    assert report["spark"]["finish_s"] <= report["spark"]["deadline_s"]
    assert report["federated"]["reached"] is True
    assert report["federated"]["accuracy"] >= report["federated"]["target"]
    assert report["federated"]["stopped_early"] is True
    assert report["federated"]["sites"] >= 6
    assert 4 <= report["federated"]["sites_trained"] <= report["federated"]["sites"]  # cohorts: not all in each round
    assert 1 <= report["federated"]["rounds"] < 20
    assert report["serving"]["met"] is True
    assert report["serving"]["p95_ms"] <= report["serving"]["objective_ms"]
    assert report["serving"]["requests"] >= 1000
    assert report["serving"]["errors"] == 0
    assert report["serving"]["accuracy"] > 0.85  # the model that was trained is the one that answers
    page = (tmp_path / "report" / "report.html").read_text()
    assert "data:image/svg+xml;base64," in page
    assert "http" not in page.split("base64,")[0]  # self-contained
    assert processes_of(tmp_path) == []
    assert groups_on_this_host() <= groups  # its host agent may have cleared what an earlier crash left, too


@pytest.mark.parametrize(("words", "number"), [("host agent ready", signal.SIGINT), ("ROMA ready", signal.SIGKILL)])
def test_interrupting_it_leaves_nothing_behind(
    start: Start, tmp_path: Path, words: str, number: signal.Signals
) -> None:
    groups = groups_on_this_host()
    demo = start()
    read_until(demo, words)
    running = processes_of(tmp_path)
    assert len(running) > 3
    demo.send_signal(number)
    demo.wait(timeout=120)
    _, alive = psutil.wait_procs(running, timeout=60)
    assert alive == []
    assert processes_of(tmp_path) == []
    assert groups_on_this_host() <= groups
