"""An application on YARN: found, watched and ended through the ResourceManager's REST API, read through its proxy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import httpx

from airflow_mlscale import errors
from airflow_mlscale.spark.ports import RemoteState, RemoteStatus

TAG = "mlscale-"
"""Prefix of the application tag that names the run."""
_WAITING = ("NEW", "NEW_SAVING", "SUBMITTED", "ACCEPTED")


def address(rm_url: str) -> str:
    """The ResourceManager's web address, as people write it, in full."""
    return (rm_url if "://" in rm_url else f"http://{rm_url}").rstrip("/")


def page(rm_url: str, application_id: str) -> str:
    """Where the ResourceManager shows the driver's web page, and after its end its own."""
    return f"{address(rm_url)}/proxy/{application_id}/"


class YarnApplication:
    """`RemoteApplication` by application tag."""

    def __init__(self, rm_url: str, *, run: str, user: str | None = None, timeout_s: float = 10.0) -> None:
        """Follow one run.

        Args:
            rm_url: the ResourceManager's web address, such as ``http://rm:8088``.
            run: the run, as in the application's tag.
            user: as whom to ask, where the ResourceManager has simple authentication.
            timeout_s: for one request.
        """
        self.rm_url = address(rm_url)
        self.run = run
        self._application_id: str | None = None
        self._client = httpx.Client(
            timeout=timeout_s,
            trust_env=False,
            follow_redirects=True,  # a proxy server of its own, or the active one of two ResourceManagers
            params={"user.name": user} if user else {},
        )

    @property
    def page(self) -> str | None:
        return self._application_id and page(self.rm_url, self._application_id)

    def find(self) -> str | None:
        row = self._row()
        return None if row is None else str(row["id"])

    def status(self) -> RemoteStatus:
        row = self._row()
        if row is None:
            return RemoteStatus(state=RemoteState.LOST, reason=f"no application is tagged {TAG}{self.run}")
        ended_ms = float(row.get("finishedTime") or 0)
        diagnostics = str(row.get("diagnostics") or "").strip()
        told = f"YARN says {row['state']}/{row['finalStatus']} of {row['id']}"
        return RemoteStatus(
            state=_state(str(row["state"]), str(row["finalStatus"])),
            reason=f"{told}: {diagnostics}" if diagnostics else told,
            ended_at=ended_ms / 1000 if ended_ms else None,
        )

    def driver(self, path: str) -> Any:
        application = self._application_id or self.find()
        if application is None:
            raise errors.UnreachableError("the Spark driver", self.rm_url, "YARN does not know the application yet")
        return self._ask("the Spark driver", "GET", f"/proxy/{application}/api/v1{path}")

    def kill(self) -> None:
        application = self._application_id or self.find()
        if application is not None:
            with suppress(KeyError):
                self._ask("YARN", "PUT", f"/ws/v1/cluster/apps/{application}/state", json={"state": "KILLED"})

    def close(self) -> None:
        self._client.close()

    def ask(self) -> str:
        """Version and state of YARN itself, for people.

        Raises:
            UnreachableError: it does not answer, or something else than a ResourceManager does.
        """
        try:
            found = self._ask("YARN", "GET", "/ws/v1/cluster/info")["clusterInfo"]
            return f"YARN {found['resourceManagerVersion']} at {self.rm_url} is {found['state']}"
        except (KeyError, TypeError) as exc:
            raise errors.UnreachableError("YARN", self.rm_url, "something else answers there") from exc

    def _row(self) -> Mapping[str, Any] | None:
        """The application; of several tries of one run the latest."""
        if self._application_id is not None:
            try:
                row: Mapping[str, Any] = self._ask("YARN", "GET", f"/ws/v1/cluster/apps/{self._application_id}")["app"]
            except KeyError:  # YARN forgets the oldest
                return None
            return row
        answer = self._ask("YARN", "GET", "/ws/v1/cluster/apps", params={"applicationTags": f"{TAG}{self.run}"})
        rows = sorted((answer.get("apps") or {}).get("app") or (), key=lambda row: int(row.get("startedTime") or 0))
        if not rows:
            return None
        self._application_id = str(rows[-1]["id"])
        found: Mapping[str, Any] = rows[-1]
        return found

    def _ask(self, who: str, method: str, path: str, **arguments: Any) -> Any:
        try:
            answer = self._client.request(method, f"{self.rm_url}{path}", **arguments)
            answer.raise_for_status()
            return answer.json() if answer.content else None
        except (httpx.HTTPError, ValueError) as exc:
            if isinstance(exc, httpx.HTTPStatusError) and exc.response.status_code == 404:
                raise KeyError(path) from exc
            raise errors.UnreachableError(
                who, self.rm_url, f"{exc}; check yarn_resourcemanager_webapp_address in the connection's extra field"
            ) from exc


def _state(state: str, final: str) -> RemoteState:
    if state in _WAITING:
        return RemoteState.WAITING
    if state == "KILLED" or final == "KILLED":
        return RemoteState.KILLED
    if state == "FAILED" or final == "FAILED":
        return RemoteState.FAILED
    return RemoteState.SUCCEEDED if final == "SUCCEEDED" else RemoteState.RUNNING
