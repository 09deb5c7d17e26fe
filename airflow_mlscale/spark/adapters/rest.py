"""Progress from the driver's REST API (``/api/v1``)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx

from airflow_mlscale import errors
from airflow_mlscale.spark.model import Progress, Stage, StageStatus

RUN_PROPERTY = "spark.mlscale.run"
"""Spark property that tells our application from another one that took the same port."""


class RestProgress:
    """`ProgressPort` over HTTP."""

    def __init__(self, url: str, run: str, *, timeout_s: float = 5.0) -> None:
        """Read the driver whose web page will be at ``url``.

        Args:
            url: such as ``http://127.0.0.1:4040``.
            run: value of `RUN_PROPERTY` that the application was submitted with.
            timeout_s: for one request; answers mostly take milliseconds, now and then seconds.
        """
        self.url = url
        self.run = run
        self._application: str | None = None
        self._slots = 0
        # The driver is on this host: a proxy from the environment must not get in between.
        self._client = httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=timeout_s, trust_env=False)

    async def read(self) -> Progress | None:
        try:
            if self._application is None:
                self._application = await self._find()
            if self._application is None:
                return None
            stages = stages_of(await self._get(f"/applications/{self._application}/stages"))
            # Executors rarely change, and not at all while tasks run on them.
            if not self._slots or not any(stage.active for stage in stages):
                self._slots = slots_of(await self._get(f"/applications/{self._application}/executors"))
            return Progress(at=time.time(), application_id=self._application, stages=stages, slots=self._slots)
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
            if self._application is None:
                return None
            raise errors.UnreachableError("the Spark driver", self.url, f"{exc!r}; the last reading is kept") from exc

    async def close(self) -> None:
        await self._client.aclose()

    async def _find(self) -> str | None:
        for application in await self._get("/applications"):
            found = str(application["id"])
            properties = (await self._get(f"/applications/{found}/environment"))["sparkProperties"]
            if [RUN_PROPERTY, self.run] in properties:
                return found
        return None

    async def _get(self, path: str) -> Any:
        reply = await self._client.get(path)
        reply.raise_for_status()
        return reply.json()


def stages_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Stage, ...]:
    """Stages from the API's rows, by stage id; of several attempts the last."""
    latest = {row["stageId"]: row for row in sorted(rows, key=lambda row: (row["stageId"], row["attemptId"]))}
    return tuple(_stage(row) for row in latest.values())


def slots_of(rows: Sequence[Mapping[str, Any]]) -> int:
    """Cores of all executors; a driver that runs tasks itself (local mode) counts too."""
    return sum(int(row["totalCores"]) for row in rows if row["isActive"])


def _stage(row: Mapping[str, Any]) -> Stage:
    return Stage(
        stage_id=int(row["stageId"]),
        name=str(row["name"]),
        status=StageStatus(row["status"]),
        tasks=int(row["numTasks"]),
        # Spark may for a moment count a task twice, as active and as complete.
        active=max(0, min(int(row["numActiveTasks"]), int(row["numTasks"]) - int(row["numCompleteTasks"]))),
        complete=min(int(row["numCompleteTasks"]), int(row["numTasks"])),
        run_time_s=float(row.get("executorRunTime") or 0) / 1000,
        input_bytes=int(row.get("inputBytes") or 0),
        submitted_at=_seconds(row.get("submissionTime")),
        completed_at=_seconds(row.get("completionTime")),
    )


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fGMT").replace(tzinfo=UTC).timestamp()
