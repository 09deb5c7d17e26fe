"""That nothing a command starts outlives its owner: real processes, really killed."""

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

from airflow_mlscale import errors
from airflow_mlscale.runtime import processes

# A command that starts a daemon (double fork, own session) and a stubborn child that ignores SIGTERM.
COMMAND = """
import os, subprocess, sys, time
where = sys.argv[1]
def tell(name, *pids):
    open(f'{where}/{name}', 'w').write(' '.join(map(str, pids)))
    os.rename(f'{where}/{name}', f'{where}/{name}.pid')
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        tell('daemon', os.getpid())
        time.sleep(600)
    os._exit(0)
os.wait()
stubborn = '''
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], 'w').close()
time.sleep(600)
'''
child = subprocess.Popen([sys.executable, '-c', stubborn, f'{where}/stubborn.ready'])
tell('own', os.getpid(), child.pid)
child.wait()
"""
OWNER = """
import sys
from pathlib import Path
from airflow_mlscale.runtime import processes
child = processes.spawn('c', [sys.executable, '-c', sys.argv[1], sys.argv[2]], grace_s=1.0)
print(child.pid, flush=True)
sys.stdin.read()
"""


def command(directory: Path) -> list[str]:
    return [sys.executable, "-c", COMMAND, str(directory)]


def started(directory: Path) -> list[psutil.Process]:
    """The command, its stubborn child and its daemon, once all run."""
    files = [directory / name for name in ("own.pid", "daemon.pid", "stubborn.ready")]
    processes.wait_until(lambda: all(file.exists() for file in files), what="command", timeout_s=60, poll_s=0.02)
    return [psutil.Process(int(pid)) for file in files[:2] for pid in file.read_text().split()]


def wait_until_ended(victims: list[psutil.Process]) -> None:
    processes.wait_until(
        lambda: not any(runs(victim) for victim in victims), what="end of all", timeout_s=60, poll_s=0.02
    )


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, list[psutil.Process]]]:
    """A process that owns a command: itself, its guard's id, and all that the command started."""
    arguments = [sys.executable, "-c", OWNER, COMMAND, str(tmp_path)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    try:
        guard = int(process.stdout.readline())
        yield process, guard, started(tmp_path)
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


def test_ending_a_child_ends_all_it_started(tmp_path: Path) -> None:
    child = processes.spawn("c", command(tmp_path), grace_s=1.0)
    try:
        all_of_it = started(tmp_path)
        assert len(all_of_it) == 3
        assert child.command_pid() == all_of_it[0].pid
    finally:
        code = child.end()
    assert code == 128 + signal.SIGTERM
    assert not any(runs(process) for process in all_of_it)
    assert child.command_pid() is None


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killing_the_owner_ends_all(
    owner: tuple[subprocess.Popen[bytes], int, list[psutil.Process]], how: signal.Signals
) -> None:
    process, guard, all_of_it = owner
    process.send_signal(how)
    process.wait()
    wait_until_ended([*all_of_it, *guards(guard)])


@pytest.mark.parametrize("victim", ["guard", "its twin", "both"])
def test_killing_a_guard_ends_all(
    owner: tuple[subprocess.Popen[bytes], int, list[psutil.Process]], victim: str
) -> None:
    _, guard, all_of_it = owner
    (twin,) = psutil.Process(guard).children()
    if victim in ("its twin", "both"):
        twin.suspend() if victim == "both" else twin.kill()
    if victim in ("guard", "both"):
        os.kill(guard, signal.SIGKILL)
    if victim == "both":
        twin.kill()
        wait_until_ended(all_of_it[:1])  # then the kernel kills the command, but nobody is left for the rest
        for process in all_of_it[1:]:
            process.kill()
    wait_until_ended([*all_of_it, twin])


def guards(pid: int) -> list[psutil.Process]:
    try:
        return [psutil.Process(pid), *psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return []


def test_a_command_that_ends_by_itself_takes_its_daemon_along(tmp_path: Path) -> None:
    told = "while not os.path.exists(f'{where}/daemon.pid'): time.sleep(0.01)\n"
    code = COMMAND.replace("child.wait()", told + "child.kill(); child.wait(); sys.exit(3)")
    child = processes.spawn("c", [sys.executable, "-c", code, str(tmp_path)], grace_s=1.0)
    try:
        assert child.wait(60) == 3
        assert not psutil.pid_exists(int((tmp_path / "daemon.pid").read_text()))
    finally:
        child.end()


@pytest.mark.parametrize(
    ("line", "code"),
    [(["true"], 0), (["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 137), (["/no/such"], 127)],
)
def test_exit_codes_come_through(line: list[str], code: int, tmp_path: Path) -> None:
    child = processes.spawn("c", line, log_path=tmp_path / "log")
    try:
        assert child.wait(60) == code
    finally:
        child.end()
    assert code != 127 or "cannot start '/no/such'" in (tmp_path / "log").read_text()


def test_output_environment_and_directory(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "c.log"
    child = processes.spawn(
        "c",
        ["sh", "-c", "echo $WHAT; pwd; echo wrong >&2"],
        env={**os.environ, "WHAT": "that"},
        cwd=tmp_path,
        log_path=log,
    )
    try:
        assert child.wait(60) == 0
    finally:
        child.end()
    assert log.read_text().split() == ["that", str(tmp_path), "wrong"]


class TestServices:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("MLSCALE_HOME", str(tmp_path / "home"))
        yield
        for found in processes.services():
            processes.end_service(found.name)

    def test_a_service_outlives_who_started_it_and_is_found_again(self, tmp_path: Path) -> None:
        code = (
            "import sys\nfrom airflow_mlscale.runtime import processes\n"
            "print(processes.detach('x.y', sys.argv[1:], details={'at': 'home'}, grace_s=1.0).pid)"
        )
        pid = int(subprocess.check_output([sys.executable, "-c", code, *command(tmp_path)]))
        all_of_it = started(tmp_path)
        found = processes.service("x.y")
        assert found is not None
        assert (found.pid, found.details, found.command) == (pid, {"at": "home"}, command(tmp_path))
        assert processes.command_pid(found.pid) == all_of_it[0].pid
        assert [each.name for each in processes.services("x")] == ["x.y"]
        assert processes.services("y") == []

        assert processes.end_service("x.y")
        assert not any(runs(process) for process in all_of_it)
        assert processes.service("x.y") is None
        assert not processes.end_service("x.y")

    def test_killing_the_guard_of_a_service_ends_all(self, tmp_path: Path) -> None:
        found = processes.detach("x", command(tmp_path), details={}, grace_s=1.0)
        all_of_it = started(tmp_path)
        os.kill(found.pid, signal.SIGKILL)
        wait_until_ended(all_of_it)
        os.waitpid(found.pid, 0)
        assert processes.service("x") is None

    def test_a_reused_process_id_is_not_taken_for_the_service(self, tmp_path: Path) -> None:
        processes.detach("x", ["sleep", "600"], details={}, grace_s=1.0)
        path = processes.home() / "run" / "x.json"
        record = json.loads(path.read_text())
        processes.end_service("x")
        path.write_text(json.dumps({**record, "pid": os.getpid()}))
        assert processes.service("x") is None
        assert not processes.end_service("x")
        assert not path.exists()

    @pytest.mark.parametrize("content", ["", "{", "{}", '{"unknown": 1}'])
    def test_a_broken_record_is_no_service(self, content: str) -> None:
        path = processes.home() / "run" / "x.json"
        path.parent.mkdir(parents=True)
        path.write_text(content)
        assert processes.service("x") is None


def always(value: bool) -> Callable[[], bool]:
    return lambda: value


class TestWaiting:
    def test_it_returns_when_ready(self) -> None:
        answers = iter([False, False, True])
        processes.wait_until(lambda: next(answers), what="it", timeout_s=60, poll_s=0.001)
        assert list(answers) == []

    def test_an_early_end_shows_the_log(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_text("\n".join(f"line {number}" for number in range(100)))
        with pytest.raises(errors.TransientError, match="it ended while starting") as caught:
            processes.wait_until(always(False), what="it", timeout_s=60, alive=always(False), log_path=tmp_path / "log")
        assert "line 99" in str(caught.value)
        assert "line 84" not in str(caught.value)  # 15 lines: 85 to 99

    def test_it_gives_up(self) -> None:
        with pytest.raises(errors.TransientError, match="it was not ready after 0 s"):
            processes.wait_until(always(False), what="it", timeout_s=0.0, poll_s=0.001)


def test_free_ports_can_be_bound() -> None:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", processes.free_port()))


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path))
    assert processes.home() == tmp_path
    monkeypatch.delenv("MLSCALE_HOME")
    assert processes.home() == Path.home() / ".mlscale"


ORPHAN_MAKER = """
import os, sys, time
pid = os.fork()
if pid == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], 'w').write(str(os.getpid()))
        os._exit(0)
    os._exit(0)
os.waitpid(pid, 0)
time.sleep(600)
"""


def test_a_guard_reaps_orphans_while_its_command_runs(tmp_path: Path) -> None:
    """An orphan left as a zombie would look alive to everybody who waits for its end."""
    note = tmp_path / "orphan"
    child = processes.spawn("c", [sys.executable, "-c", ORPHAN_MAKER, str(note)], grace_s=1.0)
    try:
        processes.wait_until(
            lambda: note.exists() and bool(text := note.read_text()) and not psutil.pid_exists(int(text)),
            what="reaping of the orphan",
            timeout_s=30,
            poll_s=0.02,
        )
        assert child.poll() is None
    finally:
        child.end()
