"""Limits and target of a run that may be changed while it is under way. Pure.

Belongs here: what a change is, whether it can be made, and the settings that hold after it. Where changes are kept
belongs to ``adapters.run_directory``; when they are heard, to `controller`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import model
from airflow_mlscale.federated.settings import RunSettings

NAMES = ("deadline_at", "max_rounds", "target", "node_seconds", "gigabytes")
"""What may be changed; None takes a deadline or a part of the budget away."""
ASKED = ("deadline", *NAMES[1:])
"""The same as who asks for a change calls it: a deadline may be a duration."""
STOP_FIX = "to end the run now, use 'mlscale federated stop'"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change of a run's limits or target."""

    what: Mapping[str, float | int | None]
    """New values, by names out of `NAMES`."""
    by: str = ""
    """Who made it."""
    at: float = 0.0
    """Seconds since the epoch."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {"what": dict(self.what), "by": self.by, "at": self.at}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Change:
        """The change from its JSON object."""
        return cls(what=values["what"], by=values.get("by", ""), at=values.get("at", 0.0))


def held(run: RunSettings, changes: Iterable[Change]) -> RunSettings:
    """The settings that hold after some changes.

    Raises:
        InvalidInputError: a value that the operator would refuse too.
    """
    for change in changes:
        what = change.what
        budget = {name: what[name] for name in ("node_seconds", "gigabytes") if name in what}
        kept: dict[str, Any] = {name: what[name] for name in ("deadline_at", "max_rounds") if name in what}
        # Quality refuses None
        target = replace(run.target, value=what["target"]) if "target" in what else run.target  # type: ignore[arg-type]
        run = replace(run, target=target, budget=replace(run.budget, **budget), **kept)
    return run


def check(run: RunSettings, state: model.RunState | None, change: Change, *, now: float) -> RunSettings:
    """The settings that would hold after a change.

    Args:
        run: the settings that hold now.
        state: the run's last one.
        change: what is asked for.
        now: seconds since the epoch, on the run's clock.

    Raises:
        InvalidInputError: nothing is changed, the run has ended, or a value is wrong or lies behind the run already.
    """
    if not change.what:
        raise errors.InvalidInputError("limits", None, f"name what to change: {', '.join(ASKED)}")
    if state is not None and (state.status.ended or state.status == model.Status.EXPORTING):
        told = f"has ended ({state.status}: {state.reason}); clear its task to begin another run with other limits"
        raise errors.InvalidInputError("run_id", run.run_id, told)
    after = held(run, [change])
    spent = {
        "deadline_at": now,
        "max_rounds": len(state.rounds) if state else 0,
        "node_seconds": state.node_seconds if state else 0.0,
        "gigabytes": state.gigabytes if state else 0.0,
    }
    for name, done in spent.items():
        value = change.what.get(name)
        if value is not None and value <= done:
            told = f"the run is at {_shown(name, done)} already; give more ({STOP_FIX})"
            raise errors.InvalidInputError(name, _shown(name, value), told)
    return after


def told(change: Change, before: RunSettings) -> str:
    """A change in words, for people."""
    was = values(before)
    changed = (f"{name} {_shown(name, value)} (was {_shown(name, was[name])})" for name, value in change.what.items())
    return f"{change.by or 'somebody'} set {', '.join(changed)}"


def values(run: RunSettings) -> dict[str, float | int | None]:
    """What can be changed, by name, as it holds."""
    return {
        "deadline_at": run.deadline_at, "max_rounds": run.max_rounds, "target": run.target.value,
        "node_seconds": run.budget.node_seconds, "gigabytes": run.budget.gigabytes,
    }  # fmt: skip


def _shown(name: str, value: float | int | None) -> str:
    if value is None:
        return "none"
    if name == "deadline_at":
        return datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds")
    return f"{value:g}"
