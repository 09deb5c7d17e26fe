"""The owner's side of the watchdog: a process that outlives its owner just long enough to restore its groups."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Requests to end that a watchdog does not follow before it has restored its groups."""


class Watchdog:
    """Tells a child process (`airflow_mlscale.cpu.watchdog`) which groups to restore when this process ends.

    Started at the first group, replaced if it was killed, ended by `end`. Not thread-safe: its port locks.
    """

    def __init__(self, layout_arguments: Sequence[str]) -> None:
        self._layout = list(layout_arguments)
        self._groups: set[str] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        """The writing end; the watchdog holds the other as its standard input."""

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def watch(self, group: str) -> None:
        """From now on, restore and clean this group when the owner ends."""
        if group in self._groups and self.pid is not None:
            return
        self._groups.add(group)
        if not self._told(f"+{group}\n"):
            self._start()

    def forget(self, group: str) -> None:
        """The group is gone."""
        self._groups.discard(group)
        self._told(f"-{group}\n")

    def end(self) -> None:
        """End the process; groups still watched are restored by it."""
        if self._process:
            os.close(self._pipe)
            self._process.wait()
            self._process = None
        self._groups.clear()

    def _told(self, line: str) -> bool:
        if self.pid is None:
            return False
        try:
            os.write(self._pipe, line.encode())
        except BrokenPipeError:
            return False
        return True

    def _start(self) -> None:
        if self._process:  # it was killed
            os.close(self._pipe)
            self._process.wait()
        # The id now, not at construction: after a fork the fork is the owner, of a watchdog of its own.
        command = [sys.executable, "-m", "airflow_mlscale.cpu.watchdog", str(os.getpid()), *self._layout]
        reading, self._pipe = os.pipe()
        # Inherited by the watchdog, so that there is no moment at its start when a signal could end it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)
        try:
            # A session of its own: a signal to the owner's process group or terminal must not reach it.
            self._process = subprocess.Popen(command, stdin=reading, stdout=subprocess.DEVNULL, start_new_session=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(reading)
        os.write(self._pipe, "".join(f"+{group}\n" for group in sorted(self._groups)).encode())
