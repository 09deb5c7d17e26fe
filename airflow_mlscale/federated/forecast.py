"""What is left of a run: rounds, time and cost to its target, and what its limits allow. Pure.

The learning curve (`curve`) says how much work is left, the rounds so far say what a round's work costs, and the
limits say how many more rounds there can be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import median
from typing import Any

from airflow_mlscale.federated import account, curve, model
from airflow_mlscale.federated.settings import RunSettings

RECENT = 5
"""Rounds that say what the next one will cost."""
SPEED_UP = 1.25
"""Work that a round may still be made to do, ÷ what rounds do now: a doubt must hold even then."""
CURVE_POINTS, FARTHEST = 10, 1000
"""Points of a predicted curve, and the most rounds ahead of the last one."""
HOPELESS = 0.03
"""Below this chance a target looks out of reach, …"""
SURE_ROUNDS, SURE_SHARE = 20, 0.3
"""… after so many rounds, or once this part of the rounds that the limits allow is done."""
CERTAIN = 0.003
"""Below this chance a mature run needs no second look."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is predicted after a round."""

    rounds: curve.Span
    """Rounds left to the target; infinite where it may be out of reach."""
    seconds: curve.Span
    """Time left to the target."""
    node_seconds: curve.Span
    """Site time still to be spent."""
    gigabytes: curve.Span
    rounds_to_limit: float
    """Rounds that the limits still allow."""
    limit: str
    """The limit that comes first; empty if there is none."""
    chance: float
    """Probability that the target is reached within the limits."""
    at_limit: curve.Span
    """The metric at the limit, from a bad to a good outcome."""
    done: int
    """Rounds behind the prediction."""
    ahead: tuple[tuple[int, curve.Span], ...] = ()
    """A few rounds to come, by number, with the metric after them."""

    @property
    def hopeless(self) -> bool:
        """Whether the target looks out of reach, and enough was seen to say so."""
        return self.chance < HOPELESS and self.mature

    @property
    def certain(self) -> bool:
        """Whether the target is so far out of reach that no second look is needed."""
        return self.chance < CERTAIN and self.mature

    @property
    def mature(self) -> bool:
        """Whether enough was seen to judge a run by: curves begin slowly."""
        spent = self.done / (self.done + self.rounds_to_limit) if self.done else 0.0
        return self.done >= SURE_ROUNDS or spent >= SURE_SHARE

    def to_json(self) -> dict[str, Any]:
        """A JSON object; null stands for infinite."""
        spans = {name: getattr(self, name) for name in ("rounds", "seconds", "node_seconds", "gigabytes", "at_limit")}
        return {
            **{name: [_finite(span.low), _finite(span.middle), _finite(span.high)] for name, span in spans.items()},
            "rounds_to_limit": _finite(self.rounds_to_limit),
            "limit": self.limit,
            "chance": round(self.chance, 4),
            "curve": [
                [number, *(_finite(value) for value in (span.low, span.middle, span.high))]
                for number, span in self.ahead
            ],
        }


def _finite(number: float) -> float | None:
    return round(number, 6) if isfinite(number) else None


def predict(run: RunSettings, state: model.RunState, *, now: float) -> Forecast | None:
    """What the rounds so far say; None while they say nothing."""
    seen = curve.fit(
        run.target.scale, state.values, [each.effort for each in state.rounds]
    )  # fmt: skip
    if seen is None:
        return None
    costs = RoundCosts.of(state.rounds)
    limit, rounds_to_limit = first_limit(run, state, costs, now=now)
    useful = max(0.0, rounds_to_limit - (run.target.in_a_row - 1))
    reachable_x = seen.x + min(useful, 1e6) * costs.effort * SPEED_UP
    work = seen.work_to(run.target.value)
    rounds = curve.Span(
        *(_rounds(each, costs.effort, run.target.in_a_row) for each in (work.low, work.middle, work.high))
    )
    return Forecast(
        rounds=rounds,
        seconds=_times(rounds, costs.seconds),
        node_seconds=_times(rounds, costs.node_s),
        gigabytes=_times(rounds, costs.gigabytes),
        rounds_to_limit=rounds_to_limit,
        limit=limit,
        chance=seen.chance(run.target.value, reachable_x),
        at_limit=seen.value_at(seen.x + min(rounds_to_limit, 1e6) * costs.effort),
        done=len(state.rounds),
        ahead=_ahead(seen, len(state.rounds), _horizon(rounds, rounds_to_limit, len(state.rounds)), costs.effort),
    )


def _horizon(rounds: curve.Span, rounds_to_limit: float, done: int) -> int:
    """Rounds that are worth drawing: to the target and a bit on, or as many as were done; never beyond the limits."""
    wanted = 1.2 * rounds.high
    if not isfinite(wanted):
        wanted = max(2.0 * done, 1.2 * rounds.low if isfinite(rounds.low) else 0.0)
    return int(max(1.0, min(wanted, rounds_to_limit, FARTHEST)))


def _ahead(seen: curve.Curve, done: int, horizon: int, effort: float) -> tuple[tuple[int, curve.Span], ...]:
    steps = sorted({max(1, round(horizon * i / CURVE_POINTS)) for i in range(1, CURVE_POINTS + 1)})
    return tuple((done + step, seen.value_at(seen.x + step * effort)) for step in steps)


@dataclass(frozen=True)
class RoundCosts:
    """What one more round is expected to cost and to do."""

    seconds: float
    node_s: float
    gigabytes: float
    effort: float

    @classmethod
    def of(cls, rounds: Sequence[model.Round]) -> RoundCosts:
        """Medians of the recent rounds; the first round of a segment lasts longer and is left out if it can be."""
        begun = {
            min(each.number for each in rounds if each.segment == segment) for segment in {r.segment for r in rounds}
        }
        recent = ([each for each in rounds if each.number not in begun] or list(rounds))[-RECENT:]
        return cls(
            seconds=median(each.seconds for each in recent),
            node_s=median(each.node_s for each in recent),
            gigabytes=median(each.gigabytes for each in recent),
            effort=median(each.effort for each in recent),
        )


def first_limit(run: RunSettings, state: model.RunState, costs: RoundCosts, *, now: float) -> tuple[str, float]:
    """The limit that comes first, and how many rounds are left to it."""
    left: Mapping[str, float] = {
        "max_rounds": float(run.max_rounds - len(state.rounds)),
        "deadline": inf if run.deadline_at is None else _per(run.deadline_at - now, costs.seconds),
        "budget.node_seconds": _left(run.budget.node_seconds, state.node_seconds, costs.node_s),
        "budget.gigabytes": _left(run.budget.gigabytes, state.gigabytes, costs.gigabytes),
        "privacy.max_epsilon": _private(run, state),
    }
    name = min(left, key=lambda each: left[each])
    return name, max(0.0, left[name])


def _private(run: RunSettings, state: model.RunState) -> float:
    """Rounds until the site that takes part most often has spent its privacy."""
    if run.privacy is None or run.privacy.max_epsilon is None or not state.rounds:
        return inf
    taken = account.most_rounds(state.rounds)
    left = account.allowed_rounds(run.privacy, run.max_rounds) - taken
    return _per(left, taken / len(state.rounds))


def _left(budget: float | None, spent: float, each: float) -> float:
    return inf if budget is None else _per(budget - spent, each)


def _per(whole: float, each: float) -> float:
    return whole / each if each > 0 else inf


def _rounds(work: float, effort: float, in_a_row: int) -> float:
    return work / effort + in_a_row - 1 if effort > 0 else inf


def _times(span: curve.Span, each: float) -> curve.Span:
    if each == 0:
        return curve.Span(0.0, 0.0, 0.0)
    return curve.Span(span.low * each, span.middle * each, span.high * each)
