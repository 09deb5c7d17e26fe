"""Progress of a driver in the cluster: the same REST API, reached through whatever leads there."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import httpx

from airflow_mlscale import errors
from airflow_mlscale.spark import ports
from airflow_mlscale.spark.adapters import rest
from airflow_mlscale.spark.model import Progress

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""A driver that cannot be asked for so long is worth a word: its cluster may be full, or no way may lead there."""


class RemoteProgress(rest.RestProgress):
    """`ProgressPort` over a `RemoteApplication`."""

    def __init__(self, application: ports.RemoteApplication, run: str) -> None:
        super().__init__("http://the-driver.invalid", run)
        self._remote = application
        self._asked_s = time.monotonic()
        self._told = False

    async def read(self) -> Progress | None:
        try:
            return await super().read()
        except errors.UnreachableError as exc:
            if self._application is not None:
                raise
            self._wonder(exc)
            return None  # it has not begun

    def _wonder(self, exc: errors.UnreachableError) -> None:
        """Tell once of a driver that should have begun by now; where no way leads to it, its progress stays unknown."""
        log.debug("%s", exc)
        if not self._told and time.monotonic() - self._asked_s > PATIENCE_S:
            self._told = True
            log.warning("after %.0f s no progress could be read yet: %s", PATIENCE_S, exc)

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
