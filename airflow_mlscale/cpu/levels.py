"""From a CPU share to what the kernel's cpu controller is told, and back: arithmetic, no I/O.

Belongs here: units, rounding, and the order in which values may change without the kernel refusing one.
Does not belong here: where the files are and what they are called (adapters).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from airflow_mlscale.cpu import ports

PERIOD_US = 100_000
"""Enforcement period; the kernel's default and the best of those measured."""
LEAST_QUOTA_US = 1_000
"""The kernel refuses less: 0.01 core (`ports.LEAST_CEILING_CORES`)."""


@dataclass(frozen=True, kw_only=True)
class WeightScale:
    """How a kernel interface counts weights."""

    per_core: float
    """Weight of one guaranteed core; an ordinary process (``default``) weighs an eighth of it."""
    low: int
    high: int
    default: int
    """Weight of a new group, and of one that leaves the idle class."""


V1_SHARES = WeightScale(per_core=8192, low=2, high=262_144, default=1024)
"""``cpu.shares``; saturates at 32 cores."""
V2_WEIGHT = WeightScale(per_core=800, low=1, high=10_000, default=100)
"""``cpu.weight``; saturates at 12.5 cores."""


@dataclass(frozen=True, kw_only=True)
class Levels:
    """What the kernel enforces for one group."""

    weight: int
    quota_us: int | None = None
    """Microseconds of CPU per period; None for no limit."""
    burst_us: int = 0
    """Unused quota that may be saved up; never more than the quota."""
    idle: bool = False
    """In the idle class; the weight means nothing then, and cannot be written."""


Field = Literal["idle", "weight", "quota", "burst"]


@dataclass(frozen=True)
class Write:
    """One value to write; a quota of None lifts the limit."""

    field: Field
    value: int | None


def levels(share: ports.CpuShare, scale: WeightScale, *, idle_class: bool = True, burst: bool = True) -> Levels:
    """What to tell the kernel so that it enforces ``share``.

    Args:
        share: the share, already cut to the host.
        scale: units of the weight.
        idle_class: whether the kernel has ``cpu.idle`` (5.15); the least weight stands in for it.
        burst: whether the kernel has a burst (5.14).
    """
    weight = min(scale.high, max(scale.low, round(scale.per_core * share.guaranteed_cores)))
    if share.ceiling_cores is None:
        return Levels(weight=weight, idle=idle_class and share.guaranteed_cores == 0)
    quota_us = max(LEAST_QUOTA_US, round(share.ceiling_cores * PERIOD_US))
    return Levels(weight=weight, quota_us=quota_us, burst_us=quota_us if burst else 0)


def share(now: Levels, scale: WeightScale) -> ports.CpuShare:
    """The share that the kernel enforces now; a guarantee above the ceiling counts as the ceiling."""
    ceiling = None if now.quota_us is None else now.quota_us / PERIOD_US
    guaranteed = 0.0 if now.idle or now.weight <= scale.low else now.weight / scale.per_core
    if ceiling is not None:
        guaranteed = min(guaranteed, ceiling)
    return ports.CpuShare(guaranteed_cores=guaranteed, ceiling_cores=ceiling)


def writes(now: Levels, wanted: Levels, scale: WeightScale) -> list[Write]:
    """The fewest writes from ``now`` to ``wanted``, in an order that the kernel accepts at every step.

    Its rules: a weight cannot be written in the idle class, leaving that class resets the weight to the
    default, and a burst never exceeds the quota. Each write of quota or burst also refills the group's
    bucket, so a burst between half the quota and the quota is left as it is.
    """
    weight = now.weight
    steps = []
    if now.idle and not wanted.idle:
        steps.append(Write("idle", 0))
        weight = scale.default
    if not wanted.idle and weight != wanted.weight:
        steps.append(Write("weight", wanted.weight))
    steps += _bandwidth(now, wanted)
    if wanted.idle and not now.idle:
        steps.append(Write("idle", 1))
    return steps


def _bandwidth(now: Levels, wanted: Levels) -> list[Write]:
    quota = [] if now.quota_us == wanted.quota_us else [Write("quota", wanted.quota_us)]
    if wanted.quota_us is None or wanted.burst_us == 0:
        burst = [] if now.burst_us == wanted.burst_us else [Write("burst", wanted.burst_us)]
    elif wanted.quota_us / 2 <= now.burst_us <= wanted.quota_us:
        burst = []
    else:
        burst = [Write("burst", wanted.burst_us)]
    lower_burst_first = wanted.quota_us is not None and now.burst_us > wanted.quota_us
    return [*burst, *quota] if lower_burst_first else [*quota, *burst]
