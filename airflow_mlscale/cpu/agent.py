"""The host agent: it owns the groups of a host, grants leases on shares and divides the cores among them.

Belongs here: the leases held now, and making the backend enforce what they add up to.
Does not belong here: HTTP (server), the arithmetic (leases), the kernel (the backend).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.control import arbitration
from airflow_mlscale.cpu import leases, ports
from airflow_mlscale.runtime import clock as clocks

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of the agent."""

    policy: str = "guaranteed_first"
    """Name of one of `control.arbitration.POLICIES`."""
    cores: float | None = None
    """Cores to divide; None for all that the backend has."""
    tick_s: float = 0.2
    """How often leases are looked over; a lease ends at most this much late."""
    empty_group_linger_s: float = 600.0
    """How long a group without lease and without processes is kept for processes still to come."""
    orphan_linger_s: float = 2.0
    """The same once a lease has run out: whoever held it is gone, or takes the group up again by itself."""
    most_groups: int = 1000
    """Further groups are refused."""

    def __post_init__(self) -> None:
        if self.policy not in arbitration.POLICIES:
            raise errors.InvalidInputError("policy", self.policy, f"use one of {', '.join(arbitration.POLICIES)}")
        if self.cores is not None and not 0 < self.cores < float("inf"):
            raise errors.InvalidInputError("cores", self.cores, "use a finite number > 0")
        for field, value in (("tick_s", self.tick_s), ("most_groups", self.most_groups)):
            if not value > 0:
                raise errors.InvalidInputError(field, value, "use a number > 0")


@dataclass
class Counts:
    """What happened since the start, for the metrics."""

    renewals: int = 0
    expiries: int = 0
    refusals: int = 0


class Agent:
    """Leases over a backend. Not thread-safe: the server calls it from one thread."""

    def __init__(
        self, backend: ports.CpuPort, settings: Settings = Settings(), *, clock: clocks.Clock | None = None
    ) -> None:
        self.backend = backend
        self.settings = settings
        self.clock = clock or clocks.SystemClock()
        self.pot_cores = min(backend.host_cores, settings.cores or backend.host_cores)
        self.counts = Counts()
        self.leases: leases.Leases = {}
        self._shares: dict[str, ports.CpuShare] = {}
        """Of each open group, as last accepted by the backend."""
        self._unused_since: dict[str, float] = {}
        """Groups without lease and processes, and since when."""
        self._orphans: set[str] = set()
        """Groups whose holder let its lease run out: nobody will bring them processes any more."""

    def start(self) -> None:
        """Take over what an earlier agent left: groups with processes, unmanaged; empty ones go."""
        for info in self.backend.groups():
            self.backend.open(info.name)
            if info.members:
                self._shares[info.name] = self.backend.apply(info.name, ports.UNMANAGED)
                log.info("took over CPU group %s with %d processes, unmanaged", info.name, len(info.members))
            else:
                self.backend.close(info.name)

    def stop(self) -> None:
        """Restore and release every group."""
        self.leases = {}
        for group in list(self._shares):
            self._attempt(group, self.close)

    def open(self, group: str) -> None:
        """Open a group; one that is open keeps its share.

        Raises:
            AdmissionRefusedError: there are too many groups.
        """
        ports.check_group(group)
        if group in self._shares:
            return
        if len(self._shares) >= self.settings.most_groups:
            self.counts.refusals += 1
            raise errors.AdmissionRefusedError(f"there are {len(self._shares)} CPU groups already: end some first")
        self.backend.open(group)
        self._shares[group] = ports.UNMANAGED

    def renew(self, group: str, share: ports.CpuShare, terms: ports.Terms) -> ports.CpuShare:
        """Take or renew the group's lease, opening the group if need be; returns its share from now on.

        Raises:
            AdmissionRefusedError: the minimums would no longer fit; all leases stay as they were.
        """
        lease = leases.Lease(share=share, terms=terms, expires_s=self.clock.monotonic() + terms.ttl_s)
        try:
            after = leases.renewed(self.leases, ports.check_group(group), lease, pot_cores=self.pot_cores)
        except errors.AdmissionRefusedError:
            self.counts.refusals += 1
            raise
        self.open(group)
        if group not in self.leases:
            log.info("CPU group %s: lease on %s", group, _words(share))
        self.leases = after
        self._orphans.discard(group)
        self.counts.renewals += 1
        self._enforce(urgent=group)
        return self._shares[group]

    def close(self, group: str) -> None:
        """End the group's lease and remove the group once it is empty."""
        if self._shares.pop(ports.check_group(group), None) is None:
            return
        self._unused_since.pop(group, None)
        self._orphans.discard(group)
        self.leases = leases.without(self.leases, group)
        self.backend.close(group)
        self._enforce()

    def due(self) -> tuple[str, ...]:
        """Groups whose lease has run out."""
        return leases.expired(self.leases, self.clock.monotonic())

    def expire(self, groups: tuple[str, ...]) -> None:
        """End these leases; their groups run unmanaged from now on."""
        for group in groups:
            log.warning("CPU group %s: its lease was not renewed, it runs unmanaged now", group)
            self.leases = leases.without(self.leases, group)
            self._orphans.add(group)
            self.counts.expiries += 1
        self._enforce()

    def tidy(self) -> None:
        """Remove empty groups: soon those whose holder is gone, others when nobody has used them for long."""
        now_s = self.clock.monotonic()
        members = {info.name: info.members for info in self.backend.groups()}
        for group in list(self._shares):
            if group in self.leases or members.get(group):
                self._unused_since.pop(group, None)
            elif now_s - self._unused_since.setdefault(group, now_s) >= self._linger_s(group):
                self._attempt(group, self.close)

    def _linger_s(self, group: str) -> float:
        return self.settings.orphan_linger_s if group in self._orphans else self.settings.empty_group_linger_s

    def groups(self) -> list[ports.GroupInfo]:
        """The groups of this agent, as the backend sees them."""
        return [info for info in self.backend.groups() if info.name in self._shares]

    def usage(self, group: str) -> ports.CpuUsage:
        """Meters of a group."""
        return self.backend.usage(self._known(group))

    def admit(self, group: str, pid: int) -> None:
        """Move a process into a group."""
        self.backend.admit(self._known(group), pid)

    def admit_all(self, group: str, pids: Iterable[int]) -> None:
        """Move those of these processes into a group that still run and are not in it."""
        members = {pid for info in self.backend.groups() if info.name == self._known(group) for pid in info.members}
        for pid in pids:
            if pid in members:
                continue
            try:
                self.backend.admit(group, pid)
            except errors.InvalidInputError as exc:  # it ended in between
                log.debug("CPU group %s: %s", group, exc)

    def entry_files(self, group: str) -> tuple[Path, ...]:
        """Files by which processes join the group themselves."""
        return self.backend.entry_files(self._known(group))

    def _known(self, group: str) -> str:
        if ports.check_group(group) not in self._shares:
            raise KeyError(group)
        return group

    def _enforce(self, urgent: str | None = None) -> None:
        """Bring every group to its share; only the failure of ``urgent`` is its caller's."""
        policy = arbitration.POLICIES[self.settings.policy]
        wanted = leases.granted(self.leases, pot_cores=self.pot_cores, policy=policy)
        for group in list(self._shares):
            if group == urgent:
                continue
            self._attempt(group, lambda name: self._apply(name, wanted.get(name, ports.UNMANAGED)))
        if urgent is not None:
            self._apply(urgent, wanted[urgent], always=True)

    def _apply(self, group: str, share: ports.CpuShare, *, always: bool = False) -> None:
        if always or self._shares[group] != share:  # the holder's own renewal also mends what others changed
            self._shares[group] = self.backend.apply(group, share)

    def _attempt(self, group: str, action: Callable[[str], None]) -> None:
        try:
            action(group)
        except errors.MlscaleError as exc:
            log.warning("CPU group %s: %s", group, exc)


def _words(share: ports.CpuShare) -> str:
    ceiling = "no ceiling" if share.ceiling_cores is None else f"at most {share.ceiling_cores:g}"
    return f"{share.guaranteed_cores:g} cores guaranteed, {ceiling}"
