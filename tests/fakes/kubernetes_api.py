"""An HTTP server that speaks as much of the Kubernetes API as the real client needs to list, resize and end pods.

It keeps the rules that matter to a client: strategic-merge patches only, QoS classes never change through a
resize, limits are never taken away, nodes may take their time, defer, or refuse for good.
"""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
Answer = tuple[int, Json]


@dataclass
class Failure:
    """The next ``times`` requests of this kind fail."""

    method: str
    path: str
    """A regular expression that the path must match at its end."""
    status: int
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class FakeKubernetes:
    """The state behind the server; tests change it as they like."""

    url: str = ""
    pods: dict[tuple[str, str], Json] = field(default_factory=dict)
    """By namespace and name, as the API shows them."""
    nodes: dict[str, str] = field(default_factory=dict)
    """How the node of a pod answers a resize, by the pod's name: ``do`` (default), ``wait``, or a reason."""
    failures: list[Failure] = field(default_factory=list)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    """Method, path and body of every request."""
    metrics: Json | None = None
    """Items of metrics.k8s.io by pod name; None where there is no metrics server."""
    permitted: bool = True
    """Whether pods may be resized."""
    resizable: bool = True
    """Whether the server has the ``resize`` subresource."""
    proxied: Callable[[str, str], Answer] | None = None
    """Answers what is asked through a pod's proxy: pod (``name:port``) and path with query."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    _version: int = 1

    def add(
        self,
        name: str,
        *,
        labels: Mapping[str, str],
        request: str | None = "2",
        limit: str | None = "2",
        memory: tuple[str, str] | None = ("1Gi", "1Gi"),
        container: str = "spark-kubernetes-executor",
        namespace: str = "default",
        phase: str = "Running",
    ) -> Json:
        """A pod with one container; ``memory`` is its request and limit."""
        resources = _resources(request, limit, memory)
        pod: Json = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": dict(labels),
                "annotations": {},
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "resourceVersion": "1",
                "uid": f"uid-{name}",
            },
            "spec": {"containers": [{"name": container, "image": "spark:4.3", "resources": resources}]},
            "status": {
                "phase": phase,
                "qosClass": qos([resources]),
                "conditions": [],
                "containerStatuses": [_container_status(container, resources)],
            },
        }
        with self.lock:
            self.pods[namespace, name] = pod
        return pod

    def cpu(self, name: str, namespace: str = "default") -> tuple[str | None, str | None]:
        """Request and limit in the pod's spec."""
        resources = self.pods[namespace, name]["spec"]["containers"][0]["resources"]
        return resources.get("requests", {}).get("cpu"), resources.get("limits", {}).get("cpu")

    def settle(self, name: str, namespace: str = "default") -> None:
        """The node does what it was asked for."""
        with self.lock:
            _settle(self.pods[namespace, name])

    def resizes(self) -> list[tuple[str, Any]]:
        """Pod and body of each resize that was asked for, failed ones included."""
        found = []
        for method, path, body in self.requests:
            if method == "PATCH" and path.endswith("/resize"):
                found.append((path.split("/")[-2], body))
        return found

    def answer(self, method: str, target: str, body: Any, kind: str) -> Answer | Failure:
        """What the server says to one request."""
        url = urlsplit(target)
        with self.lock:
            self.requests.append((method, url.path, body))
            for failure in self.failures:
                if failure.times > 0 and failure.method == method and re.search(f"{failure.path}$", url.path):
                    failure.times -= 1
                    return failure
            return self._route(method, url.path, parse_qs(url.query), body, kind)

    def _route(self, method: str, path: str, query: Mapping[str, list[str]], body: Any, kind: str) -> Answer:
        if path == "/version/":
            fields = ("buildDate", "compiler", "gitCommit", "gitTreeState", "goVersion", "major", "minor", "platform")
            return 200, {"gitVersion": "v1.35.0", **dict.fromkeys(fields, "")}
        if path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews":
            return 201, {**body, "status": {"allowed": self.permitted}}
        if found := re.fullmatch(r"/apis/metrics\.k8s\.io/v1beta1/namespaces/([^/]+)/pods", path):
            return self._metrics(found[1], query)
        if found := re.fullmatch(r"/api/v1/namespaces/([^/]+)/pods", path):
            chosen = self._chosen(found[1], query)
            return 200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": chosen}
        if found := re.fullmatch(r"/api/v1/namespaces/([^/]+)/pods/([^/]+)/proxy(/.*)", path):
            asked = "&".join(f"{name}={value}" for name, values in query.items() for value in values)
            return self.proxied(found[2], f"{found[3]}?{asked}".rstrip("?")) if self.proxied else _missing()
        if found := re.fullmatch(r"/api/v1/namespaces/([^/]+)/pods/([^/]+)(/resize)?", path):
            return self._pod(method, (found[1], found[2]), bool(found[3]), body, kind)
        return _missing()

    def _pod(self, method: str, key: tuple[str, str], resize: bool, body: Any, kind: str) -> Answer:
        if resize and not self.resizable:
            return _missing()
        if key not in self.pods:
            return _status(404, "NotFound", f'pods "{key[1]}" not found', key[1])
        pod = self.pods[key]
        match method:
            case "GET":
                return 200, pod
            case "DELETE":
                return 200, self.pods.pop(key)
            case "PATCH" if kind not in ("application/strategic-merge-patch+json", "application/merge-patch+json"):
                return _status(415, "UnsupportedMediaType", f"{kind} is not supported", key[1])
            case "PATCH" if resize:
                return self._resize(pod, body)
            case "PATCH":
                pod["metadata"].setdefault("annotations", {}).update(body["metadata"].get("annotations", {}))
                self._changed(pod)
                return 200, pod
        return _status(405, "MethodNotAllowed", method, key[1])

    def _resize(self, pod: Json, body: Any) -> Answer:
        name = pod["metadata"]["name"]
        after = copy.deepcopy(pod["spec"])
        for change in body["spec"]["containers"]:
            (container,) = [each for each in after["containers"] if each["name"] == change["name"]]
            for part in ("requests", "limits"):
                container["resources"].setdefault(part, {}).update(change.get("resources", {}).get(part, {}))
                if not container["resources"][part]:
                    del container["resources"][part]
            if _cores(container["resources"], "requests") > _cores(container["resources"], "limits"):
                return _status(422, "Invalid", "must be less than or equal to cpu limit", name)
        if qos([each["resources"] for each in after["containers"]]) != pod["status"]["qosClass"]:
            return _status(422, "Invalid", "Pod QOS Class may not change as a result of resizing", name)
        pod["spec"] = after
        self._changed(pod)
        self._node(pod, self.nodes.get(name, "do"))
        return 200, pod

    def _node(self, pod: Json, mood: str) -> None:
        status = pod["status"]
        status["conditions"] = []
        lower = all(
            _cores(told["resources"], "requests") >= _cores(own["resources"], "requests")
            for told, own in zip(status["containerStatuses"], pod["spec"]["containers"], strict=True)
        )
        if mood == "wait":
            status["conditions"] = [{"type": "PodResizeInProgress", "status": "True"}]
        elif mood == "do" or lower:  # there is always room for less
            _settle(pod)
        else:
            message = f"Node didn't have enough capacity: cpu ({mood})"
            condition = {"type": "PodResizePending", "status": "True", "reason": mood, "message": message}
            status["conditions"] = [condition]

    def _metrics(self, namespace: str, query: Mapping[str, list[str]]) -> Answer:
        if self.metrics is None:
            return _missing()
        names = [pod["metadata"]["name"] for pod in self._chosen(namespace, query)]
        items = [self.metrics[name] for name in names if name in self.metrics]
        return 200, {"kind": "PodMetricsList", "apiVersion": "metrics.k8s.io/v1beta1", "metadata": {}, "items": items}

    def _chosen(self, namespace: str, query: Mapping[str, list[str]]) -> list[Json]:
        wanted = dict(pair.split("=", 1) for pair in query.get("labelSelector", [""])[0].split(",") if pair)
        return [
            pod
            for (where, _), pod in sorted(self.pods.items())
            if where == namespace and wanted.items() <= pod["metadata"]["labels"].items()
        ]

    def _changed(self, pod: Json) -> None:
        self._version += 1
        pod["metadata"]["resourceVersion"] = str(self._version)


@contextmanager
def kubernetes_api() -> Iterator[FakeKubernetes]:
    """A running server; its address is the state's ``url``."""
    state = FakeKubernetes()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            answer = state.answer(self.command, self.path, body, self.headers.get("Content-Type", ""))
            headers: Mapping[str, str] = {}
            if isinstance(answer, Failure):
                headers = answer.headers
                answer = _status(answer.status, "Injected", "as the test wants it", "")
            content = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            for name, value in {**headers, "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def measured(
    name: str, cpu: str, at: str, *, window: str = "15s", container: str = "spark-kubernetes-executor"
) -> Json:
    """One item of metrics.k8s.io."""
    return {
        "metadata": {"name": name, "namespace": "default"},
        "timestamp": at,
        "window": window,
        "containers": [{"name": container, "usage": {"cpu": cpu, "memory": "1Ki"}}],
    }


def qos(resources: list[Json]) -> str:
    """As the API server computes it."""
    values = [(each.get("requests", {}), each.get("limits", {})) for each in resources]
    if not any(requests or limits for requests, limits in values):
        return "BestEffort"
    whole = all(
        kind in limits and _amount(requests.get(kind, limits[kind])) == _amount(limits[kind])
        for requests, limits in values
        for kind in ("cpu", "memory")
    )
    return "Guaranteed" if whole else "Burstable"


def _resources(request: str | None, limit: str | None, memory: tuple[str, str] | None) -> Json:
    requests = {"cpu": request} if request else {}
    limits = {"cpu": limit} if limit else {}
    if memory:
        requests["memory"], limits["memory"] = memory
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _container_status(name: str, resources: Json) -> Json:
    return {
        "name": name,
        "image": "spark:4.3",
        "imageID": "",
        "ready": True,
        "restartCount": 0,
        "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        "resources": copy.deepcopy(resources),
    }


def _settle(pod: Json) -> None:
    pod["status"]["conditions"] = []
    for told, own in zip(pod["status"]["containerStatuses"], pod["spec"]["containers"], strict=True):
        told["resources"] = copy.deepcopy(own["resources"])


def _cores(resources: Json, part: str) -> float:
    given = resources.get(part, {}).get("cpu")
    return _amount(given) if given else (float("inf") if part == "limits" else 0.0)


def _amount(text: str) -> float:
    from kubernetes.utils import parse_quantity

    return float(parse_quantity(text))


def _missing() -> Answer:
    return _status(404, "NotFound", "the server could not find the requested resource", "")


def _status(code: int, reason: str, message: str, name: str) -> Answer:
    details = {"name": name, "kind": "pods"} if name else {}
    return code, {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": details,
        "code": code,
    }
