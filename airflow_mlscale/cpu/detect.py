"""Choosing the adapter that this machine offers."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import httpx

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports
from airflow_mlscale.cpu.adapters import cgroup, cgroup_v1, cgroup_v2, hosts, lease_client, observe_only
from airflow_mlscale.runtime import processes

log = logging.getLogger(__name__)

NAMES = ("auto", "agent", "cgroup-v1", "cgroup-v2", "observe-only")

AGENT_VARIABLE = "MLSCALE_AGENT"
"""Address of the host agent: ``unix:/path`` or ``http://host:port``."""
TOKEN_VARIABLE = "MLSCALE_AGENT_TOKEN"  # noqa: S105 (the variable's name, not a token)
"""Bearer token for it."""
BASE_VARIABLE = "MLSCALE_CGROUP_BASE"
"""Directory for the groups, relative to the cgroup mount."""


def default_socket() -> Path:
    """Where the host agent listens unless told otherwise."""
    return processes.home() / "run" / "agent.sock"


def detect(
    name: str = "auto",
    *,
    address: str | None = None,
    token: str | None = None,
    base: str | None = None,
    agents: Mapping[str, str] | None = None,
    partly: bool = False,
) -> ports.CpuPort:
    """The CPU-share port to use on this machine; logs once what was found.

    ``auto`` takes the agents of several hosts if they were named, else the host agent if one was named or
    answers at the default socket, else a writable cgroup v1 or v2, else it only observes.

    Args:
        name: one of `NAMES`.
        address: of the host agent; default ``$MLSCALE_AGENT``, then `default_socket`.
        token: bearer token for it; default ``$MLSCALE_AGENT_TOKEN``.
        base: directory for cgroups, relative to the mount; default ``$MLSCALE_CGROUP_BASE``, then the
            mount's root or, where that is not writable, this process's own group.
        agents: address of each host's agent by the host's name; see `hosts.HostsPort`.
        partly: with ``agents``, go on though some of them do not answer: for a controller that resumes.

    Raises:
        InvalidInputError: an unknown name, or one that this machine does not offer.
        UnreachableError: an agent was named and does not answer: falling back would break its arbitration.
    """
    port: ports.CpuPort
    match name:
        case "auto" | "agent" if agents:
            port = hosts.HostsPort(agents, token=token or os.environ.get(TOKEN_VARIABLE) or None, partly=partly)
        case "auto":
            port = _agent_or_none(address, token) or local(base)
        case "agent":
            port = agent(address, token=token)
        case "cgroup-v1" | "cgroup-v2" | "observe-only":
            port = local(base, only=name)
        case _:
            raise errors.InvalidInputError("cpu", name, f"use one of {', '.join(NAMES)}")
    _tell(port.name, port.enforces, port.host_cores)
    return port


def local(base: str | None = None, *, only: str | None = None) -> ports.CpuPort:
    """A port that needs no agent: cgroup v1, cgroup v2, or observing; ``only`` allows just one of them.

    Raises:
        InvalidInputError: this machine does not offer what ``only`` names.
    """
    base = base or os.environ.get(BASE_VARIABLE) or None
    if only in (None, "cgroup-v1") and (v1 := cgroup_v1.find(base)):
        return cgroup.CgroupPort(v1)
    if only in (None, "cgroup-v2") and (v2 := cgroup_v2.find(base)):
        return cgroup.CgroupPort(v2)
    if only in (None, "observe-only"):
        return observe_only.ObserveOnlyPort()
    raise errors.InvalidInputError(
        "cpu", only, "use cgroup-v1 or cgroup-v2 where such a hierarchy is writable, observe-only anywhere, or auto"
    )


def agent(address: str | None = None, *, token: str | None = None) -> lease_client.LeasePort:
    """The host agent; arguments, defaults and errors as in `detect`."""
    return lease_client.LeasePort(
        address or os.environ.get(AGENT_VARIABLE) or f"unix:{default_socket()}",
        token=token or os.environ.get(TOKEN_VARIABLE) or None,
    )


def _agent_or_none(address: str | None, token: str | None) -> lease_client.LeasePort | None:
    named = address or os.environ.get(AGENT_VARIABLE)
    if not named and not default_socket().exists():
        return None
    try:
        return agent(named, token=token)
    except errors.UnreachableError as exc:
        # One that is only slow still divides this host: going past it would make two arbiters of one.
        if named or not isinstance(exc.__cause__, httpx.ConnectError):
            raise
        log.debug("the socket of a host agent is left at %s, but nothing answers", default_socket())
        return None


@cache  # once for each process, not for each controller
def _tell(name: str, enforces: bool, host_cores: float) -> None:
    if enforces:
        log.info("CPU shares through %s, %g cores", name, host_cores)
    else:
        log.warning(
            "CPU shares are only recorded on this machine (%s, %g cores): no writable cgroup; "
            "run `mlscale agent` as root or delegate a cgroup to enforce them",
            name,
            host_cores,
        )
