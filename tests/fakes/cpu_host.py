"""A part of this machine's own cgroups that tests may use: a base directory that is gone afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import psutil
import pytest

from airflow_mlscale.cpu.adapters import cgroup_v1, mounts
from airflow_mlscale.runtime import processes

_numbers = count()


@contextmanager
def v1_base() -> Iterator[str]:
    """A fresh base below the mounts' root, relative to them; skips without a writable cgroup v1."""
    base = f"mlscale-test-{os.getpid()}-{next(_numbers)}"
    if cgroup_v1.find(base) is None:
        pytest.skip("no writable cgroup v1 cpu and cpuacct hierarchies on this machine")
    roots = {mounts.v1_mount(controller) for controller in ("cpu", "cpuacct")}
    cpu = mounts.v1_mount("cpu")
    assert cpu is not None
    # What is measured inside must not depend on what else the machine does.
    (cpu / base / "cpu.shares").write_text("16384")
    try:
        yield base
    finally:
        for root in roots:
            assert root is not None
            directory = root / base
            # Processes that a test ended may need a moment to leave; watchdogs remove what they still watch.
            processes.wait_until(
                lambda d=directory: _removed(d), what=f"removal of {directory}", timeout_s=30, poll_s=0.05
            )


def _removed(directory: os.PathLike[str]) -> bool:
    for path in sorted(mounts.Path(directory).glob("mlscale.*/"), reverse=True):
        members = [int(pid) for pid in (path / "cgroup.procs").read_text().split()]
        if any(psutil.pid_exists(pid) for pid in members):
            return False
        _rmdir(path)
    return _rmdir(directory)


def _rmdir(directory: os.PathLike[str]) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
