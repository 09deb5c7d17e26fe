"""Finding and preparing a version 2 hierarchy, in a directory that plays kernel."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports
from airflow_mlscale.cpu.adapters import cgroup, cgroup_v2
from tests.fakes import cpu_kernel, cpu_load


def port_at(mount: Path, kernel: cpu_kernel.FakeKernel, base: str | None = None) -> cgroup.CgroupPort:
    layout = cgroup_v2.find(base, mount=mount, files=kernel)
    assert layout is not None
    return cgroup.CgroupPort(layout, watched=False)


def test_what_the_kernel_is_told(tmp_path: Path) -> None:
    kernel = cpu_kernel.FakeKernel(tmp_path)
    port = port_at(tmp_path, kernel)
    port.open("a")
    kernel.log.clear()
    port.apply("a", ports.CpuShare.strict(0.5))
    # 800 · 0.5, 100 ms · 0.5, and as much burst
    assert kernel.log == [("cpu.weight", "400"), ("cpu.max", "50000 100000"), ("cpu.max.burst", "50000")]
    kernel.log.clear()
    port.apply("a", ports.CpuShare.strict(0.5))
    assert kernel.log == []
    port.apply("a", ports.UNMANAGED)
    assert kernel.log == [("cpu.weight", "100"), ("cpu.max", "max 100000"), ("cpu.max.burst", "0")]


def test_a_ceiling_of_the_whole_host_is_no_quota(tmp_path: Path) -> None:
    kernel = cpu_kernel.FakeKernel(tmp_path)
    port = port_at(tmp_path, kernel)
    port.open("a")
    kernel.log.clear()
    granted = port.apply("a", ports.CpuShare(guaranteed_cores=0, ceiling_cores=port.host_cores))
    assert granted == ports.CpuShare(guaranteed_cores=0, ceiling_cores=port.host_cores)
    assert kernel.log == [("cpu.weight", "1")]  # and not the idle class


def test_the_controller_is_enabled_for_the_groups(tmp_path: Path) -> None:
    kernel = cpu_kernel.FakeKernel(tmp_path)
    port_at(tmp_path, kernel, "some/base")
    assert (tmp_path / "cgroup.subtree_control").read_text() == ""
    assert ("cgroup.subtree_control", "+cpu") in kernel.log


def test_without_the_controller_there_is_nothing_to_use(tmp_path: Path) -> None:
    kernel = cpu_kernel.FakeKernel(tmp_path)
    (tmp_path / "cgroup.controllers").write_text("hugetlb")  # the others are bound to version 1
    assert cgroup_v2.find(mount=tmp_path, files=kernel) is None


def test_an_old_kernel_without_idle_class_and_burst(tmp_path: Path) -> None:
    kernel = cpu_kernel.FakeKernel(tmp_path, without=("cpu.idle", "cpu.max.burst"))
    port = port_at(tmp_path, kernel)
    port.open("a")
    port.apply("a", ports.IDLE)
    assert port.groups()[0].share == ports.IDLE
    kernel.log.clear()
    port.apply("a", ports.CpuShare.strict(0.5))
    assert kernel.log == [("cpu.weight", "400"), ("cpu.max", "50000 100000")]


def test_this_process_moves_out_of_its_own_delegated_group(tmp_path: Path) -> None:
    kernel = cpu_kernel.FakeKernel(tmp_path)
    kernel.write(tmp_path / "cgroup.subtree_control", "+cpu")
    kernel.make(tmp_path / "scope")
    with cpu_load.busy() as child:
        for pid in (os.getpid(), child):
            kernel.write(tmp_path / "scope" / "cgroup.procs", str(pid))
        port = port_at(tmp_path, kernel, "scope")
        assert set(kernel.read(tmp_path / "scope" / cgroup_v2.LEAF / "cgroup.procs").split()) == {
            str(os.getpid()),
            str(child),
        }
    port.open("a")
    assert [info.name for info in port.groups()] == ["a"]


def test_a_group_with_strangers_is_left_alone(tmp_path: Path) -> None:
    kernel = cpu_kernel.FakeKernel(tmp_path)
    kernel.write(tmp_path / "cgroup.subtree_control", "+cpu")
    kernel.make(tmp_path / "scope")
    for pid in (os.getpid(), os.getppid()):
        kernel.write(tmp_path / "scope" / "cgroup.procs", str(pid))
    assert cgroup_v2.find("scope", mount=tmp_path, files=kernel) is None
    assert not (tmp_path / "scope" / cgroup_v2.LEAF).exists()


def test_a_quota_of_the_base_limits_the_host(tmp_path: Path) -> None:
    kernel = cpu_kernel.FakeKernel(tmp_path)
    port_at(tmp_path, kernel, "container")
    kernel.write(tmp_path / "container" / "cpu.max", "50000 100000")
    assert port_at(tmp_path, kernel, "container").host_cores == 0.5


def test_what_the_kernel_refuses_is_worth_another_try(tmp_path: Path) -> None:
    class Refusing(cpu_kernel.FakeKernel):
        def _write_cpu_weight(self, path: Path, value: str) -> None:
            raise OSError(errno.EPERM, "not permitted", str(path))

    port = port_at(tmp_path, Refusing(tmp_path))
    port.open("a")
    with pytest.raises(errors.TransientError, match=r"'a'.*not permitted"):
        port.apply("a", ports.CpuShare.strict(0.5))
