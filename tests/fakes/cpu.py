"""A host without a kernel: the CPU-share port in memory, for tests of controllers."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports


@dataclass
class _Group:
    share: ports.CpuShare = ports.UNMANAGED
    used_core_s: float = 0.0
    members: set[int] = field(default_factory=set)


class FakeCpu:
    """`CpuPort` that grants everything the host has; `burn` moves the meters, `fail` makes calls fail."""

    name = "fake"
    enforces = True

    def __init__(self, host_cores: float = 2.0) -> None:
        self.host_cores = host_cores
        self.fail: errors.MlscaleError | None = None
        """Raised by every call while set."""
        self.fail_usage: errors.MlscaleError | None = None
        """Raised by `usage` while set."""
        self.promised_cores = 0.0
        """Guaranteed to others, who come first."""
        self.applied: list[tuple[str, ports.CpuShare, ports.Terms]] = []
        """All shares asked for, in order."""
        self._groups: dict[str, _Group] = {}
        self._lock = threading.RLock()

    def burn(self, group: str, core_s: float) -> None:
        """Pretend that the group used processor time."""
        with self._lock:
            self._groups[group].used_core_s += core_s

    def share(self, group: str) -> ports.CpuShare:
        """What the group has now."""
        return self._groups[group].share

    def open(self, group: str) -> None:
        with self._lock:
            self._check(group)
            self._groups.setdefault(group, _Group())

    def apply(self, group: str, share: ports.CpuShare, terms: ports.Terms = ports.Terms()) -> ports.CpuShare:
        with self._lock:
            self._check(group)
            found = self._groups[group]
            free = self.host_cores - self.promised_cores
            granted = ports.granted(group, share, terms, free)
            granted = ports.CpuShare(
                guaranteed_cores=granted.guaranteed_cores,
                ceiling_cores=ports.within(share, self.host_cores).ceiling_cores,
            )
            self.applied.append((group, share, terms))
            found.share = granted
            return found.share

    def usage(self, group: str) -> ports.CpuUsage:
        with self._lock:
            self._check(group)
            if self.fail_usage:
                raise self.fail_usage
            return ports.CpuUsage(used_core_s=self._groups[group].used_core_s)

    def admit(self, group: str, pid: int) -> None:
        with self._lock:
            self._check(group)
            found = self._groups[group]
            if pid <= 0 or not psutil.pid_exists(pid):
                raise errors.InvalidInputError("pid", pid, "there is no such process")
            found.members.add(pid)

    def entry_files(self, group: str) -> tuple[Path, ...]:
        with self._lock:
            self._check(group)
            self._groups[group]
            return ()

    def groups(self) -> list[ports.GroupInfo]:
        with self._lock:
            if self.fail:
                raise self.fail
            return [
                ports.GroupInfo(name=name, share=found.share, members=tuple(sorted(found.members)))
                for name, found in sorted(self._groups.items())
            ]

    def close(self, group: str) -> None:
        with self._lock:
            self._check(group)
            self._groups.pop(group, None)

    def _check(self, group: str) -> None:
        if self.fail:
            raise self.fail
        ports.check_group(group)
