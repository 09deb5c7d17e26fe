"""What becomes of a promise: the predicted end at the full share, its interval, and a verdict that does not flicker.

Pure. The interval is the prediction for work that costs `confidence` standard deviations more or less.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from airflow_mlscale.control import schedule, smoothing
from airflow_mlscale.spark import estimate
from airflow_mlscale.spark.model import Observation, Outlook, Profile

HELD_PERIODS = 3
"""A verdict is told when it has come out so many times in a row."""


@dataclass(frozen=True)
class Prediction:
    """Seconds from now to the end of the application at the full share."""

    left_s: float
    low_s: float
    high_s: float

    def at(self, now: float) -> dict[str, float]:
        """As fields of a `Decision`, which tells times."""
        return {
            "finish_at": now + self.left_s,
            "finish_low_at": now + self.low_s,
            "finish_high_at": now + self.high_s,
        }


@dataclass(frozen=True)
class Told:
    """The verdict that was told last, and the one that may follow."""

    outlook: Outlook | None = None
    next: Outlook | None = None
    held: smoothing.Hysteresis = field(default_factory=smoothing.Hysteresis)


def predict(left: estimate.Left, *, cores: float, confidence: float) -> Prediction:
    """The end of what is left at ``cores``, and ``confidence`` standard deviations around it."""
    doubt = confidence * left.uncertainty
    low, middle, high = (
        left.idle_s + schedule.duration_s(left.scaled(factor), cores) for factor in (max(0.1, 1 - doubt), 1, 1 + doubt)
    )
    return Prediction(middle, low, high)


def before_start(profile: Profile | None, *, cores: float, confidence: float) -> Prediction | None:
    """The duration of a whole run at ``cores``; None without a profile."""
    plan = estimate.best_plan(profile, None)
    if plan is None:
        return None
    nothing = Observation(now=0.0, progress=None, used_core_s=0.0, elapsed_s=0.0)
    lead_s = max(plan.lead_s, plan.startup_core_s / cores)
    left = estimate.left(plan, nothing, estimate.Beta(), slots=cores, lead_left_s=lead_s)
    return predict(left, cores=cores, confidence=confidence)


def verdict(prediction: Prediction, *, time_s: float) -> Outlook:
    """Where the deadline, ``time_s`` from now, lies in the interval."""
    if prediction.high_s <= time_s:
        return Outlook.ON_TRACK
    return Outlook.AT_RISK if prediction.low_s <= time_s else Outlook.WILL_MISS


def tell(told: Told, found: Outlook | None, *, over: bool) -> Told:
    """The verdict to tell after one more was found; one without a doubt (``over``: too late) at once."""
    if over:
        return Told(Outlook.WILL_MISS)
    if found is None or found is told.outlook:
        return Told(told.outlook)
    if told.outlook is None:
        return Told(found)
    held, count = smoothing.held_for(
        told.held if found is told.next else smoothing.Hysteresis(), True, periods=HELD_PERIODS
    )
    return Told(found) if held else Told(told.outlook, found, count)


def fields(prediction: Prediction | None, told: Told, now: float) -> dict[str, Any]:
    """The part of a `Decision` that this module knows."""
    return {"finish_at": None, **(prediction.at(now) if prediction else {}), "outlook": told.outlook}
