"""CPU shares over several hosts: one host agent each, and a share that is divided among them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from airflow_mlscale import errors
from airflow_mlscale.cpu import parts, ports
from airflow_mlscale.cpu.adapters import lease_client
from airflow_mlscale.runtime import clock as clocks

log = logging.getLogger(__name__)

RETRY_S = 3.0
"""An agent that did not answer is left alone for so long: a host that is gone must not slow the others."""
MOST_AT_ONCE = 16

ResultT = TypeVar("ResultT")


@dataclass
class _Host:
    name: str
    address: str
    agent: lease_client.LeasePort | None = None
    opened: set[str] = field(default_factory=set)
    lost_s: float | None = None
    """Since when it does not answer, on the monotonic clock; None while it does."""


@dataclass
class _Meter:
    """Of one group on one host; goes on counting over an agent that forgot it."""

    before: ports.CpuUsage = field(default_factory=lambda: ports.CpuUsage(used_core_s=0.0))
    last: ports.CpuUsage = field(default_factory=lambda: ports.CpuUsage(used_core_s=0.0))

    def read(self, now: ports.CpuUsage) -> None:
        if now.used_core_s < self.last.used_core_s:  # the group was made anew
            self.before = _sum([self.before, self.last])
        self.last = now

    @property
    def total(self) -> ports.CpuUsage:
        return _sum([self.before, self.last])


@dataclass
class _Group:
    weights: Mapping[str, float] | None = None
    """By host; None as long as nobody weighed it: then hosts count by their cores."""
    asked: dict[str, ports.CpuShare] = field(default_factory=dict)
    """What each host was asked for last."""
    granted: dict[str, ports.CpuShare] = field(default_factory=dict)
    meters: dict[str, _Meter] = field(default_factory=dict)


class HostsPort:
    """`CpuPort` over the agents of several hosts; see there for what its methods do.

    A share is divided over the hosts in proportion to their weights (`weigh`), never beyond a host's cores.
    What a host cannot give goes to the others. An agent that does not answer keeps its last meter reading,
    its host runs unmanaged once its lease ran out, the others go on, and it is taken up again when it answers.
    Processes of other hosts enter a group by `admit_matching`.
    """

    name = "hosts"

    def __init__(
        self,
        agents: Mapping[str, str],
        *,
        token: str | None = None,
        timeout_s: float = lease_client.TIMEOUT_S,
        partly: bool = False,
        clock: clocks.Clock | None = None,
    ) -> None:
        """Connect to the agents.

        Args:
            agents: address of each host's agent (``unix:/path`` or ``http://host:port``) by the name or
                address under which the engine knows the host.
            token: bearer token, the same for all agents.
            timeout_s: for each call to an agent.
            partly: go on if some of them do not answer now, as a controller does that was restarted.
            clock: for the pause before an agent that did not answer is asked again.

        Raises:
            InvalidInputError: no agent is named, an address has another form, or the token is refused.
            UnreachableError: an agent does not answer; with ``partly``, none does.
        """
        if not agents:
            raise errors.InvalidInputError("agents", dict(agents), "name at least one host and its agent's address")
        self._hosts = {name: _Host(name, address) for name, address in agents.items()}
        self._token = token
        self._timeout_s = timeout_s
        self._clock = clock or clocks.SystemClock()
        self._groups: dict[str, _Group] = {}
        self._lock = threading.RLock()
        self._pool = ThreadPoolExecutor(min(MOST_AT_ONCE, len(agents)), thread_name_prefix="host agents")
        self._strangers: set[str] = set()
        self.host_cores = 0.0
        self.enforces = False
        self._first_contact(partly)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of all hosts."""
        return tuple(self._hosts)

    def open(self, group: str) -> None:
        ports.check_group(group)
        self._each(lambda host, agent: _open(host, agent, group))
        with self._lock:
            self._groups.setdefault(group, _Group())

    def weigh(self, group: str, weights: Mapping[str, float]) -> None:
        """Say how much of the group's work each host does, from the next `apply` on.

        Args:
            group: an open group.
            weights: by host, such as tasks that run there; hosts that are missing have none. Without any
                weight at all hosts count by their cores.
        """
        found = self._group(group)
        for stranger in sorted(set(weights) - set(self._hosts) - self._strangers):
            self._strangers.add(stranger)
            log.warning("part of CPU group %s is on host %s, which has no agent: it runs unmanaged", group, stranger)
        found.weights = {host: weight for host, weight in weights.items() if host in self._hosts and weight > 0}

    def apply(self, group: str, share: ports.CpuShare, terms: ports.Terms = ports.Terms()) -> ports.CpuShare:
        found = self._group(group)
        wanted = ports.granted(group, share, terms, self.host_cores)
        asked = parts.divided(wanted, self._weights(found), self._room())
        minimums = parts.fill(terms.minimum_cores, self._weights(found), self._room())
        leaving = {host: ports.UNMANAGED for host in found.asked if host not in asked}
        granted, refused = self._ask(group, asked | leaving, minimums, terms)
        again = _redistributed(wanted, asked, granted, self._weights(found), self._room())
        again |= {host: again.get(host, asked[host]) for host in refused}
        if again:
            rest = {host: weight for host, weight in self._weights(found).items() if host not in refused}
            minimums = parts.fill(terms.minimum_cores, rest, self._room())
            more, refused_again = self._ask(group, again, minimums, terms)
            granted |= more
            if refused and (refused_again or sum(minimums.values()) < terms.minimum_cores - 1e-9):
                self._ask(group, found.asked or dict.fromkeys(asked, ports.UNMANAGED), {}, terms)
                raise next(iter(refused.values()))
        found.asked = asked | again
        found.granted = {host: granted[host] for host in asked if host in granted}
        return parts.together(found.granted)

    def usage(self, group: str) -> ports.CpuUsage:
        found = self._group(group)

        def read(host: _Host, agent: lease_client.LeasePort) -> ports.CpuUsage:
            _open(host, agent, group)
            return agent.usage(group)

        readings = self._each(read)
        with self._lock:
            for host, reading in readings.items():
                found.meters.setdefault(host, _Meter()).read(reading)
            return _sum([meter.total for meter in found.meters.values()])

    def admit(self, group: str, pid: int) -> None:
        """As in `CpuPort`, for a process of this machine: its agent is the one with a Unix socket."""
        self._group(group)
        for host in self._hosts.values():
            if host.address.startswith("unix:") and host.agent:
                host.agent.admit(group, pid)
                return
        raise errors.InvalidInputError("pid", pid, "none of the agents is this machine's own; use admit_matching")

    def admit_matching(self, group: str, words: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """Have agents move the processes of their hosts whose command line has these words into the group.

        Args:
            group: an open group.
            words: by host, what the command lines there must have as arguments.

        Returns:
            How many processes match on each host that answered.
        """
        self._group(group)

        def admit(host: _Host, agent: lease_client.LeasePort) -> int:
            _open(host, agent, group)
            return len(agent.admit_matching(group, words[host.name]))

        return self._each(admit, [self._hosts[name] for name in words if name in self._hosts])

    def entry_files(self, group: str) -> tuple[Path, ...]:
        self._group(group)
        return ()  # those of another host are not here

    def groups(self) -> list[ports.GroupInfo]:
        listed = self._each(lambda host, agent: agent.groups())
        shares: dict[str, dict[str, ports.CpuShare]] = {}
        members: dict[str, tuple[int, ...]] = {}
        for host, infos in listed.items():
            for info in infos:
                shares.setdefault(info.name, {})[host] = info.share
                members[info.name] = (*members.get(info.name, ()), *info.members)
        return [
            ports.GroupInfo(name=name, share=self._share_now(name, shares[name]), members=members[name])
            for name in sorted(shares)
        ]

    def shares(self, group: str) -> dict[str, ports.CpuShare]:
        """What each host granted at the last `apply`; hosts that did not answer are missing."""
        return dict(self._group(group).granted)

    def close(self, group: str) -> None:
        with self._lock:
            if self._groups.pop(ports.check_group(group), None) is None:
                return
        for host in self._hosts.values():
            host.opened.discard(group)
        self._each(lambda host, agent: agent.close(group), again=True)

    def _share_now(self, group: str, shares: Mapping[str, ports.CpuShare]) -> ports.CpuShare:
        """Unmanaged on each host is unmanaged, and not so many times its weight."""
        known = self._groups.get(group)
        managed = known.asked if known else {}
        counted = {host: share for host, share in shares.items() if host in managed or share != ports.UNMANAGED}
        return parts.together(counted) if counted else ports.UNMANAGED

    def _ask(
        self, group: str, shares: Mapping[str, ports.CpuShare], minimums: Mapping[str, float], terms: ports.Terms
    ) -> tuple[dict[str, ports.CpuShare], dict[str, errors.AdmissionRefusedError]]:
        """Ask hosts for shares: what they grant, and who refused."""

        def ask(host: _Host, agent: lease_client.LeasePort) -> ports.CpuShare | errors.AdmissionRefusedError:
            _open(host, agent, group)
            own = replace(terms, minimum_cores=minimums.get(host.name, 0.0))
            try:
                return agent.apply(group, shares[host.name], own)
            except errors.AdmissionRefusedError as exc:
                return exc

        answers = self._each(ask, [self._hosts[name] for name in shares])
        refused = {host: answer for host, answer in answers.items() if isinstance(answer, Exception)}
        return {host: answer for host, answer in answers.items() if isinstance(answer, ports.CpuShare)}, refused

    def _each(
        self,
        call: Callable[[_Host, lease_client.LeasePort], ResultT],
        hosts: Sequence[_Host] | None = None,
        *,
        again: bool = False,
    ) -> dict[str, ResultT]:
        """Call all of these agents at once; those that do not answer are missing in the result.

        One that did not answer a moment ago is not even asked, unless ``again``.
        """
        asked = [host for host in hosts or self._hosts.values() if again or not self._resting(host)]
        answers: dict[str, ResultT] = {}

        def attempt(host: _Host) -> None:
            try:
                agent = host.agent or self._connected(host)
                answers[host.name] = call(host, agent)
            except errors.TransientError as exc:
                self._lose(host, exc)
            else:
                if not again:  # only then was it asked and not merely told
                    self._find(host)

        for _ in self._pool.map(attempt, asked):
            pass
        return answers

    def _connected(self, host: _Host) -> lease_client.LeasePort:
        agent = lease_client.LeasePort(host.address, token=self._token, timeout_s=self._timeout_s)
        with self._lock:
            host.agent = agent
            self.host_cores = sum(each.agent.host_cores for each in self._hosts.values() if each.agent)
            self.enforces = any(each.agent.enforces for each in self._hosts.values() if each.agent)
        return agent

    def _first_contact(self, partly: bool) -> None:
        failures: dict[str, errors.UnreachableError] = {}
        for host in self._hosts.values():
            try:
                self._connected(host)
            except errors.UnreachableError as exc:
                if not partly:
                    raise
                failures[host.name] = exc
                self._lose(host, exc)
        if len(failures) == len(self._hosts):
            raise next(iter(failures.values()))

    def _resting(self, host: _Host) -> bool:
        return host.lost_s is not None and self._clock.monotonic() - host.lost_s < RETRY_S

    def _lose(self, host: _Host, why: Exception) -> None:
        level = logging.WARNING if host.lost_s is None else logging.DEBUG
        host.lost_s = self._clock.monotonic()
        log.log(level, "host %s: %s; its processes run unmanaged, the other hosts go on", host.name, why)

    def _find(self, host: _Host) -> None:
        if host.lost_s is not None:
            host.lost_s = None
            log.info("host %s: its agent answers again", host.name)

    def _room(self) -> dict[str, float]:
        """Cores of each host that answers."""
        return {
            name: host.agent.host_cores if host.agent and not self._resting(host) else 0.0
            for name, host in self._hosts.items()
        }

    def _weights(self, group: _Group) -> Mapping[str, float]:
        """Of the hosts that answer."""
        room = self._room()
        given = {host: weight for host, weight in (group.weights or {}).items() if room[host] > 0}
        return given or {host: cores for host, cores in room.items() if cores > 0}

    def _group(self, group: str) -> _Group:
        with self._lock:
            return self._groups[ports.check_group(group)]


def _open(host: _Host, agent: lease_client.LeasePort, group: str) -> None:
    if group not in host.opened:
        agent.open(group)
        host.opened.add(group)


def _redistributed(
    wanted: ports.CpuShare,
    asked: Mapping[str, ports.CpuShare],
    granted: Mapping[str, ports.CpuShare],
    weights: Mapping[str, float],
    room: Mapping[str, float],
) -> dict[str, ports.CpuShare]:
    """What to ask the other hosts for in addition, when some gave less than asked for; nobody's ceiling falls."""
    short = parts.short(asked, granted)
    others = {host: weight for host, weight in weights.items() if host in asked and host not in short}
    if not short or not others:
        return {}
    given = parts.fill(wanted.guaranteed_cores - sum(short.values()), others, room)
    return {
        host: ports.CpuShare(
            guaranteed_cores=cores,
            ceiling_cores=None if (ceiling := asked[host].ceiling_cores) is None else max(ceiling, cores),
        )
        for host, cores in given.items()
    }


def _sum(usages: Sequence[ports.CpuUsage]) -> ports.CpuUsage:
    return ports.CpuUsage(
        used_core_s=sum(usage.used_core_s for usage in usages),
        periods=sum(usage.periods for usage in usages),
        throttled_periods=sum(usage.throttled_periods for usage in usages),
    )
