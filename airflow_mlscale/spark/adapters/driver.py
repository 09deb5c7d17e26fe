"""Progress of a driver in the cluster: the same REST API, reached through whatever leads there."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from airflow_mlscale import errors
from airflow_mlscale.spark import ports
from airflow_mlscale.spark.adapters import rest
from airflow_mlscale.spark.model import Progress


class RemoteProgress(rest.RestProgress):
    """`ProgressPort` over a `RemoteApplication`."""

    def __init__(self, application: ports.RemoteApplication, run: str) -> None:
        super().__init__("http://the-driver.invalid", run)
        self._remote = application

    async def read(self) -> Progress | None:
        try:
            return await super().read()
        except errors.UnreachableError:
            if self._application is None:  # it has not begun
                return None
            raise

    async def _get(self, path: str) -> Any:
        try:
            return await asyncio.to_thread(self._remote.driver, path)
        except KeyError:
            missing = httpx.Response(404, request=httpx.Request("GET", f"{self.url}{path}"))
            missing.raise_for_status()
            raise


def is_ours(row_properties: Any, run: str) -> bool:
    """Whether the properties that a driver tells are those of this run."""
    return [rest.RUN_PROPERTY, run] in row_properties
