"""When a run ends, and why; and the conditions that others wait for on a run. Pure.

One place for both, so that the controller, the operator and a sensor cannot disagree about whether a target holds,
a run is stalled or has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from math import isfinite
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import checks, curve, metrics, model
from airflow_mlscale.federated.forecast import Forecast
from airflow_mlscale.federated.settings import RunSettings

LEAST_GAIN = 0.01
"""Part of the error that has to go for a round to count as progress."""
DOUBTS = 2
"""Forecasts in a row without hope before a run is called infeasible: one can be bad luck."""


HOPEFUL = 0.5
"""Above this chance a standstill is borne: a target just above the noise takes many tries."""
ASTRAY_ROUNDS, ASTRAY_RATIO = 3, 2.0
"""Rounds in a row with an error so many times the best one, after which a run goes back to its best model."""


@dataclass(frozen=True)
class Verdict:
    """Whether the run ends here."""

    status: model.Status
    reason: str

    @property
    def ends(self) -> bool:
        """Whether no further round is played."""
        return self.status != model.Status.RUNNING


GO_ON = Verdict(model.Status.RUNNING, "")


def verdict(run: RunSettings, state: model.RunState, *, now: float, seen: Forecast | None = None) -> Verdict:
    """Go on, or stop and why. A run that holds its target when a limit comes has reached it.

    Args:
        run: settings.
        state: after the last complete round.
        now: seconds since the epoch.
        seen: what was predicted after that round.
    """
    if REACHED.quality(run).held(state.values):
        return Verdict(model.Status.REACHED, run.target.why_held(state.values))
    if limit := _limit(run, state, now):
        if not state.rounds:
            return Verdict(model.Status.FAILED, f"{limit} before the first round was complete")
        return Verdict(model.Status.LIMIT, f"{limit} at {state.metric} {state.value:.4f}")
    if STANDSTILL.met_in(run, state) is not None:
        told = f"no progress in {run.stall_rounds} rounds, best {state.metric} {state.best_value:.4f}"
        return Verdict(model.Status.STALLED, told)
    if run.on_infeasible == "stop" and seen is not None and state.doubts >= DOUBTS:
        return Verdict(model.Status.INFEASIBLE, out_of_reach(run, seen))
    if state.failed_rounds >= run.max_failed_rounds:
        told = f"{state.failed_rounds} rounds in a row without {run.min_nodes} answers"
        return Verdict(model.Status.INTERRUPTED, told)
    return GO_ON


def ended_on_request(state: model.RunState, why: str) -> Verdict:
    """The end of a run that was asked to end with what it has; without a round it has nothing."""
    if not state.rounds:
        return Verdict(model.Status.ABORTED, f"{why}; before the first round was complete")
    return Verdict(model.Status.STOPPED, f"{why}; at {state.metric} {state.value:.4f}")


def with_forecast(state: model.RunState, seen: Forecast | None) -> model.RunState:
    """The state after a prediction; doubts count until one gives hope."""
    if seen is None:
        return replace(state, forecast=None)
    more = DOUBTS if seen.certain else 1
    return replace(state, forecast=seen.to_json(), doubts=state.doubts + more if seen.hopeless else 0)


def _limit(run: RunSettings, state: model.RunState, now: float) -> str | None:
    """The first limit that has come, in words."""
    if run.deadline_at is not None and now >= run.deadline_at:
        return "the deadline passed"
    if len(state.rounds) >= run.max_rounds:
        return f"max_rounds={run.max_rounds} reached"
    spent = {"node_seconds": state.node_seconds, "gigabytes": state.gigabytes}
    for name, amount in spent.items():
        most = getattr(run.budget, name)
        if most is not None and amount >= most:
            return f"the budget of {most:g} {name.replace('_', ' ')} is spent"
    return None


def out_of_reach(run: RunSettings, seen: Forecast) -> str:
    """The verdict on a run that has no hope, with what it would come to."""
    low, middle, high = seen.at_limit.low, seen.at_limit.middle, seen.at_limit.high
    return (
        f"{run.target} is out of reach (chance {seen.chance:.0%}): expected at the limit ({seen.limit}) "
        f"{run.target.metric} {middle:.4f}, between {min(low, high):.4f} and {max(low, high):.4f}"
    )


def stalled(target: model.Quality, values: Sequence[float], rounds: int) -> bool:
    """Whether the best value of the last ``rounds`` rounds is hardly better than the best one before."""
    if len(values) <= rounds:
        return False
    metric = target.scale
    before = min(curve.error_of(metric, value) for value in values[:-rounds])
    since = min(curve.error_of(metric, value) for value in values[-rounds:])
    return since > before * (1 - LEAST_GAIN)


def astray(target: model.Quality, values: Sequence[float]) -> bool:
    """Whether the model has left a good one behind: it is no number any more, or has been much worse for a while.

    A server momentum can carry a model away, and sites cannot train what is not finite.
    """
    finite = [value for value in values if isfinite(value)]
    if not finite or not values:
        return False
    if not isfinite(values[-1]):
        return True
    metric = target.scale
    best = min(curve.error_of(metric, value) for value in finite)
    last = values[-ASTRAY_ROUNDS:]
    return len(values) > ASTRAY_ROUNDS and all(curve.error_of(metric, value) > ASTRAY_RATIO * best for value in last)


class Awaited(StrEnum):
    """What can be waited for on a run."""

    AT_LEAST = "at_least"
    """Its quality holds."""
    STALLED = "stalled"
    """Its rounds make no progress, or it has ended below its target."""
    FAILED = "failed"
    """It failed or was aborted."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One thing to wait for on a run; what it leaves open is as the run has it.

    The controller ends a run by `REACHED` and `STANDSTILL`, sensors wait by the same law: they cannot disagree.
    """

    awaited: Awaited
    value: float | None = None
    """What the run's metric must reach, for `AT_LEAST`; None for the run's target."""
    metric: str | None = None
    """The run's metric, for who wants to be sure of it; None for whatever it is."""
    in_a_row: int | None = None
    """Evaluations in a row; None for as many as the run's target wants."""
    rounds: int | None = None
    """Rounds without progress, for `STALLED`; None for the run's `stall_rounds`."""

    def __post_init__(self) -> None:
        for name in ("in_a_row", "rounds"):
            if getattr(self, name) is not None:
                checks.whole(getattr(self, name), name, 1)

    def quality(self, run: RunSettings) -> model.Quality:
        """What must hold of a run.

        Raises:
            InvalidInputError: the run has another metric, or its metric cannot have this value.
        """
        own = run.target
        if self.metric not in (None, own.metric):
            fix = f"run {run.run_id} is measured by its target's metric {own.metric!r}; use that"
            raise errors.InvalidInputError("metric", self.metric, fix)
        if self.value is not None:
            metrics.check_value("at_least", own.scale, self.value)
        value = own.value if self.value is None else self.value
        return replace(own, value=value, in_a_row=self.in_a_row or own.in_a_row)

    def met_in(self, run: RunSettings, state: model.RunState) -> int | None:
        """The round in which the condition was met; None while it is not. 0 for a run without rounds.

        A quality is held for good once it was; a standstill is over with the next progress.
        """
        match self.awaited:
            case Awaited.AT_LEAST:
                wanted = self.quality(run)
                return _first(len(state.values), lambda end: wanted.held(state.values[:end]))
            case Awaited.FAILED:
                over = state.status in (model.Status.FAILED, model.Status.ABORTED)
                return len(state.rounds) if over else None
            case Awaited.STALLED:
                below = state.status.usable and state.status != model.Status.REACHED
                return len(state.rounds) if below or self._stands_still(run, state) else None

    def _stands_still(self, run: RunSettings, state: model.RunState) -> bool:
        rounds = self.rounds or run.stall_rounds
        hopeful = state.forecast is not None and state.forecast["chance"] > HOPEFUL
        return rounds is not None and not hopeful and stalled(self.quality(run), state.values, rounds)

    def out_of_question(self, run: RunSettings, state: model.RunState) -> errors.MlscaleError | None:
        """Why an ended run can no longer meet the condition; None while it may."""
        if not state.status.ended or self.met_in(run, state) is not None:
            return None
        if state.status in (model.Status.FAILED, model.Status.ABORTED):
            return errors.FederatedRunFailedError(f"run {state.run_id} {state.status}: {state.reason}")
        return errors.TargetNotReachedError(
            f"run {state.run_id} ended at {state.metric} {state.best_value} without {self.told(run)}: {state.reason}"
        )

    def told(self, run: RunSettings) -> str:
        """In words."""
        if self.awaited == Awaited.AT_LEAST:
            return str(self.quality(run))
        if self.awaited == Awaited.FAILED:
            return "a failure"
        rounds = self.rounds or run.stall_rounds
        return "an end below its target" if rounds is None else f"{rounds} rounds without progress"

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Condition:
        """The condition from its JSON object."""
        return cls(**{**values, "awaited": Awaited(values["awaited"])})


REACHED = Condition(awaited=Awaited.AT_LEAST)
"""The run's own target."""
STANDSTILL = Condition(awaited=Awaited.STALLED)
"""What the run itself takes for a standstill."""


def _first(rounds: int, met: Callable[[int], bool]) -> int | None:
    return next((end for end in range(1, rounds + 1) if met(end)), None)
