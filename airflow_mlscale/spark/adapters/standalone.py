"""A driver that a worker of a standalone cluster runs: found and ended through the master's web page."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import httpx

from airflow_mlscale import errors
from airflow_mlscale.spark.adapters import driver, master
from airflow_mlscale.spark.ports import RemoteState, RemoteStatus

_STATES = {
    "SUBMITTED": RemoteState.WAITING,
    "RELAUNCHING": RemoteState.WAITING,
    "RUNNING": RemoteState.RUNNING,
    "UNKNOWN": RemoteState.RUNNING,  # the master has just come back and asks its workers
    "FINISHED": RemoteState.SUCCEEDED,
    "KILLED": RemoteState.KILLED,
    "FAILED": RemoteState.FAILED,
    "ERROR": RemoteState.FAILED,
}
_TOKEN = re.compile(r'name="csrfToken"\s+value="([^"]+)"')
_API = "/api/v1"
_PORTS_TRIED = 17
"""A driver whose port is taken tries the next ones (`spark.port.maxRetries`)."""


class StandaloneApplication:
    """`RemoteApplication` by driver id."""

    def __init__(self, web_url: str, driver_id: str | None, *, run: str, ui_port: int, timeout_s: float = 5.0) -> None:
        """Follow one driver.

        Args:
            web_url: the master's web page; of several masters all, with commas between them.
            driver_id: as spark-submit told it; None when that is not known.
            run: value of `rest.RUN_PROPERTY`.
            ui_port: first port that the driver's web page tries.
            timeout_s: for one request.
        """
        self.web_url = web_url
        self.driver_id = driver_id
        self.run = run
        self.ui_port = ui_port
        self._api: str | None = None
        """Address of the driver's REST API, once it was found."""
        self._client = httpx.Client(timeout=timeout_s, trust_env=False)

    @property
    def page(self) -> str | None:
        return self._api and self._api.removesuffix(_API)

    def find(self) -> str | None:
        """The driver's id; where spark-submit did not tell it, that of the driver that answers as this run."""
        if self.driver_id is None and self.ui_port:
            self._search()
        return self.driver_id if self._row() else None

    def status(self) -> RemoteStatus:
        row = self._row()
        if row is None:
            reason = f"the master at {self.web_url} does not know {self.driver_id or 'this run'}"
            return RemoteStatus(state=RemoteState.LOST, reason=reason)
        state = _STATES.get(row.state, RemoteState.RUNNING)
        where = f" on {row.host}" if row.host else ""
        hint = f"; its output is in the worker's folder {row.driver_id}" if state is RemoteState.FAILED else ""
        return RemoteStatus(state=state, reason=f"the master says {row.state} of {row.driver_id}{where}{hint}")

    def driver(self, path: str) -> Any:
        self._api = self._api or self._located(self._row())
        try:
            return self._json(f"{self._api}{path}")
        except httpx.HTTPError as exc:
            if isinstance(exc, httpx.HTTPStatusError) and exc.response.status_code == 404:
                raise KeyError(path) from exc
            address, self._api = self._api, None  # it may have been started anew, elsewhere
            raise errors.UnreachableError("the Spark driver", address, str(exc)) from exc

    def kill(self) -> None:
        if self.find() is None:
            return
        web_url = self._master().web_url.rstrip("/")
        try:
            form = {"id": self.driver_id, "terminate": "true", **self._token(web_url)}
            answer = self._client.post(f"{web_url}/driver/kill/", data=form)
        except httpx.HTTPError as exc:
            raise errors.UnreachableError("the Spark master's web page", web_url, str(exc)) from exc
        if answer.status_code >= 400 and self._runs():
            raise errors.UnreachableError(
                "the Spark master's web page",
                web_url,
                f"it refuses to end {self.driver_id} (HTTP {answer.status_code}); set spark.ui.killEnabled=true there",
            )

    def close(self) -> None:
        self._client.close()

    def _token(self, web_url: str) -> dict[str, str]:
        """What the page's own buttons send along (from Spark 4.3 on), and the page of another site could not know."""
        page = self._client.get(web_url, follow_redirects=True)
        found = _TOKEN.search(page.text)
        return {"csrfToken": found[1]} if found else {}

    def _runs(self) -> bool:
        return not self.status().state.over

    def _master(self) -> master.Master:
        return master.state(self.web_url)

    def _row(self) -> master.Driver | None:
        found = self._master()
        row = next((row for row in found.drivers if row.driver_id == self.driver_id), None)
        if row is None and self.driver_id is not None and not found.leads:
            raise errors.UnreachableError(
                "the leading Spark master",
                self.web_url,
                f"it is {found.status}; name the pages of all masters in the connection's extra field master_web_url",
            )
        return row

    def _search(self) -> None:
        """Look for the driver among those that run."""
        for row in self._master().drivers:
            with suppress(errors.UnreachableError):
                self._api, self.driver_id = self._located(row), row.driver_id
                return

    def _located(self, row: master.Driver | None) -> str:
        """The API of a driver, on its worker's host: the first port from ours on at which this run answers."""
        if row is None or row.host is None or row.state != "RUNNING":
            raise errors.UnreachableError("the Spark driver", self.driver_id or "?", "it does not run yet")
        host = f"[{row.host}]" if ":" in row.host else row.host
        for port in range(self.ui_port, self.ui_port + _PORTS_TRIED):
            address = f"http://{host}:{port}{_API}"
            try:
                if self._is_ours(address):
                    return address
            except (httpx.ConnectError, httpx.ConnectTimeout):  # ports are taken one after the other: not there yet
                break
            except (httpx.HTTPError, ValueError, KeyError, TypeError):  # something else listens there
                continue
        raise errors.UnreachableError("the Spark driver", f"{row.host}:{self.ui_port}", "its web page is not there yet")

    def _is_ours(self, address: str) -> bool:
        return any(
            driver.is_ours(self._json(f"{address}/applications/{row['id']}/environment")["sparkProperties"], self.run)
            for row in self._json(f"{address}/applications")
        )

    def _json(self, address: str) -> Any:
        answer = self._client.get(address)
        answer.raise_for_status()
        return answer.json()
