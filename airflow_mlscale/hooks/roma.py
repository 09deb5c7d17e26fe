"""The connection to a ROMA daemon."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from airflow.sdk import BaseHook, Connection

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.roma.adapters import client

DEFAULT_PORT = 8501


class RomaHook(BaseHook):
    """A ROMA daemon, out of a connection of type ``mlscale_roma``: host, port, scheme and, as password, the token.

    With https the extra may say ``ca_file`` (whose certificates to believe), ``verify`` (false: everybody's),
    ``client_cert`` and ``client_key`` (for a daemon that asks its clients for certificates).

    Args:
        conn_id: the connection.
        connection: one that was already looked up, as triggers do.
    """

    conn_name_attr = "conn_id"
    default_conn_name = "mlscale_roma"
    conn_type = "mlscale_roma"
    hook_name = "ML at scale: ROMA serving"

    def __init__(self, conn_id: str = default_conn_name, *, connection: Connection | None = None) -> None:
        super().__init__()
        self.conn_id = conn_id
        self._connection = connection

    @property
    def address(self) -> str:
        """URL of the daemon.

        Raises:
            InvalidInputError: the connection has no host, or another scheme than http and https.
        """
        connection = self._found()
        if not connection.host:
            raise errors.InvalidInputError("host", connection.host, f"set the host of the connection {self.conn_id!r}")
        scheme, separator, host = connection.host.rpartition("://")
        scheme = scheme if separator else connection.schema or "http"
        if scheme not in ("http", "https"):
            raise errors.InvalidInputError("schema", scheme, f"use http or https in the connection {self.conn_id!r}")
        return f"{scheme}://{host}:{connection.port or DEFAULT_PORT}"

    @property
    def headers(self) -> dict[str, str]:
        """Headers that another HTTP client needs: the bearer token, if there is one."""
        token = self._found().password
        return {"Authorization": f"Bearer {token}"} if token else {}

    @property
    def trusted(self) -> ssl.SSLContext | None:
        """Which certificates to believe; None over plain http.

        Raises:
            InvalidInputError: the extra names a file that is not what it should be.
        """
        if not self.address.startswith("https:"):
            return None
        extra = self._found().extra_dejson
        verify = extra.get("verify", True)
        if not isinstance(verify, bool):
            raise errors.InvalidInputError("verify", verify, f"use true or false in the connection {self.conn_id!r}")
        files = {name: extra.get(name) or None for name in ("ca_file", "client_cert", "client_key")}
        return client.trust(verify=verify, **files)

    @contextmanager
    def connected(self) -> Iterator[client.RomaClient]:
        """A blocking client; errors are those of `airflow_mlscale.errors`."""
        with client.RomaClient(self.address, token=self._found().password or None, trusted=self.trusted) as roma:
            yield roma

    def async_client(self) -> client.AsyncRomaClient:
        """An async client, to be entered; for triggers."""
        return client.AsyncRomaClient(self.address, token=self._found().password or None, trusted=self.trusted)

    def get_conn(self) -> client.RomaClient:
        """A blocking client that the caller closes."""
        return client.RomaClient(self.address, token=self._found().password or None, trusted=self.trusted)

    def deploy(self, order: model.DeployOrder) -> dict[str, Any]:
        """Deploy or update a model; returns its status at once, before it is ready."""
        with self.connected() as roma:
            return roma.deploy(order)

    def status(self, name: str, *, window_s: float = 60, settled_within_s: float = 0) -> dict[str, Any]:
        """A model's status, measured over the last ``window_s`` seconds."""
        with self.connected() as roma:
            return roma.status(name, window_s=window_s, settled_within_s=settled_within_s)

    def promote(self, name: str, *, version: str | None = None, reason: str | None = None) -> dict[str, Any]:
        """Let the version that is tried serve everything; returns the status."""
        with self.connected() as roma:
            return roma.promote(name, version=version, reason=reason)

    def roll_back(self, name: str, *, version: str | None = None, reason: str | None = None) -> dict[str, Any]:
        """Leave the version that is tried, or go back to the one before; returns the status."""
        with self.connected() as roma:
            return roma.roll_back(name, version=version, reason=reason)

    def feed_back(self, name: str, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Tell the truth about answers; see `client.RomaClient.feed_back`."""
        with self.connected() as roma:
            return roma.feed_back(name, records)

    def undeploy(self, name: str) -> None:
        """Remove a model; what it accepted is still answered."""
        with self.connected() as roma:
            roma.remove(name)

    def test_connection(self) -> tuple[bool, str]:
        """Ask the daemon for its models, which also proves the token."""
        try:
            with self.connected() as roma:
                models = roma.models()
        except errors.MlscaleError as exc:
            return False, str(exc)
        return True, f"ROMA serves {len(models)} model(s) at {self.address}"

    def _found(self) -> Connection:
        if self._connection is None:
            self._connection = self.get_connection(self.conn_id)
        return self._connection
