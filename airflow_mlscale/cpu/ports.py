"""The CPU-share port: what a controller may ask for its group of processes, and what it gets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isnan
from pathlib import Path
from typing import Protocol

from airflow_mlscale import errors


@dataclass(frozen=True, kw_only=True)
class CpuShare:
    """A share of one host.

    A guarantee is enforced by weight, so idle cycles stay free for everybody; only a ceiling is a quota.
    A group without any guarantee and ceiling runs in the idle class: it gets what nobody else wants.
    """

    guaranteed_cores: float
    """Cores the group gets whenever it wants them; 0 means idle cycles only."""
    ceiling_cores: float | None = None
    """Cores it cannot exceed; None for no limit."""

    def __post_init__(self) -> None:
        if not 0 <= self.guaranteed_cores < inf:
            raise errors.InvalidInputError("guaranteed_cores", self.guaranteed_cores, "use a finite number >= 0")
        ceiling = self.ceiling_cores
        if ceiling is not None and not max(0.0, self.guaranteed_cores - 1e-9) <= ceiling < inf:
            raise errors.InvalidInputError(
                "ceiling_cores", ceiling, f"use at least guaranteed_cores={self.guaranteed_cores}, or None for no limit"
            )

    @classmethod
    def strict(cls, cores: float) -> CpuShare:
        """Exactly this much: the ceiling equals the guarantee."""
        return cls(guaranteed_cores=cores, ceiling_cores=cores)


UNMANAGED = CpuShare(guaranteed_cores=0.125)
"""The safe share: no ceiling and the weight of one ordinary process. What a group has when nobody controls it."""

IDLE = CpuShare(guaranteed_cores=0.0)
"""Idle cycles only."""


LONGEST_TTL_S = 300.0
"""Longer leases would leave the host limited for too long after their holder died."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What an arbiter needs to know beside the share; adapters without an arbiter ignore it."""

    minimum_cores: float = 0.0
    """Part of the guarantee that is never taken away; refused at admission if the host cannot give it."""
    priority: int = 0
    """Serving uses `SERVING_PRIORITY`, batch 0."""
    deadline_at: float = inf
    """Seconds since the epoch; infinite when there is none."""
    ttl_s: float = 10.0
    """Without a renewal for this long the group goes back to `UNMANAGED`; at most `LONGEST_TTL_S`."""

    def __post_init__(self) -> None:
        if not 0 <= self.minimum_cores < inf:
            raise errors.InvalidInputError("minimum_cores", self.minimum_cores, "use a finite number >= 0")
        if not 0 < self.ttl_s <= LONGEST_TTL_S:
            raise errors.InvalidInputError(
                "ttl_s", self.ttl_s, f"use more than 0 and at most {LONGEST_TTL_S:g} seconds"
            )
        if isnan(self.deadline_at):
            raise errors.InvalidInputError("deadline_at", self.deadline_at, "use seconds since the epoch, or inf")


SERVING_PRIORITY = 10


@dataclass(frozen=True, kw_only=True)
class CpuUsage:
    """Meters of a group since its creation; differences between two readings are what matters."""

    used_core_s: float
    """CPU seconds used by all processes of the group, children included."""
    periods: int = 0
    """Enforcement periods with work in them."""
    throttled_periods: int = 0
    """Those in which the ceiling stopped the group: ≈ 0 means the ceiling is not the bottleneck."""


@dataclass(frozen=True, kw_only=True)
class GroupInfo:
    """One group as `CpuPort.groups` lists it."""

    name: str
    share: CpuShare
    members: tuple[int, ...] = field(default=())
    """Process ids in it."""


_GROUP = re.compile(r"[a-z0-9][a-z0-9._-]{0,119}")


def check_group(name: str) -> str:
    """The name itself; raises `InvalidInputError` unless it is a group name as `CpuPort` wants them."""
    if not isinstance(name, str) or not _GROUP.fullmatch(name):
        raise errors.InvalidInputError(
            "group", name, "use 1 to 120 of a-z, 0-9, '.', '_' and '-', the first a letter or a digit"
        )
    return name


LEAST_CEILING_CORES = 0.01
"""The kernel enforces no lower ceiling."""


def within(share: CpuShare, cores: float) -> CpuShare:
    """The share, cut to a host of so many cores; a ceiling is at least `LEAST_CEILING_CORES`."""
    ceiling = share.ceiling_cores
    return CpuShare(
        guaranteed_cores=min(share.guaranteed_cores, cores),
        ceiling_cores=None if ceiling is None else max(LEAST_CEILING_CORES, min(ceiling, cores)),
    )


def granted(group: str, share: CpuShare, terms: Terms, cores: float) -> CpuShare:
    """What a host of so many cores grants without an arbiter.

    Raises:
        AdmissionRefusedError: the minimum alone exceeds the host.
    """
    if terms.minimum_cores > cores:
        raise errors.AdmissionRefusedError(
            f"group {group!r} asks for at least {terms.minimum_cores:g} cores, but the host has {cores:g}: "
            "lower minimum_cores"
        )
    return within(share, cores)


class CpuPort(Protocol):
    """Groups of processes and their shares on one host. Calls are quick and thread-safe.

    A cgroup adapter answers in ≈ 0.1 ms, a lease client in ≈ 1 ms, an observing one scans the process table (≈ 10 ms).

    Group names are ``[a-z0-9][a-z0-9._-]*``, at most 120 characters; others raise `InvalidInputError`.
    Every call on a group that this port never opened raises `KeyError`. A lease client whose agent does not
    answer raises `UnreachableError`; nothing stays limited meanwhile, and the next `apply` that reaches an
    agent takes the group up again.
    """

    name: str
    """Which adapter this is, for logs."""
    enforces: bool
    """False when shares are only recorded (nothing permitted, or nothing there)."""
    host_cores: float
    """Cores of the host that this port divides."""

    def open(self, group: str) -> None:
        """Create the group with the `UNMANAGED` share, or adopt the one that exists with its processes.

        Opening a group that is already open changes nothing.
        """

    def apply(self, group: str, share: CpuShare, terms: Terms = Terms()) -> CpuShare:
        """Ask for a share; returns what was granted (cut to the host; ceilings are at least 0.01 core).

        Whatever happens to the caller, the share does not outlive it: a lease expires after ``terms.ttl_s``,
        and a cgroup adapter's watchdog restores `UNMANAGED` when the calling process ends.

        Raises:
            AdmissionRefusedError: the minimum guarantees of all groups would exceed the host.
            KeyError: the group was never opened.
        """

    def usage(self, group: str) -> CpuUsage:
        """The group's meters."""

    def admit(self, group: str, pid: int) -> None:
        """Move a running process into the group; what it starts later follows.

        Raises:
            InvalidInputError: there is no such process.
        """

    def entry_files(self, group: str) -> tuple[Path, ...]:
        """Files into each of which a process writes its own id to join; empty if only `admit` works."""

    def groups(self) -> list[GroupInfo]:
        """All groups there are on the host, those of other controllers included."""

    def close(self, group: str) -> None:
        """Restore the safe share, release the guarantee, and remove the group once it is empty.

        Closing a group that is not open does nothing.
        """


class SpreadPort(CpuPort, Protocol):
    """A port whose groups are spread over parts, such as hosts or pods."""

    def weigh(self, group: str, weights: Mapping[str, float]) -> None:
        """Say how much of the group's work each part does; the share is divided in proportion from the next `apply` on.

        Args:
            group: an open group.
            weights: by part; parts that are missing have none.
        """
