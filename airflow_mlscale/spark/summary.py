"""What is told of a run, while it goes on and after it: plain values for people, charts and other tasks."""

from __future__ import annotations

from typing import Any

from airflow_mlscale.cpu.ports import CpuPort
from airflow_mlscale.runtime.journal import Journal, Record
from airflow_mlscale.spark.controller import DeadlineController
from airflow_mlscale.spark.model import Mode, Promise
from airflow_mlscale.spark.settings import DeadlineSettings

SERIES_POINTS = 300


def tell(
    *,
    application: str,
    promise: Promise,
    settings: DeadlineSettings,
    warm: bool,
    cpu: CpuPort | None,
    journal: Journal,
    control: DeadlineController | None,
    ended_at: float | None,
) -> dict[str, Any]:
    """The summary; ``ended_at`` (seconds since the epoch) is None while the application runs."""
    finish_s = None if ended_at is None else ended_at - promise.started_at
    last = journal.last()
    executors_core_s, driver_core_s = (control.used_core_s, control.driver_used_core_s) if control else (0.0, 0.0)
    return {
        "engine": "spark",
        "application": application,
        "application_id": control.latest.application_id if control and control.latest else None,
        "mode": str(Mode.RESERVE if settings.capped else settings.mode),
        "policy": settings.policy,
        "profile": "warm" if warm else "cold",
        "allocator": cpu.name if cpu else None,
        "enforced": cpu.enforces if cpu else False,
        "started_at": promise.started_at,
        "deadline_s": round(promise.duration_s, 1),
        "finish_s": None if finish_s is None else round(finish_s, 1),
        "met": None if finish_s is None else finish_s <= promise.duration_s,
        "outlook": last.decided.get("outlook") if last else None,
        "predicted_finish_s": last.decided.get("finish_s") if last else None,
        "granted_core_s": round(control.totals.granted_core_s, 1) if control else 0.0,
        "cap_core_s": round(control.totals.cap_core_s, 1) if control else 0.0,
        "peak_cores": round(control.totals.peak_cores, 2) if control else 0.0,
        "mean_cores": round(control.totals.mean_cores, 3) if control else 0.0,
        "used_core_s": round(executors_core_s + driver_core_s, 1),
        "executor_core_s": round(executors_core_s, 1),
        "series": series(journal.records()),
    }


def series(records: list[Record], points: int = SERIES_POINTS) -> list[dict[str, Any]]:
    """Points for a chart: time, the executors' guarantee, ceiling and use in cores, the driver's guarantee, progress.

    They are evenly thinned.
    """
    if not records:
        return []
    found = []
    before = records[0]
    step = max(1, -(-len(records) // points))
    for record in [*records[step - 1 : -1 : step], records[-1]]:
        seconds = record.at - before.at
        used = float(record.seen["used_core_s"] or 0) - float(before.seen["used_core_s"] or 0)
        found.append(
            {
                "t_s": record.seen["t_s"],
                "guaranteed_cores": record.decided["guaranteed_cores"],
                "ceiling_cores": record.decided["ceiling_cores"],
                "driver_cores": record.decided["driver_cores"],
                "used_cores": round(used / seconds, 3) if seconds > 0 else None,
                "progress": record.seen["progress"],
            }
        )
        before = record
    return found
