"""CPU of a pod's container: what it has, what a share makes of it, and how the API server is asked: no I/O.

A pod keeps its QoS class: the API server refuses a resize that would change it. See "Resize CPU and Memory
Resources assigned to Containers" in the Kubernetes documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from airflow_mlscale.cpu import ports

LEAST_CORES = 0.1
"""Of a limit: an executor below it could not even send its heartbeats."""
APART = 0.001
"""Between request and limit of a Burstable pod: equal ones could make it Guaranteed."""


class Qos(StrEnum):
    """As Kubernetes names its quality-of-service classes."""

    GUARANTEED = "Guaranteed"
    """Requests equal limits: what is given is reserved, and there are no idle cycles to soak up."""
    BURSTABLE = "Burstable"
    BEST_EFFORT = "BestEffort"
    """Neither requests nor limits; a resize cannot give any."""


class Pending(StrEnum):
    """Why the node has not done yet what was asked for; reasons of the condition ``PodResizePending``."""

    DEFERRED = "Deferred"
    """There is no room on the node now."""
    INFEASIBLE = "Infeasible"
    """There never will be."""


@dataclass(frozen=True, kw_only=True)
class Cores:
    """CPU request and limit of a container."""

    request: float
    limit: float | None
    """None for no limit."""

    def near(self, other: Cores, deadband: float) -> bool:
        """Whether the difference is not worth a resize."""
        pairs = ((self.request, other.request), (self.limit or 0.0, other.limit or 0.0))
        return all(abs(mine - theirs) <= max(APART, deadband * theirs) for mine, theirs in pairs)

    @property
    def share(self) -> ports.CpuShare:
        guaranteed = self.request if self.limit is None else min(self.request, self.limit)
        return ports.CpuShare(guaranteed_cores=guaranteed, ceiling_cores=self.limit)


@dataclass(frozen=True, kw_only=True)
class Pod:
    """A running pod."""

    name: str
    part: str
    """Under which it is weighed: Spark's id of its executor."""
    qos: Qos
    spec: Cores
    """As asked for."""
    actual: Cores
    """As the node has it."""
    original: Cores
    """Before the first resize."""
    pending: Pending | None = None
    message: str = ""
    """The node's, if a resize is pending."""
    marked: bool = False
    """Whether the pod itself remembers the original."""


def wanted(pod: Pod, share: ports.CpuShare) -> Cores:
    """Request and limit that come nearest to the share within the pod's class."""
    most = pod.original.limit
    if most is None:  # a limit that is once set can never be taken away again
        return Cores(request=max(APART, share.guaranteed_cores), limit=None)
    limit = most if share.ceiling_cores is None else max(LEAST_CORES, min(most, share.ceiling_cores))
    if pod.qos is Qos.GUARANTEED:
        return Cores(request=limit, limit=limit)
    return Cores(request=max(APART, min(share.guaranteed_cores, limit - APART)), limit=limit)


def made_with(request: float | None, limit: float | None, *, cores: float, capped: bool) -> Cores:
    """What pods had best be made with, so that shares can be given and taken back later.

    Request and limit begin as high as they may ever get. Without ceilings they are apart: a Guaranteed pod could
    give nothing back, for its request must stay its limit.

    Args:
        request: by the user, if given; kept.
        limit: likewise.
        cores: of a pod.
        capped: whether shares will have ceilings; pods may be Guaranteed then, and request and limit follow them.
    """
    apart = 0.0 if capped else APART
    if limit is None:
        limit = cores if request is None else max(cores, request + apart)
    return Cores(request=min(cores, limit - apart) if request is None else request, limit=limit)


def resize_body(container: str, cores: Cores) -> dict[str, Any]:
    """Strategic-merge patch for the ``resize`` subresource: only this container's CPU."""
    resources: dict[str, Any] = {"requests": {"cpu": quantity(cores.request)}}
    if cores.limit is not None:
        resources["limits"] = {"cpu": quantity(cores.limit)}
    return {"spec": {"containers": [{"name": container, "resources": resources}]}}


def mark_body(annotation: str, original: Cores) -> dict[str, Any]:
    """Patch by which a pod remembers what it had; see `marked`."""
    limit = "" if original.limit is None else quantity(original.limit)
    return {"metadata": {"annotations": {annotation: f"{quantity(original.request)}/{limit}"}}}


def marked(text: str) -> Cores:
    """What `mark_body` wrote; raises ValueError for anything else."""
    request, slash, limit = text.partition("/")
    if not slash:
        raise ValueError(f"{text!r} is no request/limit")
    return Cores(request=cores_of(request), limit=cores_of(limit) if limit else None)


def quantity(cores: float) -> str:
    """In thousandths of a core, as Kubernetes writes them."""
    return f"{max(1, round(cores * 1000))}m"


def cores_of(text: str) -> float:
    """Cores from a Kubernetes quantity; raises ValueError for anything else."""
    from kubernetes.utils import parse_quantity

    return float(parse_quantity(text))


def cores_in(resources: Mapping[str, Any] | None) -> Cores:
    """CPU in ``resources`` of a container or of its status; a missing request is the limit, as Kubernetes has it."""
    limits = (resources or {}).get("limits") or {}
    requests = (resources or {}).get("requests") or {}
    limit = cores_of(limits["cpu"]) if "cpu" in limits else None
    request = cores_of(requests["cpu"]) if "cpu" in requests else limit or 0.0
    return Cores(request=request, limit=limit)


def pod_of(row: Mapping[str, Any], *, container: str, part_label: str, annotation: str) -> Pod | None:
    """A pod from the API's JSON; None for one that does not run (yet), ends, or has no such container.

    Args:
        row: the pod.
        container: whose CPU is meant.
        part_label: label by which it is weighed; without it, its name is.
        annotation: where `mark_body` wrote the original.
    """
    meta, spec, status = row["metadata"], row["spec"], row.get("status") or {}
    own = next((each for each in spec["containers"] if each["name"] == container), None)
    if own is None or status.get("phase") != "Running" or meta.get("deletionTimestamp"):
        return None
    told: Mapping[str, Any] = next(
        (each for each in status.get("containerStatuses") or () if each["name"] == container), {}
    )
    asked = cores_in(own.get("resources"))
    note = (meta.get("annotations") or {}).get(annotation)
    pending = _condition(status, "PodResizePending")
    reason = str(pending.get("reason", ""))
    return Pod(
        name=meta["name"],
        part=(meta.get("labels") or {}).get(part_label) or meta["name"],
        qos=Qos(status.get("qosClass", Qos.BURSTABLE)),
        spec=asked,
        actual=cores_in(told["resources"]) if told.get("resources") else asked,
        original=marked(note) if note else asked,
        pending=Pending(reason) if reason in list(Pending) else None,
        message=str(pending.get("message") or reason),
        marked=bool(note),
    )


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    found = (each for each in status.get("conditions") or () if each["type"] == kind and each["status"] == "True")
    return next(found, {})
