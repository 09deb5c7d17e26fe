"""Progress from the driver's REST API (``/api/v1``)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx

from airflow_mlscale import errors
from airflow_mlscale.spark.model import Progress, Stage, StageStatus

RUN_PROPERTY = "spark.mlscale.run"
"""Spark property that tells our application from another one that took the same port."""

FIRST_ANSWER_S = 30.0
"""For each request until the application is known: a driver that begins answers late the first time, on a busy host
after more than ten seconds, and has a page of errors in its log about whoever hung up meanwhile."""

_FIELDS = (
    *("stageId", "attemptId", "name", "status", "submissionTime", "completionTime", "executorRunTime"),
    *("numTasks", "numActiveTasks", "numCompleteTasks", "numCompletedIndices"),
    *("inputBytes", "inputRecords", "shuffleReadBytes", "shuffleReadRecords", "shuffleWriteBytes"),
)
"""What is kept of a row, of the hundred things that it tells."""

_TIME = "%Y-%m-%dT%H:%M:%S.%fGMT"


class RestProgress:
    """`ProgressPort` over HTTP."""

    def __init__(self, url: str, run: str, *, timeout_s: float = 5.0) -> None:
        """Read the driver whose web page will be at ``url``.

        Args:
            url: such as ``http://127.0.0.1:4040``.
            run: value of `RUN_PROPERTY` that the application was submitted with.
            timeout_s: for one request once the application is known (before, `FIRST_ANSWER_S`); answers mostly take
                milliseconds, now and then seconds.
        """
        self.url = url
        self.run = run
        self._application: str | None = None
        self._slots = 0
        self._rows: Rows = {}
        self._longest_s: dict[int, float | None] = {}
        """Of each complete stage, once it was asked for; None where the driver could not tell."""
        # The driver is on this host: a proxy from the environment must not get in between.
        self._client = httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=timeout_s, trust_env=False)

    async def read(self) -> Progress | None:
        try:
            if self._application is None:
                self._application = await self._find()
            if self._application is None:
                return None
            answer = await self._get(f"/applications/{self._application}/stages")
            self._rows = remembered(self._rows, answer, at=time.time())
            stages = list(stages_of(list(self._rows.values())))
            # Executors rarely change, and not at all while tasks run on them.
            if not self._slots or not any(stage.active for stage in stages):
                self._slots = slots_of(await self._get(f"/applications/{self._application}/executors"))
            stages = [await self._with_longest(stage) for stage in stages]
            return Progress(at=time.time(), application_id=self._application, stages=tuple(stages), slots=self._slots)
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

    async def _with_longest(self, stage: Stage) -> Stage:
        """The stage with the run time of its longest task, asked for once, when it is complete."""
        if stage.status is not StageStatus.COMPLETE or stage.tasks < 2:
            return stage
        if stage.stage_id not in self._longest_s:
            self._longest_s[stage.stage_id] = None
            path = f"/applications/{self._application}/stages/{stage.stage_id}/0/taskSummary?quantiles=1.0"
            with contextlib.suppress(httpx.HTTPStatusError):  # a driver that forgot the tasks of an old stage
                self._longest_s[stage.stage_id] = float((await self._get(path))["executorRunTime"][0]) / 1000
        return replace(stage, longest_s=self._longest_s[stage.stage_id])

    async def _get(self, path: str) -> Any:
        begun = self._application is not None
        reply = await self._client.get(path, timeout=httpx.USE_CLIENT_DEFAULT if begun else FIRST_ANSWER_S)
        reply.raise_for_status()
        return reply.json()


Rows = Mapping[tuple[int, int], Mapping[str, Any]]
"""The API's rows by stage and attempt."""


def remembered(known: Rows, rows: Sequence[Mapping[str, Any]], *, at: float) -> Rows:
    """The rows of an answer and, of earlier ones, those that it lacks; ``at`` is now, seconds since the epoch.

    Spark forgets stages beyond ``spark.ui.retainedStages``, the oldest first, but none that runs or waits. Of another
    driver, started in place of the first, nothing is known from before.
    """
    found = {
        (int(row["stageId"]), int(row["attemptId"])): {name: row[name] for name in _FIELDS if name in row}
        for row in rows
    }
    if _of_another_driver(known, found):
        return found
    return {**{key: _forgotten(row, at) for key, row in known.items() if key not in found}, **found}


def _of_another_driver(known: Rows, found: Rows) -> bool:
    """Whether a stage that had begun has begun at another time, or the youngest of them is not there (yet)."""
    begun = {key: row["submissionTime"] for key, row in known.items() if row.get("submissionTime")}
    anew = any(key in found and found[key].get("submissionTime") != at for key, at in begun.items())
    return anew or (bool(begun) and max(found, default=(-1, -1)) < max(begun))


def _forgotten(row: Mapping[str, Any], at: float) -> Mapping[str, Any]:
    """As it must have ended, if it was never seen to."""
    if row["status"] == StageStatus.PENDING:
        return {**row, "status": StageStatus.SKIPPED}
    if row["status"] != StageStatus.ACTIVE:
        return row
    tasks, ended = row["numTasks"], datetime.fromtimestamp(at, UTC).strftime(_TIME)
    whole = {"numActiveTasks": 0, "numCompleteTasks": tasks, "numCompletedIndices": tasks}
    return {**row, **whole, "status": StageStatus.COMPLETE, "completionTime": ended}


def stages_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Stage, ...]:
    """Stages from the API's rows, by stage id; attempts of one stage are one stage."""
    attempts: dict[int, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["stageId"], row["attemptId"])):
        attempts.setdefault(int(row["stageId"]), []).append(row)
    return tuple(_stage(each) for each in attempts.values())


def slots_of(rows: Sequence[Mapping[str, Any]]) -> int:
    """Cores of all executors; a driver that runs tasks itself (local mode) counts too."""
    return sum(int(row["totalCores"]) for row in rows if row["isActive"])


def _stage(attempts: Sequence[Mapping[str, Any]]) -> Stage:
    """One stage from its attempts, of which later ones only redo what is missing.

    Tasks count once, however many copies of them ran: Spark counts finished *indices* for that.
    """
    first, last = attempts[0], attempts[-1]
    tasks = int(first["numTasks"])
    left = int(last["numTasks"]) - min(_complete(last), int(last["numTasks"]))
    status = StageStatus(last["status"])
    again = status is StageStatus.FAILED  # another attempt follows, or else the application ends
    running = status is StageStatus.ACTIVE
    return Stage(
        stage_id=int(first["stageId"]),
        name=str(first["name"]),
        status=StageStatus.PENDING if again else status,
        tasks=tasks,
        # Copies of a task, and a task just finished, may be counted too.
        active=max(0, min(int(last["numActiveTasks"]), left)) if running else 0,
        complete=max(0, tasks - left),
        run_time_s=sum(float(row.get("executorRunTime") or 0) for row in attempts) / 1000,
        input_bytes=max(_read(row, "inputBytes", "shuffleReadBytes") for row in attempts),
        records=max(_read(row, "inputRecords", "shuffleReadRecords") for row in attempts),
        kind=_kind(first) if _complete(first) else "",
        submitted_at=_seconds(first.get("submissionTime") or last.get("submissionTime")),
        completed_at=None if again else _seconds(last.get("completionTime")),
    )


def _complete(row: Mapping[str, Any]) -> int:
    found = row.get("numCompletedIndices")
    return int(row["numCompleteTasks"] if found is None else found)


def _read(row: Mapping[str, Any], *names: str) -> int:
    return sum(int(row.get(name) or 0) for name in names)


def _kind(row: Mapping[str, Any]) -> str:
    """One of `model.KINDS`."""
    if _read(row, "shuffleReadBytes"):
        return "exchange" if _read(row, "shuffleWriteBytes") else "result"
    return "scan" if _read(row, "inputBytes") else "generate"


def _seconds(text: str | None) -> float | None:
    if not text:
        return None
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp()
