"""CPU shares on Kubernetes: pods are resized in place, through the ``resize`` subresource (Kubernetes 1.33)."""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.cpu import parts, pods, ports
from airflow_mlscale.cpu.adapters import pod_meter
from airflow_mlscale.runtime import clock as clocks

log = logging.getLogger(__name__)

EXECUTOR_CONTAINER = "spark-kubernetes-executor"
EXECUTOR_LABEL = "spark-exec-id"
ANNOTATION = "airflow-mlscale/original-cpu"
"""On a resized pod: what it had before, for a controller that goes on after another one."""
STUCK = (
    "QoS class Guaranteed: without a ceiling these pods can give nothing back, and keep all their cores; leave "
    "spark.kubernetes.executor.request.cores out or set it below the limit, or use mode='reserve'"
)
"""Said once where a share without a ceiling meets pods whose request must stay their limit."""
_PASSING = (409, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""


@dataclass(frozen=True, kw_only=True)
class PodSettings:
    """How pods are found and resized."""

    namespace: str = "default"
    container: str = EXECUTOR_CONTAINER
    """Of a pod's containers the one that is resized."""
    part_label: str = EXECUTOR_LABEL
    """Label by whose value a pod is weighed."""
    period_s: float = 5.0
    """Least time between two looks at a group's pods, and so between two resizes of one."""
    deadband: float = 0.08
    """Relative change that is not worth a resize."""
    timeout_s: float = 5.0
    """For one request."""
    retries: int = 4
    """Further attempts after a conflict, a throttled request or a server's error."""
    backoff_s: float = 0.2
    """Before the second of them; doubles each time. A ``Retry-After`` of the server comes first."""

    def __post_init__(self) -> None:
        for name in ("namespace", "container"):
            if not getattr(self, name):
                raise errors.InvalidInputError(name, getattr(self, name), "must not be empty")
        if self.period_s < 0 or self.timeout_s <= 0 or self.retries < 0:
            raise errors.InvalidInputError("period_s", self.period_s, "times and retries must not be negative")


@dataclass
class _Group:
    selector: str
    container: str
    share: ports.CpuShare = ports.UNMANAGED
    granted: ports.CpuShare = ports.UNMANAGED
    weights: Mapping[str, float] | None = None
    looked_s: float | None = None
    caps: dict[str, float] = field(default_factory=dict)
    """By pod: what its node has, for those that it will never give more."""
    told: set[tuple[str, str]] = field(default_factory=set)
    meter: pod_meter.PodMeter | None = None


class PodPort:
    """`CpuPort` over the pods that a group's label selector chooses; see there for what its methods do.

    A guarantee is a CPU request, a ceiling a CPU limit; neither ever exceeds what the pod was made with. The
    share is divided over the pods by their weights. Requests are few: nothing is asked more often than every
    ``period_s``, and small changes are left alone. Kubernetes knows no leases: pods keep the last share if
    this process dies, until whoever goes on restores them (`close`), or until they end with their application.
    """

    name = "kubernetes"

    def __init__(
        self,
        configuration: Any,
        *,
        cores: float,
        settings: PodSettings = PodSettings(),
        clock: clocks.Clock | None = None,
    ) -> None:
        """Ask the API server whether this may be done.

        Args:
            configuration: `kubernetes.client.Configuration` with address and credentials.
            cores: most cores that the pods of a group have together.
            settings: see there.
            clock: for the period.

        Raises:
            InvalidInputError: the client library is missing.
            UnreachableError: the API server does not answer.
        """
        self.settings = settings
        self.host_cores = cores
        self._clock = clock or clocks.SystemClock()
        self._client = client = _client(configuration, settings)
        self._address = str(configuration.host)
        self._core, self._metrics = _apis(client)
        self._groups: dict[str, _Group] = {}
        self._lock = threading.RLock()
        self.enforces = self._permitted()
        if self.enforces:
            log.info("CPU shares by resizing pods of namespace %s in place, %g cores", settings.namespace, cores)
        else:
            log.warning(
                "CPU shares are only recorded: allow patch on pods/resize in namespace %s to enforce them",
                settings.namespace,
            )

    def select(self, group: str, selector: str, *, container: str | None = None) -> None:
        """Open a group of the pods that a label selector chooses, now and later.

        Args:
            group: its name.
            selector: such as ``spark-role=executor,spark-app-selector=spark-0123``.
            container: of a pod's containers the one that is resized; default is that of the settings.
        """
        with self._lock:
            self._groups[ports.check_group(group)] = _Group(selector, container or self.settings.container)

    def open(self, group: str) -> None:
        """As in `CpuPort`; the pods are those labelled ``mlscale-group=<group>``, unless `select` said otherwise."""
        with self._lock:
            self._groups.setdefault(ports.check_group(group), self._labelled(group))

    def weigh(self, group: str, weights: Mapping[str, float]) -> None:
        """As in `SpreadPort`; a part is an executor's id."""
        with self._lock:
            self._group(group).weights = {part: weight for part, weight in weights.items() if weight > 0}

    def apply(self, group: str, share: ports.CpuShare, terms: ports.Terms = ports.Terms()) -> ports.CpuShare:
        with self._lock:
            found = self._group(group)
            found.share = ports.granted(group, share, terms, self.host_cores)
            if not self.enforces:
                found.granted = found.share
                return found.granted
            now_s = self._clock.monotonic()
            resting = found.looked_s is not None and now_s - found.looked_s < self.settings.period_s
            if share == ports.UNMANAGED or not resting:
                found.looked_s = now_s
                found.granted = self._resize(found)
            return found.granted

    def usage(self, group: str) -> ports.CpuUsage:
        with self._lock:
            found = self._group(group)
            if found.meter is None:
                found.meter = pod_meter.PodMeter(
                    api=self._metrics,
                    namespace=self.settings.namespace,
                    selector=found.selector,
                    container=found.container,
                    clock=self._clock,
                    timeout_s=self.settings.timeout_s,
                )
            return ports.CpuUsage(used_core_s=found.meter.used_core_s())

    def admit(self, group: str, pid: int) -> None:
        """Always refused: pods are chosen by their labels."""
        self._group(group)
        raise errors.InvalidInputError("pid", pid, "pods enter a group by their labels; label them instead")

    def entry_files(self, group: str) -> tuple[Path, ...]:
        self._group(group)
        return ()

    def groups(self) -> list[ports.GroupInfo]:
        """The groups of this port; a pod has no process ids here."""
        with self._lock:
            return [ports.GroupInfo(name=name, share=self._groups[name].granted) for name in sorted(self._groups)]

    def close(self, group: str) -> None:
        with self._lock:
            found = self._groups.pop(ports.check_group(group), None)
        if found is None or not self.enforces or found.looked_s is None:
            return
        found.share = ports.UNMANAGED
        self._resize(found)

    def _labelled(self, group: str) -> _Group:
        return _Group(f"mlscale-group={group}", self.settings.container)

    def _group(self, group: str) -> _Group:
        return self._groups[ports.check_group(group)]

    def _resize(self, group: _Group) -> ports.CpuShare:
        """Bring the pods to the group's share; returns what the nodes have given."""
        running = self._pods(group)
        usable = [pod for pod in running if pod.qos is not pods.Qos.BEST_EFFORT]
        if running and not usable:
            raise errors.InvalidInputError(
                "pods",
                group.selector,
                "their QoS class is BestEffort, which cannot be resized; "
                "set spark.kubernetes.executor.request.cores and spark.kubernetes.executor.limit.cores",
            )
        shares = self._divided(group, usable)
        after = [self._brought(group, pod, shares.get(pod.part)) for pod in usable]
        return parts.together({pod.name: pod.actual.share for pod in after}) if after else group.share

    def _divided(self, group: _Group, running: list[pods.Pod]) -> Mapping[str, ports.CpuShare]:
        """The share of each part; nothing for the safe share, and for parts that nobody has weighed yet."""
        if group.share == ports.UNMANAGED:
            return {}
        made = {pod.part: pod.original.limit or self.host_cores for pod in running}
        room = {pod.part: group.caps.get(pod.name, made[pod.part]) for pod in running}
        weights = made if group.weights is None else {part: group.weights.get(part, 0.0) for part in made}
        return parts.divided(group.share, weights, room)

    def _brought(self, group: _Group, pod: pods.Pod, share: ports.CpuShare | None) -> pods.Pod:
        """The pod after what had to be asked for it; one that must be left alone is returned as it is."""
        self._tell_pending(group, pod)
        if share is not None:
            target = pods.wanted(pod, share)
        elif group.share == ports.UNMANAGED:
            target = pod.original
        else:
            return pod
        if pod.pending is pods.Pending.INFEASIBLE:
            group.caps[pod.name] = pod.actual.limit or pod.actual.request
            target = pod.actual if target.request > pod.actual.request else target
        deadband = 0.0 if target == pod.original else self.settings.deadband
        if target.near(pod.spec, deadband):
            return pod
        return self._asked(group, pod, target)

    def _asked(self, group: _Group, pod: pods.Pod, target: pods.Cores) -> pods.Pod:
        settings = self.settings
        try:
            if not pod.marked:
                self._mark(group, pod)
            answer = self._core.patch_namespaced_pod_resize(
                pod.name,
                settings.namespace,
                pods.resize_body(group.container, target),
                _request_timeout=settings.timeout_s,
            )
        except _client_errors() as exc:
            self._tell_failure(group, pod, exc)
            return pod
        return self._pod(answer, group) or pod

    def _mark(self, group: _Group, pod: pods.Pod) -> None:
        """Have the pod remember what it had; without permission the next controller takes what it finds for that."""
        from kubernetes.client import ApiException

        try:
            self._core.patch_namespaced_pod(
                pod.name,
                self.settings.namespace,
                pods.mark_body(ANNOTATION, pod.original),
                _request_timeout=self.settings.timeout_s,
            )
        except ApiException as exc:
            if exc.status != 403:
                raise
            self._once(
                group, "", "may not annotate pods: a restarted controller will take their share for all they had"
            )

    def _tell_pending(self, group: _Group, pod: pods.Pod) -> None:
        if pod.pending is pods.Pending.DEFERRED:
            self._once(group, pod.name, f"its node has no room for the resize now and will try again: {pod.message}")
        elif pod.pending is pods.Pending.INFEASIBLE:
            self._once(group, pod.name, f"its node can never give more than it has: {pod.message}")
        if pod.original.limit is None and group.share.ceiling_cores is not None:
            self._once(group, pod.name, "has no CPU limit: set spark.kubernetes.executor.limit.cores to have ceilings")
        if pod.qos is pods.Qos.GUARANTEED and group.share.ceiling_cores is None and group.share != ports.UNMANAGED:
            self._once(group, "", STUCK)

    def _tell_failure(self, group: _Group, pod: pods.Pod, exc: Exception) -> None:
        status = getattr(exc, "status", None)
        if status == 404 and _is_about(exc, pod.name):
            return  # it has ended
        if status in (403, 404):
            self.enforces = False
            fix = "allow patch on pods/resize" if status == 403 else "in-place resize needs Kubernetes 1.33 or later"
            self._once(group, "", f"pods cannot be resized ({fix}); shares are only recorded from now on")
            return
        self._once(group, pod.name, f"the resize failed and will be tried again: {status or exc} {_message(exc)}")

    def _once(self, group: _Group, pod: str, message: str) -> None:
        level = logging.DEBUG if (pod, message) in group.told else logging.WARNING
        group.told.add((pod, message))
        log.log(level, "pods %s%s: %s", group.selector, f", {pod}" if pod else "", message)

    def _pods(self, group: _Group) -> list[pods.Pod]:
        with self._reached():
            listed = self._core.list_namespaced_pod(
                self.settings.namespace, label_selector=group.selector, _request_timeout=self.settings.timeout_s
            )
        return [pod for row in listed.items if (pod := self._pod(row, group))]

    def _pod(self, row: Any, group: _Group) -> pods.Pod | None:
        return pods.pod_of(
            self._client.sanitize_for_serialization(row),
            container=group.container,
            part_label=self.settings.part_label,
            annotation=ANNOTATION,
        )

    def _permitted(self) -> bool:
        """Ask whether pods may be resized; a server that does not tell lets us try."""
        from kubernetes import client

        rule = client.V1ResourceAttributes(
            namespace=self.settings.namespace, verb="patch", resource="pods", subresource="resize"
        )
        review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=rule))
        try:
            with self._reached():
                answer = client.AuthorizationV1Api(self._client).create_self_subject_access_review(
                    review, _request_timeout=self.settings.timeout_s
                )
        except errors.UnreachableError as exc:
            if isinstance(exc.__cause__, client.ApiException):
                return True
            raise
        return bool(answer.status.allowed)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except _client_errors() as exc:
            what = f"HTTP {getattr(exc, 'status', None)} {getattr(exc, 'reason', exc)}"
            raise errors.UnreachableError("Kubernetes", self._address, what) from exc


def _client(configuration: Any, settings: PodSettings) -> Any:
    """A client that tries again by itself after what may pass."""
    try:
        from kubernetes import client
    except ImportError as exc:
        raise errors.InvalidInputError(
            "kubernetes", None, "is not installed here; pip install 'airflow-provider-mlscale[kubernetes]'"
        ) from exc
    from urllib3.util import Retry

    patient = copy.deepcopy(configuration)
    patient.retries = Retry(
        total=settings.retries,
        connect=1,
        read=1,
        backoff_factor=settings.backoff_s,
        status_forcelist=_PASSING,
        allowed_methods=None,  # all: our patches say what shall be, and may be repeated
        raise_on_status=False,
    )
    return client.ApiClient(patient)


def _apis(api_client: Any) -> tuple[Any, Any]:
    from kubernetes import client

    return client.CoreV1Api(api_client), client.CustomObjectsApi(api_client)


def _client_errors() -> tuple[type[Exception], ...]:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    return ApiException, HTTPError


def _body(exc: Exception) -> Mapping[str, Any]:
    try:
        found = json.loads(getattr(exc, "body", "") or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _message(exc: Exception) -> str:
    return str(_body(exc).get("message") or "")


def _is_about(exc: Exception, pod: str) -> bool:
    """Whether the server misses this pod, and not the whole subresource."""
    return bool((_body(exc).get("details") or {}).get("name") == pod)
