"""CPU shares by cgroups: what both kernel interfaces have in common.

Groups lie flat below one base directory, as ``mlscale.<group>``: their weights compete directly with the
rest of the host, whereas under a parent of their own idle batch work would share that parent's weight.
Values are compared with the kernel's before they are written: nothing is cached, so nothing goes stale
when somebody else changes a group.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from airflow_mlscale import errors
from airflow_mlscale.cpu import levels, ports
from airflow_mlscale.cpu.adapters import kernel_files, watchdog

log = logging.getLogger(__name__)

PREFIX = "mlscale."


class Layout(Protocol):
    """One kernel interface: where its files are and how they are written."""

    name: str
    scale: levels.WeightScale
    idle_class: bool
    burst: bool
    files: kernel_files.KernelFiles

    def bases(self) -> tuple[Path, ...]:
        """The base directory in each hierarchy that groups are made in; the first one holds the cpu controller."""

    def base_cores(self) -> float | None:
        """Ceiling of the base itself in cores; None if it has none."""

    def read(self, directory: Path) -> levels.Levels:
        """What is enforced for a group, given its directory in the first base."""

    def write(self, directory: Path, step: levels.Write) -> None:
        """Write one value."""

    def usage(self, group: str) -> ports.CpuUsage:
        """Meters of a group."""

    def arguments(self) -> list[str]:
        """Command line by which `airflow_mlscale.cpu.watchdog` builds the same layout."""


class CgroupPort:
    """`CpuPort` over a `Layout`; see there for what its methods do."""

    enforces = True

    def __init__(self, layout: Layout, *, host_cores: float | None = None, watched: bool = True) -> None:
        """Divide the base of ``layout``.

        Args:
            layout: the kernel interface.
            host_cores: cores to divide; the default is what the base and this process's affinity allow.
            watched: have a watchdog restore this process's groups when it ends (started at the first share
                that limits anything); only the watchdog itself goes without.
        """
        self.layout = layout
        self.name = layout.name
        available = float(len(os.sched_getaffinity(0)))
        self.host_cores = host_cores or min(available, layout.base_cores() or available)
        self._watchdog = watchdog.Watchdog(layout.arguments()) if watched else None
        self._open: set[str] = set()
        self._leaving: set[str] = set()
        self._lock = threading.RLock()

    def open(self, group: str) -> None:
        ports.check_group(group)
        with self._lock, _translated(group):
            self._leaving.discard(group)
            if group in self._open and self._exists(group):
                return
            self._make(group)
            self._open.add(group)
            self._enforce(group, ports.UNMANAGED)

    def apply(self, group: str, share: ports.CpuShare, terms: ports.Terms = ports.Terms()) -> ports.CpuShare:
        granted = ports.granted(group, share, terms, self.host_cores)
        with self._lock, _translated(group):
            self._check_open(group)
            if not self._exists(group):  # somebody removed it while it was empty: nothing is lost
                self._make(group)
            if self._watchdog and granted != ports.UNMANAGED:
                self._watchdog.watch(group)
            self._enforce(group, granted)
            self._remove_left()
        return granted

    def usage(self, group: str) -> ports.CpuUsage:
        with self._lock, _translated(group):
            self._check_open(group)
            if not self._exists(group):  # as in `apply`; what it used is no longer known
                self._make(group)
            return self.layout.usage(group)

    def admit(self, group: str, pid: int) -> None:
        with self._lock, _translated(group):
            self._check_open(group)
            if pid <= 0:
                raise errors.InvalidInputError("pid", pid, "give the id of a running process")
            for file in self.entry_files(group):
                try:
                    self.layout.files.write(file, str(pid))
                except ProcessLookupError as exc:
                    raise errors.InvalidInputError("pid", pid, "there is no such process") from exc

    def entry_files(self, group: str) -> tuple[Path, ...]:
        self._check_open(group)
        return tuple(directory / "cgroup.procs" for directory in self._directories(group))

    def groups(self) -> list[ports.GroupInfo]:
        with self._lock:
            self._remove_left()
            names = sorted(path.name.removeprefix(PREFIX) for path in self.layout.bases()[0].glob(PREFIX + "*/"))
            return [info for name in names if name not in self._leaving and (info := self._info(name))]

    def close(self, group: str) -> None:
        ports.check_group(group)
        with self._lock, _translated(group):
            if group not in self._open:
                return
            self._open.discard(group)
            restore(self.layout, group)
            self._leaving.add(group)
            self._remove_left()
            if self._watchdog and not self._open and not self._leaving:
                self._watchdog.end()

    def _check_open(self, group: str) -> None:
        if ports.check_group(group) not in self._open:
            raise KeyError(group)

    def _directories(self, group: str) -> list[Path]:
        return directories(self.layout, group)

    def _exists(self, group: str) -> bool:
        return all(self.layout.files.exists(directory) for directory in self._directories(group))

    def _make(self, group: str) -> None:
        for directory in self._directories(group):
            self.layout.files.make(directory)

    def _enforce(self, group: str, share: ports.CpuShare) -> None:
        wanted = share
        if share.ceiling_cores is not None and share.ceiling_cores >= self.host_cores:
            wanted = ports.CpuShare(guaranteed_cores=max(share.guaranteed_cores, _LEAST_GUARANTEE))  # limits nothing
        enforce(self.layout, group, wanted)

    def _info(self, group: str) -> ports.GroupInfo | None:
        directory = self._directories(group)[0]
        try:
            share = levels.share(self.layout.read(directory), self.layout.scale)
            members = tuple(int(pid) for pid in self.layout.files.read(directory / "cgroup.procs").split())
        except FileNotFoundError:  # removed a moment ago
            return None
        return ports.GroupInfo(name=group, share=share, members=members)

    def _remove_left(self) -> None:
        """Remove closed groups whose last process has gone."""
        for group in [name for name in self._leaving if remove(self.layout, name)]:
            self._leaving.discard(group)
            if self._watchdog:
                self._watchdog.forget(group)


_LEAST_GUARANTEE = 1e-9
"""Keeps a group with a ceiling, however wide, out of the idle class."""


def directories(layout: Layout, group: str) -> list[Path]:
    """The group's directory in each hierarchy."""
    return [base / (PREFIX + group) for base in layout.bases()]


def enforce(layout: Layout, group: str, share: ports.CpuShare) -> None:
    """Make the kernel enforce a share, with the fewest writes."""
    directory = directories(layout, group)[0]
    wanted = levels.levels(share, layout.scale, idle_class=layout.idle_class, burst=layout.burst)
    for step in levels.writes(layout.read(directory), wanted, layout.scale):
        layout.write(directory, step)


def restore(layout: Layout, group: str) -> None:
    """Back to the safe share; a group that is gone needs nothing."""
    try:
        enforce(layout, group, ports.UNMANAGED)
    except FileNotFoundError:
        log.debug("group %s is gone already", group)


def remove(layout: Layout, group: str) -> bool:
    """Remove a group if it is empty; returns whether it is gone from every hierarchy."""
    gone = True
    for directory in directories(layout, group):
        try:
            layout.files.remove(directory)
        except FileNotFoundError:
            pass
        except OSError as exc:
            if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise
            gone = False
    return gone


@contextmanager
def _translated(group: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise errors.TransientError(f"CPU group {group!r}: the kernel refused: {exc}") from exc


def members_below(pid: int, candidates: Iterator[int]) -> bool:
    """Whether every candidate is ``pid`` or descends from it."""
    parents = {candidate: _ancestors(candidate) for candidate in candidates}
    return all(candidate == pid or pid in ancestors for candidate, ancestors in parents.items())


def _ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except FileNotFoundError:
            break
        pid = int(stat.rpartition(")")[2].split()[1])
        found.add(pid)
    return found
