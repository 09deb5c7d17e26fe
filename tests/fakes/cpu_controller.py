"""A controller in a process of its own, for tests that kill it: limits one group until its standard input closes.

``python -m tests.fakes.cpu_controller direct:BASE|unix:SOCKET GROUP PID [fork]``
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from airflow_mlscale.cpu import detect, ports

LIMIT = ports.CpuShare.strict(0.125)
TTL_S = 1.5


def main(address: str, group: str, pid: str, *extra: str) -> None:
    kind, _, where = address.partition(":")
    port = detect.detect("cgroup-v1", base=where) if kind == "direct" else detect.detect("agent", address=address)
    port.open(group)
    port.admit(group, int(pid))
    port.apply(group, LIMIT, ports.Terms(ttl_s=TTL_S))
    if "fork" in extra and os.fork() == 0:  # a fork inherits every descriptor, the watchdog's pipe included
        sys.stdin.read()
        os._exit(0)
    print("ready", flush=True)
    while not select.select([sys.stdin], [], [], 0.25)[0]:
        port.apply(group, LIMIT, ports.Terms(ttl_s=TTL_S))


@contextmanager
def controller(address: str, group: str, pid: int, *extra: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running controller that has limited ``group``, in a process group of its own."""
    command = [sys.executable, "-m", "tests.fakes.cpu_controller", address, group, str(pid), *extra]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
    assert process.stdin
    assert process.stdout
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
