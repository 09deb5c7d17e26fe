"""Choosing how an application's share is enforced."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_mlscale import errors
from airflow_mlscale.cpu import detect, ports

EXECUTORS = "executors"
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

    For `EXECUTORS` it is the one that meters them; their number is changed by `executor_count`.
    """
    if name == KUBERNETES:
        raise errors.InvalidInputError("allocator", name, "pods are resized where the master is k8s://…; use auto")
    return detect.detect(
        "auto" if name == EXECUTORS else name, address=address, token=token, agents=agents, partly=partly
    )
