"""The proportional-integral law, with anti-windup by back-calculation.

Discrete form with output limits (Åström & Hägglund, *PID Controllers*, 1995, §3.5)::

    u = K·e + I                 I' = I + K·(dt/Ti)·e + (dt/Tt)·(clamp(u) − u)

With ``tracking_s = 0`` the state is re-derived from the clamped output, I' = clamp(u) − K·e, which is
the form that the dynaSpark and ROMA papers use.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Tuning of one law; ``low``/``high`` bound its output."""

    proportional: float
    """K, output units per unit of error."""
    integral_s: float
    """Ti in seconds: how long a constant error takes to add K·e once more."""
    low: float
    """Least output."""
    high: float
    """Greatest output."""
    tracking_s: float = 0.0
    """Tt in seconds for back-calculation; 0 re-derives the integral from the clamped output at once."""

    def __post_init__(self) -> None:
        if self.integral_s <= 0 or self.tracking_s < 0:
            raise ValueError(f"integral_s={self.integral_s} must be > 0 and tracking_s={self.tracking_s} >= 0")
        if self.low > self.high:
            raise ValueError(f"low={self.low} must not exceed high={self.high}")


@dataclass(frozen=True)
class State:
    """What the law remembers: the two parts of its output."""

    integral: float = 0.0
    push: float = 0.0
    """The proportional part, kept for steps without a measurement."""


def step(gains: Gains, state: State, *, error: float, dt_s: float, feed_forward: float = 0.0) -> tuple[float, State]:
    """One step: the bounded output and the next state.

    Args:
        gains: the tuning.
        state: from the step before, or ``State()``.
        error: set point − measurement; without a finite one (a lost measurement) both parts stay as they
            were, so that the output holds.
        dt_s: seconds since the step before, ≥ 0.
        feed_forward: known part of the output; the law only corrects it.
    """
    if isfinite(error):
        push = gains.proportional * error
        integral = state.integral + push * dt_s / gains.integral_s
    else:
        push, integral = state.push, state.integral
    raw = feed_forward + push + integral
    output = min(gains.high, max(gains.low, raw))
    if output != raw:
        share = 1.0 if gains.tracking_s == 0 else min(1.0, dt_s / gains.tracking_s)
        integral += share * (output - raw)
    return output, State(integral, push)
