"""Where nothing may be enforced: shares are recorded, and processor use is metered from the process table."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports


@dataclass
class Meter:
    """CPU seconds of some processes and of all that descends from them.

    A process that daemonises stays on the list once it was seen. Processes that begin and end between two
    readings count through their parent, which inherits the times of the children it has waited for.
    """

    known: dict[int, psutil.Process] = field(default_factory=dict)
    last: dict[int, tuple[float, int]] = field(default_factory=dict)
    """For each known process its CPU seconds, those of reaped children included, and its parent."""
    ended_core_s: float = 0.0
    """Of processes whose parent was not one of ours."""
    reported_core_s: float = 0.0

    def add(self, pid: int) -> None:
        """Meter one more process from now on; what it used before does not count."""
        process = psutil.Process(pid)
        if pid in self.known and self.known[pid] == process:
            return
        used_core_s, _ = _reading(process)
        self.known[pid] = process
        self.ended_core_s -= used_core_s
        self._read()

    def used_core_s(self) -> float:
        """CPU seconds since each process was added; never falls."""
        self._read()
        total = self.ended_core_s + sum(used for used, _ in self.last.values())
        self.reported_core_s = max(self.reported_core_s, total)
        return self.reported_core_s

    def members(self) -> tuple[int, ...]:
        """Ids of the processes that run now."""
        self._read()
        return tuple(sorted(self.known))

    def _read(self) -> None:
        for process in list(self.known.values()):
            try:
                for child in process.children(recursive=True):
                    self.known.setdefault(child.pid, child)
            except psutil.NoSuchProcess:
                continue
        ended = []
        for pid, process in self.known.items():
            try:
                if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                    raise psutil.NoSuchProcess(pid)
                self.last[pid] = _reading(process)
            except psutil.NoSuchProcess:
                ended.append(pid)
        for pid in ended:
            del self.known[pid]
        for pid in ended:
            used_core_s, parent = self.last.pop(pid, (0.0, 0))
            if parent not in self.known:
                self.ended_core_s += used_core_s


def _reading(process: psutil.Process) -> tuple[float, int]:
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system, process.ppid()


@dataclass
class _Group:
    share: ports.CpuShare = ports.UNMANAGED
    meter: Meter = field(default_factory=Meter)


class ObserveOnlyPort:
    """`CpuPort` that enforces nothing; see there for what its methods do."""

    name = "observe-only"
    enforces = False

    def __init__(self, *, host_cores: float | None = None) -> None:
        self.host_cores = host_cores or float(len(os.sched_getaffinity(0)))
        self._groups: dict[str, _Group] = {}
        self._lock = threading.RLock()

    def open(self, group: str) -> None:
        with self._lock:
            self._groups.setdefault(ports.check_group(group), _Group())

    def apply(self, group: str, share: ports.CpuShare, terms: ports.Terms = ports.Terms()) -> ports.CpuShare:
        with self._lock:
            found = self._group(group)
            found.share = ports.granted(group, share, terms, self.host_cores)
            return found.share

    def usage(self, group: str) -> ports.CpuUsage:
        with self._lock:
            return ports.CpuUsage(used_core_s=self._group(group).meter.used_core_s())

    def admit(self, group: str, pid: int) -> None:
        with self._lock:
            found = self._group(group)
            if pid <= 0 or not psutil.pid_exists(pid):
                raise errors.InvalidInputError("pid", pid, "there is no such process")
            found.meter.add(pid)

    def entry_files(self, group: str) -> tuple[Path, ...]:
        self._group(group)
        return ()

    def groups(self) -> list[ports.GroupInfo]:
        with self._lock:
            return [
                ports.GroupInfo(name=name, share=found.share, members=found.meter.members())
                for name, found in sorted(self._groups.items())
            ]

    def close(self, group: str) -> None:
        with self._lock:
            self._groups.pop(ports.check_group(group), None)

    def _group(self, group: str) -> _Group:
        return self._groups[ports.check_group(group)]
