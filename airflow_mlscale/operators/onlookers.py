"""Who looks on while a task's application runs: callbacks, metrics, links; none of them in the control's way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from airflow.sdk import BaseOperatorLink

from airflow_mlscale.hooks import callbacks, telemetry
from airflow_mlscale.hooks.callbacks import Given
from airflow_mlscale.runtime.aside import Aside
from airflow_mlscale.runtime.journal import Journal
from airflow_mlscale.spark import changes


@dataclass
class Pages:
    """Pushes links of a task while it runs, each once; to be called by one thread at a time."""

    ti: Any
    known: dict[str, str] = field(default_factory=dict)
    """Addresses by the link's key."""

    def show(self, link: BaseOperatorLink, url: str | None) -> None:
        """Make the address a link of the task; None for a page that is not there (yet)."""
        if url and self.known.get(link.xcom_key) != url:
            self.ti.xcom_push(key=link.xcom_key, value=url)
            self.known[link.xcom_key] = url


@contextmanager
def looking_on(
    journal: Journal, context: Mapping[str, Any], given: Sequence[Given]
) -> Iterator[telemetry.SparkMetrics]:
    """Let metrics and callbacks follow a run's journal; all is told when this ends.

    What is in the journal already was told by who wrote it.
    """
    gauges = metrics(context)
    with ExitStack() as stack:
        journal.listen(stack.enter_context(Aside(gauges, "Spark metrics")))
        if given:
            tell = Aside(callbacks.Teller(given, context), "on_outlook_change", callbacks.PATIENCE_S)
            journal.listen(changes.News(journal.records(), stack.enter_context(tell)))
        yield gauges


def metrics(context: Mapping[str, Any]) -> telemetry.SparkMetrics:
    """The metrics of this task."""
    return telemetry.of(context["ti"])


def told_afterwards(event: Mapping[str, Any], context: Mapping[str, Any], given: Sequence[Given]) -> None:
    """Call back for every change of the outlook of which a trigger has not told: see `triggers.spark.event`."""
    outlooks = event.get("outlooks") or {"changes": (), "heard": ()}
    heard = list(callbacks.unheard(given, outlooks["heard"]))
    for number, row in enumerate(outlooks["changes"]):
        rest = [each for each, count in heard if count <= number]
        callbacks.Teller(rest, context)(changes.from_row(row))
