"""cgroup v1: ``cpu.shares``, ``cpu.cfs_quota_us`` and ``cpu.idle``; the meter is the cpuacct hierarchy."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from airflow_mlscale.cpu import levels, ports
from airflow_mlscale.cpu.adapters import cgroup, kernel_files, mounts

_FILES = {"idle": "cpu.idle", "weight": "cpu.shares", "quota": "cpu.cfs_quota_us", "burst": "cpu.cfs_burst_us"}


@dataclass
class V1:
    """`cgroup.Layout` of version 1."""

    cpu: Path
    """Base directory in the cpu hierarchy."""
    cpuacct: Path
    """Base directory in the cpuacct hierarchy; the same one where the kernel mounts both together."""
    files: kernel_files.KernelFiles = field(default_factory=kernel_files.KernelFiles)

    name = "cgroup-v1"
    scale = levels.V1_SHARES

    def __post_init__(self) -> None:
        self.files.make(self.cpu)
        self.files.make(self.cpuacct)
        self.idle_class = self.files.exists(self.cpu / "cpu.idle")
        self.burst = self.files.exists(self.cpu / "cpu.cfs_burst_us")

    def bases(self) -> tuple[Path, ...]:
        return (self.cpu,) if self.cpu == self.cpuacct else (self.cpu, self.cpuacct)

    def base_cores(self) -> float | None:
        quota_us = int(self.files.read(self.cpu / "cpu.cfs_quota_us"))
        return None if quota_us < 0 else quota_us / int(self.files.read(self.cpu / "cpu.cfs_period_us"))

    def read(self, directory: Path) -> levels.Levels:
        quota_us = int(self.files.read(directory / "cpu.cfs_quota_us"))
        return levels.Levels(
            weight=int(self.files.read(directory / "cpu.shares")),
            quota_us=None if quota_us < 0 else quota_us,
            burst_us=int(self.files.read(directory / "cpu.cfs_burst_us")) if self.burst else 0,
            idle=self.idle_class and self.files.read(directory / "cpu.idle").strip() == "1",
        )

    def write(self, directory: Path, step: levels.Write) -> None:
        self.files.write(directory / _FILES[step.field], str(-1 if step.value is None else step.value))

    def usage(self, group: str) -> ports.CpuUsage:
        used_ns = int(self.files.read(self.cpuacct / (cgroup.PREFIX + group) / "cpuacct.usage"))
        stat = mounts.pairs(self.files.read(self.cpu / (cgroup.PREFIX + group) / "cpu.stat"))
        return ports.CpuUsage(
            used_core_s=used_ns / 1e9,
            periods=stat.get("nr_periods", 0),
            throttled_periods=stat.get("nr_throttled", 0),
        )

    def arguments(self) -> list[str]:
        return ["v1", str(self.cpu), str(self.cpuacct)]


def find(base: str | None = None) -> V1 | None:
    """The writable cpu and cpuacct hierarchies, or None.

    Args:
        base: directory for the groups, relative to the mounts; created if missing. The default is the
            mounts' root or, where that is not writable, the group that this process is in.
    """
    cpu, cpuacct = (mounts.v1_mount(controller) for controller in ("cpu", "cpuacct"))
    if cpu is None or cpuacct is None:
        return None
    if base is not None:
        pairs = [(cpu / base.strip("/"), cpuacct / base.strip("/"))]
    else:
        own = mounts.own_group("cpu"), mounts.own_group("cpuacct")
        pairs = [(cpu, cpuacct), (cpu / own[0].strip("/"), cpuacct / own[1].strip("/"))]
    for pair in pairs:
        if all(os.access(mounts.nearest(path), os.W_OK) for path in pair):
            return V1(*pair)
    return None
