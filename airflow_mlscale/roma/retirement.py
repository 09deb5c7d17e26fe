"""Replicas on their way out: they finish what they accepted, and nothing new reaches them."""

from __future__ import annotations

import asyncio
import logging

from airflow_mlscale.roma import replica as replicas

log = logging.getLogger(__name__)


class Retirement:
    """Of one model's replicas."""

    def __init__(self) -> None:
        self._leaving: set[asyncio.Task[None]] = set()

    def add(self, replica: replicas.Replica, drain_s: float) -> None:
        """Let a replica drain for so long, then end it."""
        task = asyncio.create_task(self._drain_and_end(replica, drain_s), name=f"retire {replica.spec.name}")
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def over(self) -> None:
        """Return once all of them have ended."""
        while leaving := tuple(self._leaving):
            await asyncio.gather(*leaving, return_exceptions=True)
            self._leaving.difference_update(leaving)  # their callbacks may not have run: gather need not suspend

    async def _drain_and_end(self, replica: replicas.Replica, drain_s: float) -> None:
        if not await replica.drain(drain_s):
            log.warning("%s: version %s did not drain in time", replica.spec.name, replica.spec.version)
        await replica.end()
