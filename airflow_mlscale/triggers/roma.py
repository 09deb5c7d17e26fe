"""Waiting for ROMA without a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from airflow.triggers.base import BaseEventTrigger, BaseTrigger, TriggerEvent

from airflow_mlscale import errors
from airflow_mlscale.hooks.roma import RomaHook
from airflow_mlscale.roma import degradation, model, watch
from airflow_mlscale.runtime import journal

PATIENCE_S = 60.0
"""How long the daemon may be away, for example for a restart, before waiting for it is given up."""

LONG_POLL_S = 20.0
"""The daemon answers when something has settled, or after this time."""


class RomaDeployTrigger(BaseTrigger):
    """Fires when a version is ready and warm, or has failed: ``{"status": "done" | "failed", …}``.

    Args:
        conn_id: connection of the daemon.
        model_name: the model.
        version: the version to wait for.
    """

    def __init__(self, *, conn_id: str, model_name: str, version: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.model_name = model_name
        self.version = version

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return _path(self), {"conn_id": self.conn_id, "model_name": self.model_name, "version": self.version}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        records: list[journal.Record] = []
        try:
            while True:
                status = await _status(self.conn_id, self.model_name, settled_within_s=LONG_POLL_S)
                look = watch.deployed(status, self.version)
                self.log.info(look.told)
                records.append(watch.record(look, at=time.time()))
                if look.done:
                    yield _done(look, records)
                    return
                if status["settled"]:  # restarting: there is nothing to settle, so the daemon answers at once
                    await asyncio.sleep(1)
        except errors.MlscaleError as exc:
            yield _failed(exc)


class RomaObjectiveTrigger(BaseTrigger):
    """Fires when a model's objective is met, or cannot be: ``{"status": "done" | "failed", …}``.

    Args:
        conn_id: connection of the daemon.
        model_name: the model.
        condition: a `watch.ObjectiveCondition` as JSON.
        poll_s: seconds between two looks.
    """

    def __init__(self, *, conn_id: str, model_name: str, condition: dict[str, Any], poll_s: float = 2.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.conn_id = conn_id
        self.model_name = model_name
        self.condition = condition
        self.poll_s = poll_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return _path(self), {
            "conn_id": self.conn_id,
            "model_name": self.model_name,
            "condition": self.condition,
            "poll_s": self.poll_s,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        condition = watch.ObjectiveCondition(**self.condition)
        held_since: float | None = None
        told = ""
        records: list[journal.Record] = []
        try:
            while True:
                status = await _status(self.conn_id, self.model_name, window_s=condition.window_s)
                look, held_since = watch.objective(status, condition, held_since=held_since, now=time.monotonic())
                if look.told != told:
                    told = look.told
                    self.log.info(told)
                records.append(watch.record(look, at=time.time()))
                if look.done:
                    yield _done(look, records)
                    return
                await asyncio.sleep(self.poll_s)
        except errors.MlscaleError as exc:
            yield _failed(exc)


class RomaDegradedTrigger(BaseEventTrigger):
    """Fires when a served model has become worse than it should be: for `AssetWatcher`, to have it trained again.

    It fires once for each version, and again only after that version has recovered. What it told is kept in the
    watched asset's state, so that a triggerer that restarts does not tell it twice; watch one asset with it. A
    daemon that is away, or a model that is not deployed yet, is waited for.

    Its event: ``{"model", "version", "reason", "accuracy", "mae", "percentile_ms", "objective_ms"}``.

    Args:
        model_name: the model.
        condition: a `degradation.DegradedCondition`, or one as JSON.
        conn_id: connection of the daemon.
        poll_s: seconds between two looks.

    Raises:
        InvalidInputError: an argument is wrong; names it, its value and the fix.
    """

    def __init__(
        self,
        *,
        model_name: str,
        condition: degradation.DegradedCondition | dict[str, Any],
        conn_id: str = RomaHook.default_conn_name,
        poll_s: float = 10.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model_name = model.check_name("model_name", model_name)
        self.condition = degradation.DegradedCondition(**condition) if isinstance(condition, dict) else condition
        self.conn_id = conn_id
        if not model.is_number(poll_s) or poll_s <= 0:
            raise errors.InvalidInputError("poll_s", poll_s, "give a number of seconds above 0")
        self.poll_s = poll_s
        self._troubled = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return _path(self), {
            "conn_id": self.conn_id,
            "model_name": self.model_name,
            "condition": asdict(self.condition),
            "poll_s": self.poll_s,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        alarm = degradation.alarm_from_json(await self._remembered())
        while True:
            if seen := await self._look():
                status, quality = seen
                finding = degradation.find(status, quality, self.condition)
                rings, after = degradation.step(alarm, finding, looks=self.condition.looks)
                if rings:
                    self.log.warning("%s %s: %s", self.model_name, finding.version, finding.reason)
                    yield TriggerEvent(_degraded(status, quality, finding))  # type: ignore[no-untyped-call]
                if (after.version, after.rung) != (alarm.version, alarm.rung):
                    await self._remember(after)
                alarm = after
            await asyncio.sleep(self.poll_s)

    async def _look(self) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        """Status and quality of the version that serves; None if the daemon cannot tell now."""
        condition, quality = self.condition, None
        try:
            hook = RomaHook(self.conn_id, connection=await RomaHook.aget_connection(self.conn_id))
            async with hook.async_client() as roma:
                status = await roma.status(self.model_name, window_s=condition.objective_window_s)
                if condition.of_quality:
                    found = await roma.quality(self.model_name, window_s=condition.window_s)
                    quality = found.get(str(status["version"]))
        except errors.MlscaleError as exc:
            if str(exc) != self._troubled:
                self.log.warning("cannot look at %s: %s", self.model_name, exc)
            self._troubled = str(exc)
            return None
        self._troubled = ""
        return status, quality

    async def _remembered(self) -> Any:
        store = self.asset_state_store
        return None if store is None else await store.aget(self._key)

    async def _remember(self, alarm: degradation.Alarm) -> None:
        if self.asset_state_store is not None:
            await self.asset_state_store.aset(self._key, alarm.as_json())

    @property
    def _key(self) -> str:
        return f"mlscale_roma_alarm:{self.model_name}"


def _degraded(status: dict[str, Any], quality: dict[str, Any] | None, finding: degradation.Finding) -> dict[str, Any]:
    return {
        "model": status["name"],
        "version": finding.version,
        "reason": finding.reason,
        "accuracy": (quality or {}).get("accuracy"),
        "mae": (quality or {}).get("mae"),
        "percentile_ms": status["percentile_ms"],
        "objective_ms": status["objective"]["milliseconds"],
    }


def condition_as_json(condition: watch.ObjectiveCondition) -> dict[str, Any]:
    """For `RomaObjectiveTrigger`."""
    return asdict(condition)


async def _status(conn_id: str, name: str, **query: float) -> dict[str, Any]:
    """The status; a daemon that is away for less than `PATIENCE_S` is waited for."""
    hook = RomaHook(conn_id, connection=await RomaHook.aget_connection(conn_id))
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            async with hook.async_client() as roma:
                return await roma.status(name, **query)
        except errors.TransientError as exc:
            if time.monotonic() + exc.retry_after_s > give_up_at:
                raise
            await asyncio.sleep(min(2.0, exc.retry_after_s))


def _done(look: watch.Look, records: list[journal.Record]) -> TriggerEvent:
    event = {"status": "done", "told": look.told, "summary": dict(look.summary), "journal": journal.thin(records)}
    return TriggerEvent(event)  # type: ignore[no-untyped-call]


def _failed(exc: errors.MlscaleError) -> TriggerEvent:
    return TriggerEvent({"status": "failed", "told": str(exc), "retryable": _retryable(exc)})  # type: ignore[no-untyped-call]


def _retryable(exc: errors.MlscaleError) -> bool:
    return exc.retryable or isinstance(exc, errors.RunFailedError)


def _path(trigger: BaseTrigger) -> str:
    return f"{type(trigger).__module__}.{type(trigger).__name__}"
