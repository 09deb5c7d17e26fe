"""One control step as the journal tells it: plain values, times counted from the start of the promise. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from airflow_mlscale.runtime.journal import Value
from airflow_mlscale.spark import grants
from airflow_mlscale.spark.model import Decision, Observation, Promise


def seen(observation: Observation, decision: Decision, promise: Promise, *, slots: float) -> dict[str, Value]:
    """What the step saw; ``slots`` are tasks that can run at once."""
    now, progress = observation.now, observation.progress
    return {
        "t_s": round(now - promise.started_at, 2),
        "left_s": round(promise.deadline_at - now, 2),
        "progress": None if decision.progress is None else round(decision.progress, 4),
        "used_core_s": round(observation.used_core_s, 2),
        "driver_used_core_s": round(observation.driver_used_core_s, 2),
        "slots": slots,
        "stages": len([stage for stage in progress.stages if stage.completed_at]) if progress else 0,
        "tasks_running": progress.active_tasks if progress else 0,
        "reading_age_s": round(now - progress.at, 2) if progress else None,
    }


def decided(decision: Decision, promise: Promise, grant: grants.Grant) -> dict[str, Value]:
    """What was decided, and what the host made of it."""
    return {
        "asked_cores": round(decision.guaranteed_cores, 3),
        "guaranteed_cores": round(grant.share.guaranteed_cores, 3),
        "ceiling_cores": grant.share.ceiling_cores,
        "driver_cores": round(grant.driver_cores, 3),
        "needed_cores": round(decision.needed_cores, 3),
        "finish_s": _after(promise, decision.finish_at),
        "finish_low_s": _after(promise, decision.finish_low_at),
        "finish_high_s": _after(promise, decision.finish_high_at),
        "outlook": decision.outlook,
    }


def changed(before: Mapping[str, Value], now: Mapping[str, Value]) -> bool:
    """Whether something else was decided than before, or less of it was given than before, or all of it again."""
    return _short(before) != _short(now) or any(
        before.get(name) != now[name] for name in ("asked_cores", "ceiling_cores", "outlook")
    )


def _short(values: Mapping[str, Value]) -> bool:
    asked, guaranteed = (float(values.get(name) or 0.0) for name in ("asked_cores", "guaranteed_cores"))
    return guaranteed < asked - grants.NEGLIGIBLE_CORES


def _after(promise: Promise, at: float | None) -> float | None:
    """Seconds from the start of the promise."""
    return None if at is None else round(at - promise.started_at, 1)
