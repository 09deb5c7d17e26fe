"""Taming signals: averages, percentiles over a window, deadbands, hysteresis, slew limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, isfinite


@dataclass(frozen=True)
class Ewma:
    """Exponentially weighted mean over irregular samples; ``value`` is None before the first."""

    time_constant_s: float
    value: float | None = None

    def __post_init__(self) -> None:
        if self.time_constant_s <= 0:
            raise ValueError(f"time_constant_s={self.time_constant_s} must be > 0")


def ewma(mean: Ewma, sample: float, *, dt_s: float) -> Ewma:
    """The mean after one more sample, taken ``dt_s`` seconds after the last; ignores what is not finite."""
    if not isfinite(sample):
        return mean
    if mean.value is None:
        return Ewma(mean.time_constant_s, sample)
    weight = 1.0 - exp(-max(0.0, dt_s) / mean.time_constant_s)
    return Ewma(mean.time_constant_s, mean.value + weight * (sample - mean.value))


def percentile(samples: Sequence[float], rank: float) -> float | None:
    """Nearest-rank percentile (``rank`` in 0–100) of the samples; None when there are none."""
    if not 0 < rank <= 100:
        raise ValueError(f"rank={rank} must lie in (0, 100]")
    if not samples:
        return None
    position = ceil(rank * len(samples) / 100 - 1e-9)  # 55 % of 20 is 11, not the 11.000000000000002 of 0.55·20
    return sorted(samples)[max(1, position) - 1]


def deadband(last: float, proposed: float, *, relative: float, absolute: float = 0.0) -> float:
    """``last`` unless the proposal differs by more than ``relative``·last and ``absolute``."""
    return last if abs(proposed - last) <= max(absolute, relative * abs(last)) else proposed


def slew(last: float, proposed: float, *, rise_per_s: float, fall_per_s: float, dt_s: float) -> float:
    """The proposal, no further from ``last`` than the rates allow in ``dt_s``."""
    return min(last + rise_per_s * dt_s, max(last - fall_per_s * dt_s, proposed))


@dataclass(frozen=True)
class Hysteresis:
    """Counts how long a condition has held without a break."""

    held: int = 0


def held_for(state: Hysteresis, condition: bool, *, periods: int) -> tuple[bool, Hysteresis]:
    """Whether the condition has now held for ``periods`` steps in a row, and the next state."""
    held = state.held + 1 if condition else 0
    return held >= periods, Hysteresis(held)
