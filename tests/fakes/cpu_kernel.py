"""A directory tree that plays the kernel's cgroup v2: the same files, the same refusals."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import psutil

from airflow_mlscale.cpu.adapters import kernel_files

_NEW_GROUP = {
    "cgroup.procs": "",
    "cgroup.controllers": "cpu",
    "cgroup.subtree_control": "",
    "cpu.weight": "100",
    "cpu.idle": "0",
    "cpu.max": "max 100000",
    "cpu.max.burst": "0",
}


class FakeKernel(kernel_files.KernelFiles):
    """`KernelFiles` on ordinary directories below ``mount``."""

    def __init__(self, mount: Path, *, without: tuple[str, ...] = ()) -> None:
        """Lay out the root; ``without`` names files that this kernel is too old for."""
        self.mount = mount
        self.new_group = {name: value for name, value in _NEW_GROUP.items() if name not in without}
        self.log: list[tuple[str, str]] = []
        """Every write that was accepted: file name and value."""
        for name in ("cgroup.procs", "cgroup.controllers", "cgroup.subtree_control"):
            (mount / name).write_text("cpu" if name == "cgroup.controllers" else "")

    def make(self, directory: Path) -> None:
        if directory.exists():
            return
        self.make(directory.parent)
        directory.mkdir()
        enabled = "cpu" in (directory.parent / "cgroup.subtree_control").read_text()
        for name, value in self.new_group.items():
            if enabled or not name.startswith("cpu."):
                (directory / name).write_text(value if enabled or name != "cgroup.controllers" else "")

    def remove(self, directory: Path) -> None:
        if not directory.exists():
            raise FileNotFoundError(errno.ENOENT, "no such group", str(directory))
        if self._members(directory):
            raise OSError(errno.EBUSY, "processes are in it", str(directory))
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()

    def read(self, path: Path) -> str:
        if path.name == "cgroup.procs":
            return "\n".join(str(pid) for pid in self._members(path.parent))
        if path.name == "cpu.stat":
            return f"usage_usec {self._used_us(path.parent)}\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n"
        return super().read(path)

    def write(self, path: Path, value: str) -> None:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        check = getattr(self, "_write_" + path.name.replace(".", "_"))
        check(path, value)
        self.log.append((path.name, value))

    def _write_cpu_weight(self, path: Path, value: str) -> None:
        if (path.parent / "cpu.idle").exists() and (path.parent / "cpu.idle").read_text() == "1":
            raise OSError(errno.EINVAL, "the group is idle", str(path))
        if not 1 <= int(value) <= 10_000:
            raise OSError(errno.ERANGE, "out of range", str(path))
        path.write_text(value)

    def _write_cpu_idle(self, path: Path, value: str) -> None:
        if path.read_text() != value:
            (path.parent / "cpu.weight").write_text("0" if value == "1" else "100")
        path.write_text(value)

    def _write_cpu_max(self, path: Path, value: str) -> None:
        quota, period = value.split()
        burst = path.parent / "cpu.max.burst"
        if period != "100000" or (quota != "max" and int(quota) < 1000):
            raise OSError(errno.EINVAL, "quota or period out of range", str(path))
        if quota != "max" and burst.exists() and int(burst.read_text()) > int(quota):
            raise OSError(errno.EINVAL, "the burst is above the quota", str(path))
        path.write_text(value)

    def _write_cpu_max_burst(self, path: Path, value: str) -> None:
        quota = (path.parent / "cpu.max").read_text().split()[0]
        if quota != "max" and int(value) > int(quota):
            raise OSError(errno.EINVAL, "the burst is above the quota", str(path))
        path.write_text(value)

    def _write_cgroup_subtree_control(self, path: Path, value: str) -> None:
        if path.parent != self.mount and self._members(path.parent):
            raise OSError(errno.EBUSY, "processes are in it", str(path))
        if "cpu" in path.read_text():
            return
        for child in path.parent.glob("*/"):
            for name, content in self.new_group.items():
                if name.startswith("cpu.") or name == "cgroup.controllers":
                    (child / name).write_text(content)
        path.write_text(value.removeprefix("+"))

    def _write_cgroup_procs(self, path: Path, value: str) -> None:
        if not psutil.pid_exists(int(value)):
            raise ProcessLookupError(errno.ESRCH, "no such process")
        for other in self.mount.rglob("cgroup.procs"):
            other.write_text("\n".join(pid for pid in other.read_text().split() if pid != value))
        path.write_text(path.read_text() + f"\n{value}")

    def _members(self, directory: Path) -> list[int]:
        """Members that are still alive, as far as they joined or were moved; children are not followed."""
        pids = [int(pid) or os.getpid() for pid in (directory / "cgroup.procs").read_text().split()]
        return [pid for pid in pids if psutil.pid_exists(pid)]

    def _used_us(self, directory: Path) -> int:
        times = [psutil.Process(pid).cpu_times() for pid in self._members(directory)]
        return int(sum(time.user + time.system for time in times) * 1e6)
