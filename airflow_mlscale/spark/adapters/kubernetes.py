"""A driver pod on Kubernetes: found by its labels, read through the API server, ended by deleting it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.spark.ports import RemoteState, RemoteStatus

RUN_LABEL = "mlscale-run"
"""Label of a run's driver and executors."""
UI_PORT = 4040
_PHASES = {
    "Pending": RemoteState.WAITING,
    "Running": RemoteState.RUNNING,
    "Unknown": RemoteState.RUNNING,  # its node does not answer: it may come back
    "Succeeded": RemoteState.SUCCEEDED,
    "Failed": RemoteState.FAILED,
}


def configuration(master_url: str, *, config_file: str | None = None) -> Any:
    """`kubernetes.client.Configuration` for a Spark master ``k8s://…``.

    Credentials come from ``config_file``, else from ``$KUBECONFIG`` or ``~/.kube/config``, else from the pod this
    runs in; the address is always the master's, as for spark-submit.

    Raises:
        InvalidInputError: the client is missing, or the file cannot be read.
    """
    try:
        from kubernetes import client, config
    except ImportError as exc:
        raise errors.InvalidInputError(
            "kubernetes", None, "is not installed here; pip install 'airflow-provider-mlscale[kubernetes]'"
        ) from exc
    found = client.Configuration()
    usual = Path(os.environ.get("KUBECONFIG", config.KUBE_CONFIG_DEFAULT_LOCATION)).expanduser()
    try:
        if config_file or usual.exists():
            config.load_kube_config(config_file=config_file or str(usual), client_configuration=found)
        elif os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=found)
    except (config.ConfigException, OSError) as exc:
        raise errors.InvalidInputError("kube_config", config_file or str(usual), f"cannot be used: {exc}") from exc
    found.host = api_server(master_url)
    return found


def core_api(found: Any) -> Any:
    """`kubernetes.client.CoreV1Api` with a configuration."""
    from kubernetes import client

    return client.CoreV1Api(client.ApiClient(found))


def api_server(master_url: str) -> str:
    """Address of the API server of ``k8s://…``; https unless it says otherwise."""
    address = master_url.removeprefix("k8s://")
    return (address if "://" in address else f"https://{address}").rstrip("/")


class KubernetesApplication:
    """`RemoteApplication` by the run's label."""

    def __init__(self, api: Any, *, namespace: str, run: str, ui_port: int = UI_PORT, timeout_s: float = 10.0) -> None:
        """Follow one run.

        Args:
            api: `kubernetes.client.CoreV1Api`.
            namespace: of the driver.
            run: value of `RUN_LABEL`.
            ui_port: of the driver's web page.
            timeout_s: for one request.
        """
        self.namespace = namespace
        self.run = run
        self.ui_port = ui_port
        self._api = api
        self._timeout_s = timeout_s
        self._pod: str | None = None

    @property
    def page(self) -> None:
        """The API server's proxy asks for credentials that a browser does not have."""

    def find(self) -> str | None:
        pod = self._driver_pod()
        return None if pod is None else f"{self.namespace}:{pod.metadata.name}"

    def status(self) -> RemoteStatus:
        pod = self._driver_pod()
        if pod is None:
            reason = f"no driver pod is labelled {RUN_LABEL}={self.run} in namespace {self.namespace}"
            return RemoteStatus(state=RemoteState.LOST, reason=reason)
        ended = _terminated(pod)
        told = f"pod {pod.metadata.name} is {pod.status.phase}"
        return RemoteStatus(
            state=_PHASES.get(str(pod.status.phase), RemoteState.RUNNING),
            reason=f"{told}{_details(pod, ended)}",
            ended_at=ended.finished_at.timestamp() if ended and ended.finished_at else None,
        )

    def driver(self, path: str) -> Any:
        if self._pod is None and self.find() is None:
            raise errors.UnreachableError("the Spark driver", self.namespace, "its pod is not there yet")
        with self._reached("the Spark driver"):
            # The client's own method for this would escape the path, and drop its query.
            client = self._api.api_client
            answer = client.rest_client.pool_manager.request(
                "GET",
                f"{client.configuration.host}/api/v1/namespaces/{self.namespace}/pods/{self._pod}:{self.ui_port}"
                f"/proxy/api/v1{path}",
                headers={"Accept": "application/json", **_authority(client.configuration)},
                timeout=self._timeout_s,
                retries=False,
            )
            if answer.status == 404:
                raise KeyError(path)
            if answer.status >= 400:
                raise ValueError(f"HTTP {answer.status} through the API server; its role needs get on pods/proxy")
            return json.loads(answer.data)

    def kill(self) -> None:
        if self._pod is None and self.find() is None:
            return
        with self._reached("Kubernetes", gone_is_fine=True):
            self._api.delete_namespaced_pod(self._pod, self.namespace, _request_timeout=self._timeout_s)

    def close(self) -> None:
        self._api.api_client.rest_client.pool_manager.clear()

    def ask(self) -> str:
        """Version of Kubernetes itself, for people; asked for with the credentials that applications are read with.

        Raises:
            UnreachableError: it does not answer, or refuses them.
        """
        from kubernetes import client

        with self._reached("Kubernetes"):
            version = client.VersionApi(self._api.api_client).get_code(_request_timeout=self._timeout_s)
            self._api.list_namespaced_pod(self.namespace, limit=1, _request_timeout=self._timeout_s)
        return f"Kubernetes {version.git_version} at {self._api.api_client.configuration.host} lets pods be read"

    def _driver_pod(self) -> Any:
        with self._reached("Kubernetes"):
            pods = self._api.list_namespaced_pod(
                self.namespace,
                label_selector=f"{RUN_LABEL}={self.run},spark-role=driver",
                _request_timeout=self._timeout_s,
            ).items
        if not pods:
            return None
        latest = max(pods, key=lambda pod: pod.metadata.creation_timestamp.timestamp())
        self._pod = str(latest.metadata.name)
        return latest

    @contextmanager
    def _reached(self, who: str, *, gone_is_fine: bool = False) -> Iterator[None]:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        address = self._api.api_client.configuration.host
        try:
            yield
        except ApiException as exc:
            if gone_is_fine and exc.status == 404:
                return
            fix = (
                "; its role needs get and list on pods, get on pods/proxy, delete on pods" if exc.status == 403 else ""
            )
            raise errors.UnreachableError(who, address, f"HTTP {exc.status} {exc.reason}{fix}") from exc
        except (HTTPError, ValueError) as exc:
            raise errors.UnreachableError(who, address, str(exc)) from exc


def _authority(configuration: Any) -> dict[str, str]:
    """Headers with the credentials."""
    settings = configuration.auth_settings().values()
    return {part["key"]: part["value"] for part in settings if part.get("in") == "header" and part.get("value")}


def _terminated(pod: Any) -> Any:
    """How the driver's container ended; None while it runs."""
    for container in pod.status.container_statuses or ():
        if container.state and container.state.terminated:
            return container.state.terminated
    return None


def _details(pod: Any, ended: Any) -> str:
    if ended is not None:
        return f", exit code {ended.exit_code}" + (f" ({ended.reason})" if ended.reason else "")
    for container in pod.status.container_statuses or ():
        waiting = container.state.waiting if container.state else None
        if waiting is not None and waiting.reason:
            return f" ({waiting.reason}: {waiting.message})" if waiting.message else f" ({waiting.reason})"
    return f" ({pod.status.reason})" if pod.status.reason else ""
