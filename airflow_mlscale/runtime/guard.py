"""A tiny parent for one command, so that nothing the command starts can outlive its owner.

``python -m airflow_mlscale.runtime.guard [--detached] [--grace S] -- COMMAND…``

The guard makes itself the *subreaper* of the command, so descendants that daemonise still belong to it.
It ends them all (SIGTERM, then SIGKILL after the grace time) when the command exits, when it is told to
(SIGTERM, SIGINT) or, unless ``--detached``, when its owner dies: the owner holds the other end of standard
input and does nothing with it. If the guard itself is killed, the kernel kills the command.

Imports nothing outside the standard library until something has to be ended: it starts in milliseconds.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="guard")
    parser.add_argument("--detached", action="store_true")
    parser.add_argument("--grace", type=float, default=10.0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)

    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)

    def before_exec() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    owner = os.getppid()
    try:
        child = subprocess.Popen(
            options.command, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=before_exec
        )
    except OSError as exc:
        print(f"guard: cannot start {options.command[0]!r}: {exc}", file=sys.stderr)
        return 127
    watched = [signals] if options.detached else [signals, sys.stdin.fileno()]
    while child.poll() is None:
        # The owner's end of the pipe may have been inherited by a fork of it: its parenthood tells too.
        ready, _, _ = select.select(watched, [], [], None if options.detached else 2.0)
        if signals in ready:
            received = os.read(signals, 64)
            if any(number != signal.SIGCHLD for number in received):
                break
        elif ready or (not options.detached and os.getppid() != owner):
            break
    code = child.poll()
    end_descendants(options.grace)
    return code if code is not None and code >= 0 else 128 + signal.SIGTERM if code is None else 128 - code


def end_descendants(grace_s: float) -> None:
    """SIGTERM, then SIGKILL, everything that descends from this process, and reap it."""
    import psutil

    me = psutil.Process()
    deadline = time.monotonic() + grace_s
    told: set[int] = set()
    while alive := [p for p in me.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]:
        late = time.monotonic() > deadline
        for process in alive:
            if late or process.pid not in told:
                told.add(process.pid)
                try:
                    process.kill() if late else process.terminate()
                except psutil.NoSuchProcess:
                    pass
        _, left = psutil.wait_procs(alive, timeout=0.2)
        _reap()
    _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    sys.exit(main())
