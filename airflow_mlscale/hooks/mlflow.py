"""Where a federated run is logged to in MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseHook, Connection

from airflow_mlscale import errors
from airflow_mlscale.federated.adapters import mlflow_log


@dataclass(frozen=True, kw_only=True)
class MLflow:
    """A tracking server or store, and the experiment there. Needs the extra ``mlflow``."""

    experiment: str = "airflow_mlscale"
    """Made if there is none of that name."""
    tracking_uri: str | None = field(default=None, repr=False)
    """Such as ``http://mlflow:5000`` or ``sqlite:////srv/mlflow.db``; without a password."""
    conn_id: str | None = None
    """In its place a connection: its host is the address, login and password are sent to the server."""

    def __post_init__(self) -> None:
        if not self.experiment or not isinstance(self.experiment, str):
            raise errors.InvalidInputError("mlflow.experiment", self.experiment, "name an experiment")
        if (self.tracking_uri is None) == (self.conn_id is None):
            raise errors.InvalidInputError("mlflow", str(self), "give either tracking_uri or conn_id")
        if self.tracking_uri is not None and re.search(r"//[^/]*@", self.tracking_uri):
            told = mlflow_log.USERINFO.sub("//…@", self.tracking_uri)
            fix = "keep the password in a connection, and name that as conn_id"
            raise errors.InvalidInputError("mlflow.tracking_uri", told, fix)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back; it holds no secret."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MLflow:
        """The place from its JSON object."""
        return cls(**values)

    def log(self) -> mlflow_log.MlflowLog:
        """Who logs there; looks the connection up, which a worker does."""
        return self.log_by(BaseHook.get_connection(self.conn_id) if self.conn_id else None)

    async def alog(self) -> mlflow_log.MlflowLog:
        """The same in a triggerer."""
        return self.log_by(await BaseHook.aget_connection(self.conn_id) if self.conn_id else None)

    def log_by(self, connection: Connection | None) -> mlflow_log.MlflowLog:
        """The same by a connection that was looked up already."""
        return mlflow_log.MlflowLog(self.tracking_uri or _address(connection), self.experiment)


def _address(connection: Any) -> str:
    host = connection.host or ""
    scheme, sign, rest = host.rpartition("://")
    if not rest:
        fix = f"set it in the connection {connection.conn_id!r} to MLflow's address"
        raise errors.InvalidInputError("host", host, fix)
    scheme = scheme if sign else connection.schema or "http"
    if not scheme.startswith("http"):
        return f"{scheme}://{rest}"  # a database: its address is whole
    user = ":".join(quote(part or "", safe="") for part in (connection.login, connection.password))
    user = f"{user}@" if connection.login else ""
    port = f":{connection.port}" if connection.port else ""
    return f"{scheme}://{user}{rest}{port}"
