"""Processes that keep a core busy, and that cannot outlive the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from airflow_mlscale.runtime import processes


@contextmanager
def busy() -> Iterator[int]:
    """A process that never rests; yields its process id and ends it."""
    child = processes.spawn("busy", ["sh", "-c", "while :; do :; done"], grace_s=1.0)
    try:
        guard = psutil.Process(child.pid)
        processes.wait_until(
            lambda: bool(_commands(guard)),
            what="busy process",
            timeout_s=20,
            alive=lambda: child.poll() is None,
            poll_s=0.02,
        )
        yield _commands(guard)[0]
    finally:
        child.end()


def _commands(guard: psutil.Process) -> list[int]:
    # Between fork and exec the child still is a copy of the guard.
    return [child.pid for child in guard.children() if child.name() == "sh"]
