"""The connection to a federation."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.sdk import BaseHook, Connection

from airflow_mlscale import errors
from airflow_mlscale.federated import client, connection, ports


class FederatedHook(BaseHook):
    """A federation, out of a connection of type ``mlscale_federated``.

    The connection's extras: ``admin_kit``, the directory of the admin's start-up kit on the worker and the
    triggerer, and ``run_store``, the directory of runs that they share with the federation's server. The kit
    itself is a secret and is never logged. Or, for tests of DAGs, ``simulated_sites`` in place of the kit:
    names of sites that are played by one local process on simulated time, see
    `federated.adapters.simulated_federation.Simulation`.

    Args:
        conn_id: the connection.
        connection: one that was already looked up, as triggers do.
    """

    conn_name_attr = "conn_id"
    default_conn_name = "mlscale_federated"
    conn_type = "mlscale_federated"
    hook_name = "ML at scale: federated (NVFlare)"

    def __init__(self, conn_id: str = default_conn_name, *, connection: Connection | None = None) -> None:
        super().__init__()
        self.conn_id = conn_id
        self._connection = connection

    @cached_property
    def runs(self) -> client.RunClient:
        """Begin, follow, change and end runs.

        Raises:
            InvalidInputError: the connection lacks an extra, or its kit is no admin's start-up kit.
        """
        return connection.runs(self._extra, self.conn_id)

    @cached_property
    def admin(self) -> ports.FederationAdmin:
        """The federation's admin interface.

        Raises:
            InvalidInputError: as for `runs`.
        """
        return connection.admin(self._extra, self.conn_id)

    def get_conn(self) -> client.RunClient:
        """The same as `runs`."""
        return self.runs

    def test_connection(self) -> tuple[bool, str]:
        """Log in and ask for the sites."""
        try:
            sites = self.admin.sites()
            if not self.runs.run_store.is_dir():
                return False, f"logged in, but run_store={str(self.runs.run_store)!r} is not a directory here"
        except errors.MlscaleError as exc:
            return False, str(exc)
        named = ", ".join(sites) or "none"
        if connection.simulated(self._extra):
            return True, f"simulated sites: {named}"
        return True, f"logged in; connected sites: {named}"

    @cached_property
    def _extra(self) -> dict[str, Any]:
        found = self._connection or self.get_connection(self.conn_id)
        return dict(found.extra_dejson)
