"""A tiny parent for one command, so that nothing the command starts can outlive its owner.

``python -m airflow_mlscale.runtime.guard [--detached] [--grace S] -- COMMAND…``

The guard makes itself the *subreaper* of the command, so descendants that daemonise still belong to it.
It ends them all (SIGTERM, then SIGKILL after the grace time) when the command exits, when it is told to
(SIGTERM, SIGINT, SIGHUP) or, unless ``--detached``, when its owner dies: the owner holds the other end of
standard input and does nothing with it.

It is two processes, one below the other, each a subreaper: whichever is killed, the other one ends the rest.
Should both be killed at once, the kernel still kills the command.

Imports nothing outside the standard library until something has to be ended: it starts in milliseconds.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command below two guards; returns its exit code, or 128 + the signal that ended it."""
    parser = argparse.ArgumentParser(prog="guard")
    parser.add_argument("--detached", action="store_true")
    parser.add_argument("--grace", type=float, default=10.0)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)

    owner = os.getppid()
    signals = _become_guard()
    outer = os.getpid()
    inner = os.fork()
    if inner == 0:
        try:
            code = run(options.command, outer, options.grace)
        except BaseException as exc:  # a fork must never return into the caller's stack
            print(f"guard: {exc!r}", file=sys.stderr)
            code = 125
        sys.stderr.flush()
        os._exit(code)
    return watch(inner, owner, signals, detached=options.detached, grace_s=options.grace)


def watch(inner: int, owner: int, signals: int, *, detached: bool, grace_s: float) -> int:
    """The outer process: pass the end of the owner and signals on to the inner one, and clean up after it."""
    watched = [signals] if detached else [signals, sys.stdin.fileno()]
    code = None
    while code is None:
        # The owner's end of the pipe may have been inherited by a fork of it: its parenthood tells too.
        ready, _, _ = select.select(watched, [], [], None if detached else 2.0)
        told = signals in ready and any(number != signal.SIGCHLD for number in os.read(signals, 64))
        gone = not detached and (sys.stdin.fileno() in ready or os.getppid() != owner)
        if told or gone:
            watched = [signals]
            detached = True  # once is enough
            with contextlib.suppress(ProcessLookupError):
                os.kill(inner, signal.SIGTERM)
        code = _reaped().get(inner)
    end_descendants(grace_s)  # normally there are none: only if the inner process was killed
    return code


def run(command: list[str], outer: int, grace_s: float) -> int:
    """The inner process: start the command, wait until it ends or until told to end it, and end what is left."""
    signals = _become_guard()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != outer:
        return 128 + signal.SIGTERM
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            process_group=0,
            preexec_fn=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
        )
    except OSError as exc:
        print(f"guard: cannot start {command[0]!r}: {exc}", file=sys.stderr)
        return 127
    code = None
    while code is None:
        if any(number != signal.SIGCHLD for number in os.read(signals, 64)):
            code = 128 + signal.SIGTERM
        else:
            code = _reaped().get(child.pid)
    child.returncode = code  # its status was taken above
    end_descendants(grace_s)
    return code


def end_descendants(grace_s: float) -> None:
    """SIGTERM, then SIGKILL, everything that descends from this process, and reap it."""
    import psutil

    me = psutil.Process()
    deadline = time.monotonic() + grace_s
    told: set[int] = set()
    while alive := [process for process in me.children(recursive=True) if _runs(process)]:
        late = time.monotonic() > deadline
        for process in alive:
            if late or process.pid not in told:
                told.add(process.pid)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill() if late else process.terminate()
        psutil.wait_procs(alive, timeout=0.2)
        _reaped()
    _reaped()


def _become_guard() -> int:
    """Take in orphaned descendants; returns a descriptor on which the numbers of signals arrive."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return signals


def _runs(process: object) -> bool:
    import psutil

    assert isinstance(process, psutil.Process)  # noqa: S101 (for the type checker: psutil is imported late)
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # its own parent has reaped it
        return False


def _reaped() -> dict[int, int]:
    """Exit codes of all children that have ended, by process id.

    Orphans that came to this process are among them: left as zombies, they would look alive to who ended them.
    """
    codes = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            code = os.waitstatus_to_exitcode(status)
            codes[pid] = code if code >= 0 else 128 - code
    return codes


if __name__ == "__main__":
    sys.exit(main())
