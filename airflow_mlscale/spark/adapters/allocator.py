"""Choosing how an application's share is enforced."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from airflow_mlscale import errors
from airflow_mlscale.cpu import detect, ports

log = logging.getLogger(__name__)

EXECUTORS = "executors"
OBSERVE_ONLY = "observe-only"
KUBERNETES = "kubernetes"
NAMES = (*detect.NAMES, KUBERNETES, EXECUTORS)
"""What users may ask for. On Kubernetes, ``auto`` resizes pods; ``executors`` is only taken when it is named."""


def find(
    name: str,
    *,
    address: str | None,
    token: str | None,
    agents: Mapping[str, str] | None,
    partly: bool = False,
) -> ports.CpuPort:
    """The port for executors that are processes of hosts; arguments and errors as in `detect.detect`.

    Raises:
        InvalidInputError: the allocator is not to be had here.
        UnreachableError: a named agent does not answer.

    For `EXECUTORS` it is the one that meters them; their number is changed by `executor_count`.
    """
    if name == KUBERNETES:
        raise errors.InvalidInputError("allocator", name, "pods are resized where the master is k8s://…; use auto")
    try:
        return detect.detect(
            "auto" if name == EXECUTORS else name, address=address, token=token, agents=agents, partly=partly
        )
    except errors.InvalidInputError as exc:
        if exc.field != "cpu":
            raise
        raise errors.InvalidInputError("allocator", name, exc.fix) from exc  # as the user calls it


def reaches(name: str, *, here: bool, agents: Mapping[str, str] | None, application: str) -> bool:
    """Whether shares by this allocator reach the executors at all; says so if they do not.

    Args:
        name: one of `NAMES`.
        here: whether all executors run on the host whose groups, or whose agent, would be used.
        agents: address of each worker host's agent.
        application: for people.

    Raises:
        InvalidInputError: it was asked for by name.
    """
    if here or name == EXECUTORS or (agents and name in ("auto", "agent")):
        return True
    if name == OBSERVE_ONLY:
        return False
    fix = (
        f"the executors of {application} are not known to run on this host; name the agents of theirs (agents in the "
        "connection's extra field), or the master's page (master_web_url) if it is this one"
    )
    if name != "auto":
        raise errors.InvalidInputError("allocator", name, fix)
    log.warning("%s, or the deadline is only watched", fix)
    return False
