"""Waiting for federated runs without a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlscale import errors
from airflow_mlscale.federated import stopping, watch
from airflow_mlscale.hooks.federated import FederatedHook


class FederatedRunTrigger(BaseTrigger):
    """Fires when a run has ended, or when its segment is lost: ``{"progress": …, "reason": …}``.

    Args:
        run_id: the run.
        conn_id: connection of its federation.
        poll_s: seconds between two looks.
    """

    def __init__(self, *, run_id: str, conn_id: str, poll_s: float = 2.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run_id = run_id
        self.conn_id = conn_id
        self.poll_s = poll_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            f"{type(self).__module__}.{type(self).__name__}",
            {"run_id": self.run_id, "conn_id": self.conn_id, "poll_s": self.poll_s},
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        try:
            runs = await _runs(self.conn_id)
            follower = await asyncio.to_thread(runs.follower, self.run_id)
            while True:
                await asyncio.to_thread(follower.new_rounds, self.log.info)
                look = await asyncio.to_thread(follower.look)
                if look.progress != watch.Progress.LIVES:
                    yield TriggerEvent({"progress": str(look.progress), "reason": look.reason})  # type: ignore[no-untyped-call]
                    return
                await asyncio.sleep(self.poll_s)
        except errors.MlscaleError as exc:
            yield TriggerEvent({"progress": "error", "reason": str(exc)})  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """The user ended the task: end the run."""
        runs = await _runs(self.conn_id)
        await asyncio.to_thread(runs.stop, self.run_id)


class FederatedAccuracyTrigger(BaseTrigger):
    """Fires when a run's held-out quality meets a condition, or cannot any more.

    Args:
        run_id: the run.
        condition: a `stopping.Condition` as JSON.
        conn_id: connection of its federation.
        poll_s: seconds between two looks.
    """

    def __init__(self, *, run_id: str, condition: dict[str, Any], conn_id: str, poll_s: float = 2.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run_id = run_id
        self.condition = condition
        self.conn_id = conn_id
        self.poll_s = poll_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        arguments = {"run_id": self.run_id, "condition": self.condition, "conn_id": self.conn_id, "poll_s": self.poll_s}
        return f"{type(self).__module__}.{type(self).__name__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        condition = stopping.Condition.from_json(self.condition)
        told = ""
        try:
            runs = await _runs(self.conn_id)
            while True:
                found = await asyncio.to_thread(runs.met, self.run_id, condition)
                if found is not None:
                    yield TriggerEvent({"status": "met", "found": found})  # type: ignore[no-untyped-call]
                    return
                awaited = await asyncio.to_thread(runs.awaited, self.run_id, condition)
                if awaited != told:
                    self.log.info(told := awaited)
                await asyncio.sleep(self.poll_s)
        except errors.MlscaleError as exc:
            yield TriggerEvent({"status": "failed", "reason": str(exc), "error": type(exc).__name__})  # type: ignore[no-untyped-call]


async def _runs(conn_id: str) -> Any:
    connection = await FederatedHook.aget_connection(conn_id)
    hook = FederatedHook(conn_id, connection=connection)
    return await asyncio.to_thread(lambda: hook.runs)
