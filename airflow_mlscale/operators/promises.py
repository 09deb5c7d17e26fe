"""The promise of a task instance: fixed at its first try, kept in the task state store, shared by its retries."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.operators import dag_deadline
from airflow_mlscale.runtime import deadlines
from airflow_mlscale.spark import outlook
from airflow_mlscale.spark.adapters import profile_store
from airflow_mlscale.spark.model import Promise
from airflow_mlscale.spark.settings import DeadlineSettings

log = logging.getLogger(__name__)

PROMISE_KEY = "mlscale_deadline"


@dataclass(frozen=True, kw_only=True)
class Chance:
    """What another try would have."""

    left_s: float
    """Seconds to the deadline; negative when it has passed."""
    needed_s: float
    """Seconds that a run needs at the full share; 0 when no profile says."""
    runs_on: bool = False
    """Whether the application of the try that has failed may still run, for the next one to take up."""


def fixed(deadline: Any, context: Any, *, strict: bool) -> Promise:
    """The deadline as absolute times.

    Args:
        deadline: rendered; ``"dag"`` is the deadline of the DAG run.
        context: of the task.
        strict: refuse a deadline that has passed before the first try.

    Raises:
        InvalidInputError: it is no deadline, or has passed.
    """
    if kept := known(context):
        return kept
    started, now = context["ti"].start_date or datetime.now(UTC), datetime.now(UTC)
    if deadline == dag_deadline.DAG:
        deadline_at = dag_deadline.resolve(context["dag"], context["dag_run"])
    else:
        deadline_at = deadlines.resolve(deadline, started_at=started)
    if strict:
        deadlines.check_ahead(deadline, deadline_at, now=now)
    elif deadline_at <= now:
        log.warning("the deadline %s has passed; going on as fast as possible", deadline_at.isoformat())
    promise = Promise(started_at=started.timestamp(), deadline_at=deadline_at.timestamp())
    _keep(context, {"started_at": promise.started_at, "deadline_at": promise.deadline_at})
    return promise


def known(context: Any) -> Promise | None:
    """The promise that was fixed before; None when there is none yet."""
    kept = _kept(context)
    return Promise(started_at=kept["started_at"], deadline_at=kept["deadline_at"]) if kept else None


def note_full_share(context: Any, cores: float) -> None:
    """Remember the most cores that a try can have, for `chance`."""
    if kept := _kept(context):
        _keep(context, {**kept, "full_cores": cores})


def chance(context: Any, *, settings: DeadlineSettings, store: str | None, key: str) -> Chance | None:
    """The time left, and what a run needs of it; None before there is a promise."""
    kept = _kept(context)
    if kept is None:
        return None
    cores = kept.get("full_cores")
    try:
        profile = profile_store.ProfileFiles(store).load(key) if cores else None
    except errors.MlscaleError:
        profile = None
    found = outlook.before_start(profile, cores=cores, confidence=settings.confidence) if cores else None
    return Chance(left_s=kept["deadline_at"] - time.time(), needed_s=found.left_s if found else 0.0)


def life(context: Any) -> int:
    """Clearing a task begins a new life of it, with a deadline of its own; that moves its last try."""
    return int(getattr(context["ti"], "max_tries", 0) or 0)


def _kept(context: Any) -> dict[str, Any] | None:
    store = context.get("task_state_store")
    kept = store.get(PROMISE_KEY) if store is not None else None
    return dict(kept) if kept and kept["life"] == life(context) else None


def _keep(context: Any, values: dict[str, Any]) -> None:
    store = context.get("task_state_store")
    if store is not None:
        store.set(PROMISE_KEY, {"life": life(context), **values})
