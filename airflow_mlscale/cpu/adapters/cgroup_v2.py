"""cgroup v2: ``cpu.weight``, ``cpu.max``, ``cpu.max.burst`` and ``cpu.idle``; the meter is ``cpu.stat``."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from airflow_mlscale.cpu import levels, ports
from airflow_mlscale.cpu.adapters import cgroup, kernel_files, mounts

log = logging.getLogger(__name__)

_FILES = {"idle": "cpu.idle", "weight": "cpu.weight", "quota": "cpu.max", "burst": "cpu.max.burst"}
LEAF = "mlscale-self"
"""Where this process moves to when its own group is to have children: v2 allows processes only in leaves."""


@dataclass
class V2:
    """`cgroup.Layout` of version 2."""

    base: Path
    """Directory that the groups lie in; its ``cgroup.subtree_control`` has ``cpu``."""
    idle_class: bool = True
    burst: bool = True
    files: kernel_files.KernelFiles = field(default_factory=kernel_files.KernelFiles)

    name = "cgroup-v2"
    scale = levels.V2_WEIGHT

    def bases(self) -> tuple[Path, ...]:
        return (self.base,)

    def base_cores(self) -> float | None:
        if not self.files.exists(self.base / "cpu.max"):  # the real root has no limit
            return None
        quota, period = self.files.read(self.base / "cpu.max").split()
        return None if quota == "max" else int(quota) / int(period)

    def read(self, directory: Path) -> levels.Levels:
        quota = self.files.read(directory / "cpu.max").split()[0]
        return levels.Levels(
            weight=int(self.files.read(directory / "cpu.weight")),
            quota_us=None if quota == "max" else int(quota),
            burst_us=int(self.files.read(directory / "cpu.max.burst")) if self.burst else 0,
            idle=self.idle_class and self.files.read(directory / "cpu.idle").strip() == "1",
        )

    def write(self, directory: Path, step: levels.Write) -> None:
        value = str(step.value)
        if step.field == "quota":
            value = f"{'max' if step.value is None else step.value} {levels.PERIOD_US}"
        self.files.write(directory / _FILES[step.field], value)

    def usage(self, group: str) -> ports.CpuUsage:
        stat = mounts.pairs(self.files.read(self.base / (cgroup.PREFIX + group) / "cpu.stat"))
        return ports.CpuUsage(
            used_core_s=stat["usage_usec"] / 1e6,
            periods=stat.get("nr_periods", 0),
            throttled_periods=stat.get("nr_throttled", 0),
        )

    def arguments(self) -> list[str]:
        return ["v2", str(self.base), str(int(self.idle_class)), str(int(self.burst))]


def find(
    base: str | None = None, *, mount: Path | None = None, files: kernel_files.KernelFiles | None = None
) -> V2 | None:
    """The writable v2 hierarchy with a cpu controller, or None.

    Args:
        base: directory for the groups, relative to the mount; created if missing. The default is the
            mount's root or, where that is not writable, the group that this process is in (delegated to it).
        mount: where cgroup2 is mounted; found by default.
        files: how control files are read and written.
    """
    files = files or kernel_files.KernelFiles()
    mount = mount or mounts.v2_mount()
    if mount is None:
        return None
    directories = [mount, mount / mounts.own_group("").strip("/")] if base is None else [mount / base.strip("/")]
    for directory in directories:
        if os.access(mounts.nearest(directory), os.W_OK) and _prepared(directory, mount, files):
            return V2(directory, **_features(directory, files), files=files)
    return None


def _prepared(directory: Path, mount: Path, files: kernel_files.KernelFiles) -> bool:
    """Whether the cpu controller is, or could be, enabled for the children of ``directory``."""
    try:
        files.make(directory)
        if directory != mount and "cpu" not in files.read(directory / "cgroup.controllers").split():
            files.write(directory.parent / "cgroup.subtree_control", "+cpu")
        if "cpu" not in files.read(directory / "cgroup.controllers").split():
            return False
        if "cpu" not in files.read(directory / "cgroup.subtree_control").split():
            _move_to_leaf(directory, files)
            files.write(directory / "cgroup.subtree_control", "+cpu")
    except OSError as exc:
        log.debug("cgroup v2 at %s cannot be used: %s", directory, exc)
        return False
    return True


def _move_to_leaf(directory: Path, files: kernel_files.KernelFiles) -> None:
    """Make room for children in a group that only this process and its descendants are in."""
    pids = [int(pid) for pid in files.read(directory / "cgroup.procs").split()]
    if not pids or not cgroup.members_below(os.getpid(), iter(pids)):
        return  # empty, the real root, or not ours to move: the kernel decides
    files.make(directory / LEAF)
    for pid in pids:
        files.write(directory / LEAF / "cgroup.procs", str(pid))


def _features(directory: Path, files: kernel_files.KernelFiles) -> dict[str, bool]:
    """Which control files this kernel gives to a group; the root itself has none, so a child is asked."""
    probe = directory / (cgroup.PREFIX + f"probe-{os.getpid()}")
    files.make(probe)
    try:
        return {"idle_class": files.exists(probe / "cpu.idle"), "burst": files.exists(probe / "cpu.max.burst")}
    finally:
        files.remove(probe)
