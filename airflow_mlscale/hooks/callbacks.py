"""Calling people back when the outlook of a run has changed: whom, with what, and from whichever process looks on.

A task calls everybody itself. A trigger calls those who are found by an import path, and keeps account of it; when
the task comes back, it calls the others. Nothing here knows when an outlook has changed: see `spark.changes`.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pkgutil import resolve_name
from typing import Any

from airflow.sdk import BaseNotifier
from airflow.sdk.definitions.callback import Callback

from airflow_mlscale import errors
from airflow_mlscale.spark.changes import Change

log = logging.getLogger(__name__)

Given = Callable[[dict[str, Any]], object] | str | Callback
"""What users give: see `checked`. A `Callback` is Airflow's ``AsyncCallback`` or ``SyncCallback``."""

PATIENCE_S = 30.0
"""How long a run that has ended waits for its callbacks."""
NOT_ELSEWHERE = ("unusual_prefix_", "__main__", "__mp_main__")
"""How modules begin that no other process finds under this name: DAG files as Airflow loads them, and scripts."""


@dataclass(frozen=True, kw_only=True)
class Callee:
    """Somebody who is found by an import path. `dataclasses.asdict` is plain values."""

    path: str
    kwargs: dict[str, Any] | None = None
    """Keyword arguments, with the context as ``context`` if it takes that; None: the context is the only argument."""


def checked(given: Any) -> tuple[Given, ...]:
    """What was given as ``on_outlook_change``: one or several of what can be called back.

    Raises:
        InvalidInputError: something that cannot be called with a context, or arguments that cannot travel.
    """
    found = () if given is None else tuple(given) if isinstance(given, (list, tuple)) else (given,)
    for each in found:
        if isinstance(each, Callback):
            _check_arguments(each)
        elif isinstance(each, str) and all(part.isidentifier() for part in each.split(".")) and "." in each:
            continue
        elif not callable(each):
            raise errors.InvalidInputError(
                "on_outlook_change",
                each,
                "must be a function that takes the context, a notifier, an import path such as "
                "'package.module.function', an AsyncCallback or SyncCallback, or a list of these",
            )
    return found


def _check_arguments(given: Callback) -> None:
    try:
        json.dumps(given.kwargs)
    except (TypeError, ValueError) as exc:
        raise errors.InvalidInputError(
            "on_outlook_change",
            given.path,
            f"its kwargs must be plain values, they travel to the triggerer as JSON ({exc})",
        ) from exc


def by_path(given: Given) -> Callee | None:
    """How another process finds it; None for what only this one has."""
    if isinstance(given, Callback):
        return Callee(path=given.path, kwargs=json.loads(json.dumps(given.kwargs)))
    path = given if isinstance(given, str) else _own_path(given)
    return None if path is None else Callee(path=path)


def _own_path(given: object) -> str | None:
    """The path under which a function at the top of its module is found; None for all others."""
    module, name = getattr(given, "__module__", None), getattr(given, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(name, str)) or module.startswith(NOT_ELSEWHERE):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}.{name}" if found is given else None


def travelling(given: Sequence[Given]) -> list[dict[str, Any]]:
    """Those whom a triggerer can call, as plain values; a warning names the others."""
    callees = [by_path(each) for each in given]
    left = [_name(each) for each, callee in zip(given, callees, strict=True) if callee is None]
    if left:
        log.warning(
            "on_outlook_change: %s cannot be called by the triggerer, only when the task comes back, at the end; "
            "give its import path to hear of a change at once",
            ", ".join(left),
        )
    return [asdict(callee) for callee in callees if callee is not None]


def told(change: Change) -> dict[str, Any]:
    """What callbacks find in their context beside Airflow's own keys."""
    return {
        "outlook": str(change.outlook),
        "previous": None if change.previous is None else str(change.previous),
        "predicted_finish": _time(change.finish_at),
        "interval": (_time(change.finish_low_at), _time(change.finish_high_at)),
        "deadline": _time(change.deadline_at),
    }


def identity(task_instance: Any) -> dict[str, Any]:
    """What names the task, in every process alike; all None in a test's trigger, which may have no task."""
    names = ("dag_id", "task_id", "run_id", "map_index", "try_number")
    return {"ti": task_instance, **{name: getattr(task_instance, name, None) for name in names}}


@dataclass
class Teller:
    """Calls everybody when told of a change; one that raises is logged and passed over."""

    given: Sequence[Given]
    context: Mapping[str, Any]

    def __call__(self, change: Change) -> None:
        context = {**identity(self.context["ti"]), **self.context, **told(change)}
        for each in self.given:
            callee = _named(each)
            try:
                if callee is None:
                    call(each, None, dict(context))  # each has a copy of its own
                else:
                    call(resolve_name(callee.path), callee.kwargs, dict(context))
            except Exception:  # who is told must not stop who works
                log.exception("on_outlook_change: %s failed", _name(each))


def _name(given: Given) -> str:
    """For the log, without what may be bound to it: that may be secret."""
    callee = _named(given)
    return callee.path if callee else str(getattr(given, "__qualname__", type(given).__qualname__))


def _named(given: Given) -> Callee | None:
    """Who was given by a path, rather than as an object."""
    return by_path(given) if isinstance(given, (str, Callback)) else None


@dataclass
class Herald:
    """Calls those who are found by their path, where their task is not, and keeps account for it.

    To be told of changes in one thread; `account` may be asked from another.
    """

    callees: Sequence[Callee]
    context: Mapping[str, Any]
    told: int = 0
    """How many changes were told of; more than 0 at first if another triggerer has begun."""
    _functions: dict[str, Any] = field(default_factory=dict, init=False)
    _over: bool = field(default=False, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __call__(self, change: Change) -> None:
        with self._lock:  # either it is told here, or the account leaves it to the task
            if self._over:
                return
            self.told += 1
        for callee in self.callees:
            if (function := self._function(callee.path)) is None:
                continue
            try:
                call(function, callee.kwargs, {**self.context, **told(change)})
            except Exception:  # who is told must not stop who works
                log.exception("on_outlook_change: %s failed", callee.path)

    def account(self) -> list[tuple[str, int]]:
        """How many changes everybody has heard of; from now on nobody is told here. May import modules."""
        with self._lock:
            self._over = True
        return [(each.path, 0 if self._function(each.path) is None else self.told) for each in self.callees]

    def _function(self, path: str) -> Any:
        """The function at a path; None if it is not to be had in this process."""
        if path not in self._functions:
            try:
                self._functions[path] = resolve_name(path)
            except Exception as exc:  # whatever a stranger's module does when it is imported
                log.warning(
                    "on_outlook_change: the triggerer cannot import %s (%s), it is called when the task comes back, "
                    "at the end; install its module where triggerers run",
                    path,
                    exc,
                )
                self._functions[path] = None
        return self._functions[path]


def unheard(given: Sequence[Given], account: Sequence[Sequence[Any]]) -> Iterator[tuple[Given, int]]:
    """Everybody, with the number of changes that a `Herald` has told them of."""
    rest = [(str(path), int(count)) for path, count in account]
    for each in given:
        callee = by_path(each)
        heard = callee is not None and rest and rest[0][0] == callee.path
        yield each, rest.pop(0)[1] if heard else 0


def call(function: Any, kwargs: Mapping[str, Any] | None, context: dict[str, Any]) -> None:
    """Call and wait until it is done, asynchronous or not; a notifier's class is made one, then it notifies.

    Args:
        function: what was given, or is at its path.
        kwargs: see `Callee`.
        context: of the task, with `told`.
    """
    if isinstance(function, BaseNotifier):
        answer: Any = function
    elif kwargs is None:
        answer = function(context)
    else:
        answer = function(**kwargs, context=context) if _takes_context(function) else function(**kwargs)
    if isinstance(answer, BaseNotifier):
        answer = _notified(copy.copy(answer), context)  # its templates are rendered in place, once
    if inspect.isawaitable(answer):
        asyncio.run(_end(answer))


def _notified(notifier: BaseNotifier, context: Any) -> Any:
    """Let it notify; returns what is still to be awaited."""
    if type(notifier).notify is not BaseNotifier.notify:
        return notifier(context)
    notifier.context = context
    return notifier


async def _end(answer: Awaitable[object]) -> None:
    await answer


def _takes_context(function: Any) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (ValueError, TypeError):  # some of those that are written in C
        return True
    return any(one.name == "context" or one.kind is one.VAR_KEYWORD for one in parameters)


def _time(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)
