"""How a cluster and its hosts' agents are reached."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_mlscale import errors


@dataclass(frozen=True, kw_only=True)
class Access:
    """How the cluster and the host agents are reached. Holds secrets: it is made from the connection each time."""

    agent: str | None = None
    agent_token: str | None = field(default=None, repr=False)
    agents: Mapping[str, str] | None = None
    """Address of each worker host's agent."""
    kube_config: str | None = None
    """Path of a kubeconfig file."""
    user: str | None = None
    """As whom to ask YARN."""


def from_extra(extra: Mapping[str, Any]) -> Access:
    """By the extra field of a connection.

    Raises:
        InvalidInputError: ``agents`` is no JSON object of addresses.
    """
    agents = extra.get("agents") or None
    try:
        agents = json.loads(agents) if isinstance(agents, str) else agents
        if agents is not None and not all(isinstance(part, str) for pair in agents.items() for part in pair):
            raise ValueError("not all names and addresses are strings")
    except (ValueError, AttributeError) as exc:
        fix = 'give a JSON object such as {"worker-1": "http://worker-1:8790"}'
        raise errors.InvalidInputError("agents", extra["agents"], f"{fix} ({exc})") from exc
    return Access(
        agent=extra.get("agent") or None,
        agent_token=extra.get("agent_token") or None,
        agents=agents,
        kube_config=extra.get("kube_config") or None,
        user=extra.get("yarn_user") or None,
    )
