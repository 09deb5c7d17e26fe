"""From the extras of a connection to its federation: a real one, or one that is simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import client, ports
from airflow_mlscale.federated.adapters import nvflare_admin, simulated_federation

SIMULATED = "simulated_sites"
"""The extra that makes a federation simulated: names of its sites."""


def stored(run_store: Path) -> client.RunClient:
    """The runs of a store whose federation is not known here: to read, to change and to ask to end."""
    return client.RunClient(Unknown(str(run_store)), run_store)


@dataclass(frozen=True)
class Unknown:
    """A federation of which no more is known than its store (`ports.FederationAdmin`)."""

    run_store: str

    def submit(self, job: Path, token: str) -> str:
        raise self._error()

    def job_status(self, job_id: str) -> str | None:
        raise self._error()

    def abort(self, job_id: str) -> None:
        raise self._error()

    def sites(self) -> Sequence[str]:
        raise self._error()

    def sites_without(self, job_id: str) -> Sequence[str]:
        raise self._error()

    def _error(self) -> errors.UnreachableError:
        fix = "only its run store is known here; set AIRFLOW_CONN_MLSCALE_FEDERATED to the connection"
        return errors.UnreachableError("the federation", self.run_store, fix)


def runs(extra: Mapping[str, Any], name: str) -> client.RunClient:
    """Begin, follow, change and end the runs of a federation.

    Args:
        extra: of the connection.
        name: of the connection, for messages.

    Raises:
        InvalidInputError: an extra is missing or wrong, or the kit is no admin's start-up kit.
    """
    store = _directory(extra, "run_store", name)
    return client.RunClient(admin(extra, name), store, keeps_alive=simulated(extra))


def simulated(extra: Mapping[str, Any]) -> bool:
    """Whether the federation is simulated; an empty field of a form says nothing."""
    return extra.get(SIMULATED) not in (None, "")


def admin(extra: Mapping[str, Any], name: str) -> ports.FederationAdmin:
    """The federation itself; arguments as of `runs`.

    Raises:
        InvalidInputError: as for `runs`.
    """
    if simulated(extra):
        return simulated_federation.SimulatedAdmin(simulated_federation.Simulation.from_extra(extra))
    found = nvflare_admin.NvflareAdmin(_directory(extra, "admin_kit", name))
    found.check_kit()
    return found


def _directory(extra: Mapping[str, Any], key: str, name: str) -> Path:
    value = extra.get(key)
    if not value or not isinstance(value, str):
        raise errors.InvalidInputError(key, value, f"set this extra of the connection {name!r} to a directory")
    return Path(value).expanduser()
