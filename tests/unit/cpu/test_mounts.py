"""Reading the kernel's tables of mounts and groups."""

from __future__ import annotations

from pathlib import Path

from airflow_mlscale.cpu.adapters import mounts

SEPARATE = """tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0
cgroup /sys/fs/cgroup/cpuacct cgroup rw,relatime,cpuacct 0 0
cgroup /sys/fs/cgroup/cpuset cgroup rw,relatime,cpuset 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
"""
TOGETHER = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n"
V2_ONLY = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n"


def test_separate_hierarchies() -> None:
    assert mounts.v1_mount("cpu", SEPARATE) == Path("/sys/fs/cgroup/cpu")
    assert mounts.v1_mount("cpuacct", SEPARATE) == Path("/sys/fs/cgroup/cpuacct")
    assert mounts.v2_mount(SEPARATE) == Path("/sys/fs/cgroup/unified")


def test_hierarchies_mounted_together() -> None:
    assert (
        mounts.v1_mount("cpu", TOGETHER) == mounts.v1_mount("cpuacct", TOGETHER) == Path("/sys/fs/cgroup/cpu,cpuacct")
    )
    assert mounts.v2_mount(TOGETHER) is None


def test_version_2_alone() -> None:
    assert mounts.v1_mount("cpu", V2_ONLY) is None
    assert mounts.v2_mount(V2_ONLY) == Path("/sys/fs/cgroup")


def test_own_group() -> None:
    table = "3:cpuset:/\n2:cpu,cpuacct:/user.slice\n1:name=systemd:/init\n0::/user.slice/user-1000.slice/run-1.scope\n"
    assert mounts.own_group("cpuacct", table) == "/user.slice"
    assert mounts.own_group("cpu", table) == "/user.slice"
    assert mounts.own_group("", table) == "/user.slice/user-1000.slice/run-1.scope"
    assert mounts.own_group("memory", table) == "/"


def test_counters() -> None:
    assert mounts.pairs("nr_periods 3\nnr_throttled 1\n") == {"nr_periods": 3, "nr_throttled": 1}
    assert mounts.pairs("") == {}
