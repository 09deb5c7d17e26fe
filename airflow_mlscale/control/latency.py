"""From an arrival rate and a cost per request to cores."""

from __future__ import annotations


def base_cores(
    *, arrivals_per_s: float, cpu_s_per_request: float, utilisation: float, low: float, high: float
) -> float:
    """Feed-forward share of a model: λ·s ÷ target utilisation, between ``low`` and ``high``.

    Args:
        arrivals_per_s: λ.
        cpu_s_per_request: s, CPU seconds that one request costs.
        utilisation: part of the share that should be busy, in (0, 1].
        low: least cores.
        high: most cores.
    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation={utilisation} must lie in (0, 1]")
    return min(high, max(low, arrivals_per_s * cpu_s_per_request / utilisation))


def trim(
    last: float,
    *,
    measured_s: float | None,
    objective_s: float,
    rate: float,
    low: float,
    high: float,
    comfortable: float = 0.5,
) -> float:
    """Slow multiplicative correction of the base from the measured percentile.

    The factor grows by up to ``rate`` a step while the percentile is above the objective and shrinks
    by up to the same while it is below the ``comfortable`` part of it; between the two, and without a
    measurement, it holds.
    The result lies between ``low`` and ``high`` in every case.
    """
    factor = 1.0
    if measured_s is not None and measured_s > objective_s:
        factor = 1 + rate * min(1.0, measured_s / objective_s - 1)
    elif measured_s is not None and measured_s < comfortable * objective_s:
        factor = 1 - rate * (1 - measured_s / (comfortable * objective_s))
    return min(high, max(low, last * factor))
