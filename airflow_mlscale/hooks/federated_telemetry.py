"""Airflow's own metrics (StatsD, OpenTelemetry or Datadog, whichever is configured) of a federated run.

Gauges ``mlscale.federated.quality`` and ``.target``, ``.round``, ``.rounds_left`` and ``.seconds_left`` to the target,
``.chance`` to reach it, ``.node_seconds`` and ``.gigabytes`` so far; counters ``.site_errors``, and at the end one of
``.reached``, ``.limit``, ``.infeasible``, ``.stalled``, ``.stopped``, ``.failed``, ``.aborted``. All with the tags
``dag_id`` and ``task_id``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow.sdk.observability import stats

from airflow_mlscale.federated import narration
from airflow_mlscale.hooks import telemetry
from airflow_mlscale.runtime.journal import Record

PREFIX = "mlscale.federated"
GAUGES: Mapping[str, str] = {
    "quality": "value",
    "target": "target",
    "round": "round",
    "rounds_left": "expected_rounds",
    "seconds_left": "expected_seconds",
    "chance": "chance",
    "node_seconds": "spent_node_seconds",
    "gigabytes": "spent_gigabytes",
}
"""What is read of a record, by gauge."""


@dataclass
class FederatedMetrics:
    """Listens to a run's journal and keeps its gauges; `finished` counts its end."""

    tags: Mapping[str, str]

    def __call__(self, record: Record) -> None:
        if not narration.is_round(record):
            return
        for name, key in GAUGES.items():
            if (value := record.seen.get(key)) is not None:
                stats.gauge(f"{PREFIX}.{name}", float(value), tags=dict(self.tags))
        if wrong := record.decided.get("failed"):
            stats.incr(f"{PREFIX}.site_errors", int(wrong), tags=dict(self.tags))

    def finished(self, status: str) -> None:
        """Count a run that has ended."""
        stats.incr(f"{PREFIX}.{status}", tags=dict(self.tags))


def of(task_instance: Any) -> FederatedMetrics:
    """The metrics of a task instance."""
    return FederatedMetrics({"dag_id": task_instance.dag_id, "task_id": task_instance.task_id})


def in_triggerer(task_instance: Any) -> FederatedMetrics:
    """As `of`, where only Airflow's core has its metrics set up, and a test's trigger may have no task."""
    telemetry.set_up()
    return of(task_instance) if task_instance else FederatedMetrics({})
