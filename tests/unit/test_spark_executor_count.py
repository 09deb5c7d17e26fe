"""The number of executors as an actuator: when it changes, and that the application notices nothing."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports
from airflow_mlscale.spark.adapters import executor_count, executor_runner
from airflow_mlscale.spark.adapters.executor_count import CountSettings, ExecutorCountPort
from tests.fakes import clock as fake_clock
from tests.fakes import cpu as fake_cpu

SETTINGS = CountSettings(executor_cores=2, most=4)


@pytest.mark.parametrize(
    ("cores", "now", "count"),
    [
        (0.0, 1, 1),  # never none
        (2.0, 1, 1),
        (2.1, 1, 2),  # up as soon as it is needed
        (99.0, 1, 4),
        (5.9, 4, 4),  # 2.95 executors: three would be just enough
        (5.7, 4, 3),  # 2.85 and a tenth
        (0.5, 4, 1),
    ],
)
def test_a_guarantee_needs_so_many_executors(cores: float, now: int, count: int) -> None:
    assert count == executor_count.wanted(SETTINGS, cores, now)


@pytest.mark.parametrize("bad", [{"executor_cores": 0}, {"most": 0}, {"least": 0}])
def test_bad_settings_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(errors.InvalidInputError, match="must be at least 1"):
        CountSettings(**{"executor_cores": 1, "most": 1, **bad})


class Driver:
    """Listens where the driver would."""

    def __init__(self, address: Path) -> None:
        self.asked: list[int] = []
        self.answer: dict[str, object] = {"executors": 4, "leaving": []}
        self.server = socket.socket(socket.AF_UNIX)
        self.server.bind(str(address))
        self.server.listen()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while True:
            connection, _ = self.server.accept()
            with connection, connection.makefile("rw") as lines:
                line = lines.readline()
                if not line:
                    return
                self.asked.append(json.loads(line)["executors"])
                print(json.dumps(self.answer), file=lines, flush=True)

    def end(self, address: Path) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(address))
        self.thread.join()
        self.server.close()


@contextmanager
def driver(port: ExecutorCountPort) -> Iterator[Driver]:
    address = port.socket
    running = Driver(address)
    try:
        yield running
    finally:
        running.end(address)


def test_a_run_that_is_refused_before_it_starts_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = ExecutorCountPort(fake_cpu.FakeCpu(), SETTINGS, group="job")
    assert list(tmp_path.iterdir()) == []
    made.open("job")
    assert made.socket.parent.parent == tmp_path
    made.close("job")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def clock() -> fake_clock.FakeClock:
    return fake_clock.FakeClock()


@pytest.fixture
def port(clock: fake_clock.FakeClock) -> Iterator[ExecutorCountPort]:
    made = ExecutorCountPort(fake_cpu.FakeCpu(), SETTINGS, group="job", clock=clock)
    made.open("job")
    made.open("job-driver")
    yield made
    made.close("job")
    assert not made.socket.parent.exists()


def need(port: ExecutorCountPort, cores: float) -> float:
    return port.apply("job", ports.CpuShare.strict(cores)).guaranteed_cores


def test_nothing_is_asked_before_the_driver_listens(port: ExecutorCountPort) -> None:
    assert need(port, 1.0) == 8.0  # all that there are: the application takes what it can get
    assert (port.host_cores, port.enforces, port.name) == (8.0, True, "executors")


def test_the_number_follows_the_guarantee_at_a_pace(port: ExecutorCountPort, clock: fake_clock.FakeClock) -> None:
    with driver(port) as running:
        assert need(port, 1.0) == 2.0
        assert need(port, 5.0) == 2.0  # not again so soon
        clock.advance(SETTINGS.settle_s)
        assert need(port, 5.0) == 6.0
        assert need(port, 5.0) == 6.0  # no change, nothing asked
        clock.advance(SETTINGS.repeat_s)
        assert need(port, 5.0) == 6.0  # some may have come since: asked again
        port.apply("job", ports.UNMANAGED)  # the application has ended: nothing to give up or to ask for
        port.apply("job-driver", ports.CpuShare(guaranteed_cores=1.0))
        assert running.asked == [1, 3, 3]


def test_a_driver_without_a_context_is_asked_again(port: ExecutorCountPort) -> None:
    with driver(port) as running:
        running.answer = {"executors": None}
        assert need(port, 1.0) == 8.0
        running.answer = {"executors": 4, "leaving": ["1", "2", "3"]}
        assert need(port, 1.0) == 2.0
        assert running.asked == [1, 1]


def test_a_driver_that_cannot_is_told_once(port: ExecutorCountPort, caplog: pytest.LogCaptureFixture) -> None:
    with driver(port) as running:
        running.answer = {"error": "Py4JError: no"}
        assert [need(port, 1.0) for _ in range(3)] == [8.0, 8.0, 8.0]
    assert sum("Py4JError: no" in record.message for record in caplog.records if record.levelname == "WARNING") == 1


def test_groups_get_their_guarantee_but_no_ceiling(port: ExecutorCountPort) -> None:
    with driver(port):
        need(port, 1.0)
    assert port._meter.groups()[0].share == ports.CpuShare(guaranteed_cores=1.0)
    assert [info.share for info in port.groups()] == [ports.CpuShare.strict(2.0), ports.UNMANAGED]
    with pytest.raises(KeyError):
        port.apply("nobody", ports.IDLE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"local_mode": True}, "a local master has no executors"),
        ({"in_cluster": True}, "use deploy_mode='client'"),
        ({"application": "job.jar"}, "only a PySpark driver"),
        ({"given": {"spark.dynamicAllocation.enabled": "true"}}, r"set spark\.dynamicAllocation\.enabled=false"),
    ],
)
def test_what_has_no_number_to_change_is_refused(arguments: dict[str, object], message: str) -> None:
    executor_count.check(application="job.py")
    with pytest.raises(errors.InvalidInputError, match=f"allocator='executors': .*{message}"):
        executor_count.check(**arguments)


def test_the_drivers_own_python_is_kept(port: ExecutorCountPort) -> None:
    for given, env, python in (
        ({}, {}, sys.executable),
        ({}, {"PYSPARK_PYTHON": "/a"}, "/a"),
        ({}, {"PYSPARK_PYTHON": "/a", "PYSPARK_DRIVER_PYTHON": "/b"}, "/b"),
        ({"spark.pyspark.python": "/c"}, {"PYSPARK_DRIVER_PYTHON": "/b"}, "/c"),
        ({"spark.pyspark.python": "/c", "spark.pyspark.driver.python": "/d"}, {}, "/d"),
    ):
        assert executor_count.launch_env(port, given, env)[executor_count.DRIVER_PYTHON] == python
    own = executor_count.launch_properties({"spark.executor.memory": "1g"}, SETTINGS)
    assert (own["spark.executor.cores"], own["spark.executor.memory"]) == ("2", "1g")
    assert Path(own[executor_count.PYTHON_PROPERTY]).stat().st_mode & 0o111


APPLICATION = """
import json, os, sys
import beside
class Mine: pass
print(json.dumps({"argv": sys.argv, "name": __name__, "file": __file__, "path": sys.path[0],
                  "module": Mine.__module__, "env": "MLSCALE_EXECUTORS" in os.environ, "beside": beside.VALUE}))
sys.stdout.flush()
sys.stdin.readline()
def fail():
    raise ValueError("no luck today")
if sys.argv[1] == "exit":
    sys.exit(7)
fail()
"""


@pytest.mark.parametrize(("how", "code"), [("exit", 7), ("raise", 1)])
def test_the_application_runs_as_by_itself(tmp_path: Path, how: str, code: int) -> None:
    application = tmp_path / "job.py"
    application.write_text(APPLICATION)
    (tmp_path / "beside.py").write_text("VALUE = 42")
    address = tmp_path / "s"
    command = [sys.executable, executor_runner.__file__, str(application), how, "--flag"]
    env = {**os.environ, executor_runner.SOCKET: str(address)}
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        seen = json.loads(process.stdout.readline())
        assert seen == {
            "argv": [str(application), how, "--flag"],
            "name": "__main__",
            "file": str(application),
            "path": str(tmp_path),
            "module": "__main__",
            "env": False,
            "beside": 42,
        }
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(address))
            with connection.makefile("rw") as lines:
                print("nonsense", file=lines, flush=True)
                assert "JSONDecodeError" in json.loads(lines.readline())["error"]
        _, said = process.communicate("go\n", timeout=30)
        assert process.returncode == code
        if how == "raise":
            first, second, *rest = said.splitlines()
            assert first == "Traceback (most recent call last):"
            assert second.startswith(f'  File "{application}"')
            assert rest[-1] == "ValueError: no luck today"


def test_before_there_is_a_context_nothing_is_changed() -> None:
    assert executor_runner.answer('{"executors": 2}') == {"executors": None}
