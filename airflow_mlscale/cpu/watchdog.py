"""A process that restores CPU groups when their owner ends, however it ends.

``python -m airflow_mlscale.cpu.watchdog OWNER_PID v1 CPU_DIR CPUACCT_DIR | v2 DIR IDLE BURST``

On standard input the owner writes ``+group`` and ``-group`` lines. When that pipe closes or the owner's
process ends (a fork of it may still hold the pipe), every group on the list goes back to the safe share
and is removed once it is empty. Signals that ask it to end only shorten the wait for that: it ends right
after its owner.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from pathlib import Path

from airflow_mlscale.cpu.adapters import cgroup, cgroup_v1, cgroup_v2, watchdog

log = logging.getLogger("airflow_mlscale.cpu.watchdog")

LINGER_S = 15.0
"""How long the groups' last processes are given to end, so that the directories can be removed."""
LINGER_WHEN_TOLD_S = 1.0
"""The same, once a signal asked to end."""


def main(arguments: list[str] | None = None) -> int:
    """Watch until the owner ends, then restore; returns the exit code."""
    owner, *rest = sys.argv[1:] if arguments is None else arguments
    signal.pthread_sigmask(signal.SIG_BLOCK, watchdog.BLOCKED)
    watched = wait_for_end(int(owner))
    if watched:
        clean(layout(rest), watched)
    return 0


def layout(arguments: list[str]) -> cgroup.Layout:
    """Build what `cgroup.Layout.arguments` describes."""
    match arguments:
        case ["v1", cpu, cpuacct]:
            return cgroup_v1.V1(Path(cpu), Path(cpuacct))
        case ["v2", base, idle_class, burst]:
            return cgroup_v2.V2(Path(base), idle_class=idle_class == "1", burst=burst == "1")
        case _:
            raise SystemExit(f"watchdog: unknown layout {arguments}")


def wait_for_end(owner: int) -> set[str]:
    """Block until the owner ends or lets go; returns the groups on its list."""
    poll = select.poll()
    pipe = sys.stdin.fileno()
    os.set_blocking(pipe, False)
    poll.register(pipe, select.POLLIN)
    ended = os.getppid() != owner
    if not ended:
        poll.register(os.pidfd_open(owner), select.POLLIN)
    buffer = b""
    while not ended:
        ready = [descriptor for descriptor, _ in poll.poll()]
        ended = any(descriptor != pipe for descriptor in ready)
        chunk, closed = _drain(pipe)
        buffer += chunk
        ended = ended or closed
    return _listed((buffer + _drain(pipe)[0]).decode())


def clean(kernel: cgroup.Layout, groups: set[str]) -> None:
    """Restore all groups at once, then remove each as it empties."""
    for group in groups:
        try:
            cgroup.restore(kernel, group)
        except OSError as exc:
            log.warning("cannot restore CPU group %s: %s", group, exc)
    deadline = time.monotonic() + LINGER_S
    while groups and time.monotonic() < deadline:
        groups = {group for group in groups if not cgroup.remove(kernel, group)}
        # cgroup v1 has no event for "empty", so it is tried again and again
        if groups and signal.sigtimedwait(watchdog.BLOCKED, 0.1):
            deadline = min(deadline, time.monotonic() + LINGER_WHEN_TOLD_S)


def _drain(pipe: int) -> tuple[bytes, bool]:
    """Everything in the pipe now, and whether its writers are gone."""
    chunks: list[bytes] = []
    while True:
        try:
            chunk = os.read(pipe, 65536)
        except BlockingIOError:
            return b"".join(chunks), False
        if not chunk:
            return b"".join(chunks), True
        chunks.append(chunk)


def _listed(text: str) -> set[str]:
    groups: set[str] = set()
    for line in text.splitlines():
        (groups.add if line[0] == "+" else groups.discard)(line[1:])
    return groups


if __name__ == "__main__":
    sys.exit(main())
