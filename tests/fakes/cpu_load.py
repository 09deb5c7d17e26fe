"""Processes that keep a core busy, and that cannot outlive the test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow_mlscale.runtime import processes


@contextmanager
def busy() -> Iterator[int]:
    """A process that never rests; yields its process id and ends it."""
    child = processes.spawn("busy", ["sh", "-c", "while :; do :; done"], grace_s=1.0)
    try:
        processes.wait_until(
            lambda: child.command_pid() is not None,
            what="busy process",
            timeout_s=20,
            alive=lambda: child.poll() is None,
            poll_s=0.02,
        )
        pid = child.command_pid()
        assert pid is not None
        yield pid
    finally:
        child.end()
