"""What OpenLineage hears of a deadline: a facet of the run, where the OpenLineage provider is installed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from airflow_mlscale import __version__, errors
from airflow_mlscale.runtime import deadlines
from airflow_mlscale.spark.model import Promise

FACET = "mlscale_deadline"
PRODUCER = f"https://pypi.org/project/airflow-provider-mlscale/{__version__}"


def deadline_facets(deadline: object, promise: Promise | None, summary: Mapping[str, Any] | None) -> dict[str, Any]:
    """Run facets by name: the promise and, once known, what became of it. Empty without OpenLineage's client.

    Args:
        deadline: as the user gave it.
        promise: the absolute times, when they are known already.
        summary: of the run (`DeadlineRun.summary`), when there is one.
    """
    try:
        facet = _facet_class()
    except ImportError:
        return {}
    known = summary or {}
    deadline_at, deadline_s = _said(deadline) if promise is None else (promise.deadline_at, promise.duration_s)
    return {
        FACET: facet(
            producer=PRODUCER,
            deadline=str(deadline),
            startedAt=None if promise is None else _iso(promise.started_at),
            deadlineAt=None if deadline_at is None else _iso(deadline_at),
            deadlineSeconds=None if deadline_s is None else round(deadline_s, 1),
            outlook=known.get("outlook"),
            predictedFinishSeconds=known.get("predicted_finish_s"),
            met=known.get("met"),
            finishSeconds=known.get("finish_s"),
            usedCoreSeconds=known.get("used_core_s"),
            grantedCoreSeconds=known.get("granted_core_s"),
            mode=known.get("mode"),
            policy=known.get("policy"),
            applicationId=known.get("application_id"),
        )
    }


def operator_lineage(facets: dict[str, Any]) -> Any:
    """The OpenLineage provider's own type; None where it is not installed."""
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage
    except ImportError:
        return None
    return OperatorLineage(run_facets=facets)


@functools.cache
def _facet_class() -> Any:
    """Made when it is needed: OpenLineage's client is an optional package."""
    from openlineage.client.generated.base import RunFacet

    @attrs.define(kw_only=True)
    class DeadlineRunFacet(RunFacet):  # type: ignore[misc,unused-ignore]
        """A promise and what became of it; seconds count from the start of the task's first try.

        Its schema is that of every run facet, which allows further properties: ours has no page of its own.
        """

        deadline: str
        startedAt: str | None
        deadlineAt: str | None
        deadlineSeconds: float | None
        outlook: str | None
        predictedFinishSeconds: float | None
        met: bool | None
        finishSeconds: float | None
        usedCoreSeconds: float | None
        grantedCoreSeconds: float | None
        mode: str | None
        policy: str | None
        applicationId: str | None

    return DeadlineRunFacet


def _said(deadline: object) -> tuple[float | None, float | None]:
    """What is known before the task has begun: an absolute time (seconds since the epoch), or a duration in seconds."""
    try:
        value = deadlines.meant(deadline)
    except errors.InvalidInputError:  # that of the DAG run, or one that the task is going to refuse
        return None, None
    return (None, value.total_seconds()) if isinstance(value, timedelta) else (value.timestamp(), None)


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
