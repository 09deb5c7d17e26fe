"""Who looks on while a task's application runs: callbacks, metrics, links; none of them in the control's way."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pkgutil import resolve_name
from typing import Any

from airflow.sdk import BaseOperatorLink

from airflow_mlscale import errors
from airflow_mlscale.hooks import telemetry
from airflow_mlscale.runtime.aside import Aside
from airflow_mlscale.runtime.journal import Journal, Record
from airflow_mlscale.spark import changes

log = logging.getLogger(__name__)

Callback = Callable[[dict[str, Any]], object]
CALLBACK_PATIENCE_S = 30.0
"""How long a task that has ended waits for its callbacks."""


def callbacks(given: Any) -> tuple[Callback | str, ...]:
    """What was given as ``on_outlook_change``, checked: one or several functions, notifiers or their import paths.

    Raises:
        InvalidInputError: something that cannot be called with a context.
    """
    found = () if given is None else tuple(given) if isinstance(given, (list, tuple)) else (given,)
    for each in found:
        if isinstance(each, str) and all(part.isidentifier() for part in each.split(".")) and "." in each:
            continue
        if not callable(each) or inspect.iscoroutinefunction(each):
            raise errors.InvalidInputError(
                "on_outlook_change",
                each,
                "must be a function that takes the context (not async), a notifier, an import path such as "
                "'package.module.function', or a list of these",
            )
    return found


@dataclass
class OutlookCallbacks:
    """Listens to a run's journal and calls back when the outlook has changed.

    Each is called with a copy of the task's context that also has ``outlook``, ``previous`` (words or None),
    ``predicted_finish``, ``interval`` (a pair) and ``deadline``, all times as UTC datetimes or None.
    """

    callbacks: Sequence[Callback | str]
    context: Mapping[str, Any]
    _watch: changes.Watch = field(default_factory=changes.Watch, init=False)

    def __call__(self, record: Record) -> None:
        change = self._watch.change(record)
        if change is not None and change.news:
            self.tell(change)

    def tell(self, change: changes.Change) -> None:
        """Call everybody; one that raises is logged and passed over."""
        for each in self.callbacks:
            try:
                call = resolve_name(each) if isinstance(each, str) else each
                call({**self.context, **told(change)})
            except Exception:  # who is told must not stop who works
                log.exception("on_outlook_change: %s failed", each)


def told(change: changes.Change) -> dict[str, Any]:
    """What callbacks find in their context beside Airflow's own keys."""
    return {
        "outlook": str(change.outlook),
        "previous": None if change.previous is None else str(change.previous),
        "predicted_finish": _time(change.finish_at),
        "interval": (_time(change.finish_low_at), _time(change.finish_high_at)),
        "deadline": _time(change.deadline_at),
    }


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
    journal: Journal, context: Mapping[str, Any], given: Sequence[Callback | str]
) -> Iterator[telemetry.SparkMetrics]:
    """Let metrics and callbacks follow a run's journal; all is told when this ends."""
    gauges = metrics(context)
    with ExitStack() as stack:
        listeners = [Aside(gauges, "Spark metrics")]
        if given:
            listeners.append(Aside(OutlookCallbacks(given, context), "on_outlook_change", CALLBACK_PATIENCE_S))
        for listener in listeners:
            journal.listen(stack.enter_context(listener))
        yield gauges


def metrics(context: Mapping[str, Any]) -> telemetry.SparkMetrics:
    """The metrics of this task."""
    return telemetry.of(context["ti"])


def told_afterwards(records: Iterable[Record], context: Mapping[str, Any], given: Sequence[Callback | str]) -> None:
    """Call back for every change of the outlook in a run that nobody in this process looked on."""
    after = OutlookCallbacks(given, context)
    for change in changes.news(records):
        after.tell(change)


def _time(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)
