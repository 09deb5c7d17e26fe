"""Waiting for federated runs without a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_mlscale import errors
from airflow_mlscale.federated import client, stopping, watch
from airflow_mlscale.hooks import federated_telemetry
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.hooks.federated_onlookers import Onlookers
from airflow_mlscale.hooks.mlflow import MLflow


class FederatedRunTrigger(BaseTrigger):
    """Fires when a run has ended, or when its segment is lost: ``{"progress": …, "reason": …}``.

    Args:
        run_id: the run.
        conn_id: connection of its federation.
        poll_s: seconds between two looks.
        told: records of the run's journal that whoever followed it before has told of.
        mlflow: a `hooks.mlflow.MLflow` as JSON; None logs nothing there.
    """

    def __init__(
        self, *, run_id: str, conn_id: str, poll_s: float = 2.0, told: int = 0, mlflow: dict[str, Any] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run_id = run_id
        self.conn_id = conn_id
        self.poll_s = poll_s
        self.told = told
        self.mlflow = mlflow

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("run_id", "conn_id", "poll_s", "told", "mlflow")
        return f"{type(self).__module__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        try:
            runs = await _runs(self.conn_id)
            metrics = federated_telemetry.in_triggerer(self.task_instance)
            log = await MLflow.from_json(self.mlflow).alog() if self.mlflow else None
            async with Onlookers(self.log.info, metrics, log) as onlookers:
                event = await self._followed(runs, onlookers)
        except errors.MlscaleError as exc:
            event = {"progress": "error", "reason": str(exc)}
        yield TriggerEvent(event)  # type: ignore[no-untyped-call]

    async def _followed(self, runs: client.RunClient, onlookers: Onlookers) -> dict[str, Any]:
        """Look and tell until the run has ended or its segment is lost; returns the event."""
        follower = await asyncio.to_thread(runs.follower, self.run_id, told=self.told)
        while True:
            look = await asyncio.to_thread(follower.look)
            onlookers(await asyncio.to_thread(follower.news))
            if look.progress != watch.Progress.LIVES:
                over = {"segment": follower.seen.segment, "told": follower.records_seen}
                return {"progress": str(look.progress), "reason": look.reason, **over}
            await asyncio.sleep(self.poll_s)

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
        stop_by: who asks the run to end with its best model once the condition is met; None lets it go on.
    """

    def __init__(
        self, *, run_id: str, condition: dict[str, Any], conn_id: str, poll_s: float = 2.0, stop_by: str | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.run_id = run_id
        self.condition = condition
        self.conn_id = conn_id
        self.poll_s = poll_s
        self.stop_by = stop_by

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("run_id", "condition", "conn_id", "poll_s", "stop_by")
        return f"{type(self).__module__}.{type(self).__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        condition = stopping.Condition.from_json(self.condition)
        told = ""
        try:
            runs = await _runs(self.conn_id)
            while True:
                found = await asyncio.to_thread(runs.met, self.run_id, condition)
                if found is not None:
                    if self.stop_by:
                        await asyncio.to_thread(runs.end, self.run_id, by=self.stop_by, why=found["condition"])
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
