"""Arguments of a federated training task as a DAG file writes them: which are rendered later, and what the others say.

Belongs here: refusing at parse time what no rendering makes right. Does not belong here: what a run's settings allow
(`federated.settings`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import checks
from airflow_mlscale.federated.settings import FUNCTIONS, RunSettings
from airflow_mlscale.runtime import deadlines

MARKS = ("{{", "{%")
"""What a template of Jinja has."""
_LIST = "write a list, ['one', 'two']; a template gives one with render_template_as_native_obj=True of the DAG"


def rendered_later(value: Any) -> bool:
    """Whether Airflow replaces this, or something in it, before the task runs."""
    if isinstance(value, str):
        return any(mark in value for mark in MARKS)
    if isinstance(value, Mapping):
        return any(map(rendered_later, value.values()))
    if isinstance(value, Sequence | set):
        return any(map(rendered_later, value))
    return hasattr(value, "iter_references")


def words(line: str | Sequence[str]) -> tuple[str, ...]:
    """A command line as its words.

    Raises:
        InvalidInputError: its quotes do not match.
    """
    if not isinstance(line, str):
        return tuple(line)
    try:
        return tuple(shlex.split(line))
    except ValueError as exc:
        raise errors.InvalidInputError("client_script_args", line, f"is no command line: {exc}") from exc


def names(field: str, value: Any) -> tuple[str, ...]:
    """A list of names; one name by itself would be taken for its letters.

    Raises:
        InvalidInputError: it is one name, or no list of texts.
    """
    checks.check(not isinstance(value, str), field, value, _LIST)
    good = isinstance(value, Sequence | set | frozenset) and all(isinstance(each, str) for each in value)
    checks.check(good, field, value, "write a list of names")
    return tuple(value)


def sites(value: Any) -> tuple[str, ...] | None:
    """The sites that take part, rendered; None for all.

    Raises:
        InvalidInputError: they are no list.
    """
    return None if value is None else names("sites", value)


def seconds(value: Any) -> Any:
    """A duration as seconds; anything else as it is."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def check(task: Any, settings: Mapping[str, Any]) -> None:
    """Refuse what cannot become right at run time.

    Args:
        task: a `FederatedTrainingOperator`.
        settings: those of its run that are not templated.

    Raises:
        InvalidInputError: an argument is wrong, and is not rendered later.
    """
    checks.within(task.poll_s, "poll_s", 0.0)
    if task.deadline is not None and not rendered_later(task.deadline):
        deadlines.check(task.deadline)
        deadlines.meant(task.deadline)
    templated: dict[str, Any] = {
        name: "later:later" if rendered_later(getattr(task, name)) else getattr(task, name) for name in FUNCTIONS
    }
    templated["client_script"] = "later.py" if rendered_later(task.client_script) else task.client_script
    templated["client_script_args"] = () if rendered_later(task.client_script_args) else words(task.client_script_args)
    templated["data_args"] = _without_later(task.data_args)
    templated["output_dir"] = None if rendered_later(task.output_dir) else task.output_dir
    templated["sites"] = None if rendered_later(task.sites) else sites(task.sites)
    RunSettings(**{"run_id": "check", **templated, **settings})


def _without_later(arguments: Any) -> Any:
    """Data arguments of which those that are rendered later are left out; what is no mapping stays what it is."""
    if rendered_later(arguments) and not isinstance(arguments, Mapping):
        return {}
    if not isinstance(arguments, Mapping):
        return arguments
    return {name: value for name, value in arguments.items() if not rendered_later(value)}
