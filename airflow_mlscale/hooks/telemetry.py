"""Airflow's own metrics (StatsD, OpenTelemetry or Datadog, whichever is configured) of a run with a deadline.

Gauges ``mlscale.spark.progress`` (0 to 1), ``.guaranteed_cores``, ``.predicted_finish_s`` (from the start) and
``.deadline_left_s``; counters ``.outlook.on_track``, ``.outlook.at_risk``, ``.outlook.will_miss`` when the outlook
becomes that, ``.met`` and ``.missed`` at the end; timer ``.duration``. All with the tags ``dag_id`` and ``task_id``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field
from datetime import timedelta
from typing import Any

from airflow.sdk.configuration import conf
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics import stats_utils

from airflow_mlscale.runtime.journal import Record
from airflow_mlscale.spark import changes

PREFIX = "mlscale.spark"


@dataclass
class SparkMetrics:
    """Listens to a run's journal and keeps its gauges; `finished` counts its end.

    Args:
        tags: of each metric.
        earlier: records of whoever looked on before, which has counted their changes.
    """

    tags: Mapping[str, str]
    earlier: InitVar[Iterable[Record]] = ()
    _watch: changes.Watch = field(default_factory=changes.Watch, init=False)

    def __post_init__(self, earlier: Iterable[Record]) -> None:
        for record in earlier:
            self._watch.change(record)

    def __call__(self, record: Record) -> None:
        gauges = {
            "progress": record.seen["progress"],
            "guaranteed_cores": record.decided["guaranteed_cores"],
            "predicted_finish_s": record.decided.get("finish_s"),
            "deadline_left_s": record.seen["left_s"],
        }
        for name, value in gauges.items():
            if value is not None:
                stats.gauge(f"{PREFIX}.{name}", float(value), tags=dict(self.tags))
        if change := self._watch.change(record):
            stats.incr(f"{PREFIX}.outlook.{change.outlook}", tags=dict(self.tags))

    def finished(self, summary: Mapping[str, Any]) -> None:
        """Count a run that has ended by itself, as met or missed."""
        if summary.get("finish_s") is None:
            return
        stats.timing(f"{PREFIX}.duration", timedelta(seconds=summary["finish_s"]), tags=dict(self.tags))
        stats.incr(f"{PREFIX}.{'met' if summary['met'] else 'missed'}", tags=dict(self.tags))


def of(task_instance: Any, earlier: Iterable[Record] = ()) -> SparkMetrics:
    """The metrics of a task instance; ``earlier`` as in `SparkMetrics`."""
    return SparkMetrics({"dag_id": task_instance.dag_id, "task_id": task_instance.task_id}, earlier)


def in_triggerer(task_instance: Any, earlier: Iterable[Record] = ()) -> SparkMetrics:
    """As `of`, where only Airflow's core has its metrics set up, and a test's trigger may have no task."""
    set_up()
    return of(task_instance, earlier) if task_instance else SparkMetrics({}, earlier)


@functools.cache
def set_up() -> None:
    """Once a process, as Airflow's task runner does it."""
    stats.initialize(
        factory=stats_utils.get_stats_factory(), export_legacy_names=conf.getboolean("metrics", "legacy_names_on")
    )
