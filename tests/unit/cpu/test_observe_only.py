"""Metering by the process table: real process trees."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from airflow_mlscale.cpu import ports
from airflow_mlscale.cpu.adapters import observe_only

BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"


@contextmanager
def python(code: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that prints, and ends when its standard input closes."""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    try:
        yield process
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


def said(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout
    return process.stdout.readline().decode().strip()


@pytest.fixture
def port() -> observe_only.ObserveOnlyPort:
    port = observe_only.ObserveOnlyPort()
    port.open("a")
    return port


def test_what_was_used_before_does_not_count(port: observe_only.ObserveOnlyPort) -> None:
    with python(BURN.format(seconds=0.5) + "print('done', flush=True); input()") as process:
        assert said(process) == "done"
        port.admit("a", process.pid)
        assert port.usage("a").used_core_s < 0.3


def test_children_count_while_they_run_and_once_they_have_ended(port: observe_only.ObserveOnlyPort) -> None:
    child_code = BURN.format(seconds=0.4) + "print(1, flush=True); input()"
    code = (
        "import subprocess, sys\ninput()\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child_code!r}], stdin=subprocess.PIPE)\n"
        "input()\nchild.stdin.close(); child.wait(); print('reaped', flush=True); input()"
    )
    with python(code) as process:
        assert process.stdin
        port.admit("a", process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert said(process) == "1"
        running = port.usage("a").used_core_s
        assert 0.4 <= running < 1.5
        assert len(port.groups()[0].members) == 2
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert said(process) == "reaped"
        ended = port.usage("a").used_core_s
        assert running <= ended < running + 0.5  # the parent inherits it: not lost, not counted twice
        assert port.groups()[0].members == (process.pid,)


def test_what_ended_members_used_is_kept(port: observe_only.ObserveOnlyPort) -> None:
    with python(f"input()\n{BURN.format(seconds=0.4)}print('done', flush=True); input()") as process:
        assert process.stdin
        port.admit("a", process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert said(process) == "done"
        used = port.usage("a").used_core_s
        assert used >= 0.3
    assert port.usage("a").used_core_s == used
    assert port.groups() == [ports.GroupInfo(name="a", share=ports.UNMANAGED, members=())]


def test_a_daemon_that_left_its_parent_is_still_metered(port: observe_only.ObserveOnlyPort) -> None:
    code = (  # the daemon ends when the test closes standard input
        "import os, signal, sys\n"
        "if os.fork():\n    print('forked', flush=True); signal.pause()\n"
        f"os.setsid()\n{BURN.format(seconds=0.3)}\nprint('burnt', flush=True)\nsys.stdin.read()"
    )
    with python(code) as process:
        assert said(process) == "forked"
        port.admit("a", process.pid)
        (daemon,) = set(port.groups()[0].members) - {process.pid}
        assert said(process) == "burnt"
        process.kill()
        process.wait()
        assert port.groups()[0].members == (daemon,)
        assert port.usage("a").used_core_s >= 0.2


def test_nothing_is_enforced(port: observe_only.ObserveOnlyPort) -> None:
    assert not port.enforces
    port.admit("a", os.getpid())
    assert port.apply("a", ports.CpuShare.strict(0.5)) == ports.CpuShare.strict(0.5)
    assert port.entry_files("a") == ()
