"""From remaining work and remaining time to cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, kw_only=True)
class Remaining:
    """What is left of a job."""

    work_core_s: float
    """Core-seconds still to be computed, as profiled."""
    time_s: float
    """Seconds to the deadline; may be negative when it has passed."""
    gaps_s: float = 0.0
    """Seconds among those that no core can shorten (driver gaps, scheduling)."""


def usable_s(remaining: Remaining, *, aim: float, margin_s: float = 0.0) -> float:
    """Seconds in which cores still help: ``aim`` (a fraction) of the time left, less gaps and margin."""
    return remaining.time_s * aim - remaining.gaps_s - margin_s


def cores(remaining: Remaining, *, beta: float, aim: float, margin_s: float, low: float, high: float) -> float:
    """Cores = β·W/T between ``low`` and ``high``; ``high`` when no usable time is left (DESIGN §4).

    Args:
        remaining: what is left.
        beta: live core-seconds ÷ profiled core-seconds so far; corrects a wrong profile.
        aim: fraction of the time left to aim at.
        margin_s: safety margin.
        low: least cores.
        high: most cores the job may or can use.
    """
    if remaining.work_core_s <= 0:
        return min(low, high)
    time_s = usable_s(remaining, aim=aim, margin_s=margin_s)
    if time_s <= 0:
        return high
    return min(high, max(low, beta * remaining.work_core_s / time_s))


def earliest_finish_s(remaining: Remaining, *, beta: float, cores_max: float) -> float:
    """Seconds until the end at full share; infinite without cores."""
    if cores_max <= 0:
        return inf
    return remaining.gaps_s + beta * max(0.0, remaining.work_core_s) / cores_max


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of the remaining work that follows the parts before it."""

    work_core_s: float
    parallelism: float
    """Cores that it can use at most, such as the tasks of a stage."""


def duration_s(pieces: Sequence[Piece], cores_given: float) -> float:
    """Seconds that the pieces take one after the other: Σ w/min(c, p); infinite without cores."""
    left = [piece for piece in pieces if piece.work_core_s > 0]
    if not left:
        return 0.0
    if cores_given <= 0:
        return inf
    return sum(piece.work_core_s / min(cores_given, max(1.0, piece.parallelism)) for piece in left)


def cores_within(pieces: Sequence[Piece], time_s: float) -> float:
    """Least c with Σ w/min(c, p) ≤ ``time_s``; infinite when no number of cores suffices.

    Pieces that cannot use c take w/p whatever the share; the others share what time that leaves. Taken in
    order of parallelism, the first candidate that the next piece can use is the answer.
    """
    left = sorted((piece for piece in pieces if piece.work_core_s > 0), key=lambda piece: piece.parallelism)
    work = sum(piece.work_core_s for piece in left)
    for piece in left:
        if time_s <= 0:
            return inf
        candidate = work / time_s
        parallelism = max(1.0, piece.parallelism)
        if candidate <= parallelism:
            return candidate
        work -= piece.work_core_s
        time_s -= piece.work_core_s / parallelism
    return inf if left else 0.0


def stage_deadline_s(
    *,
    deadline_s: float,
    elapsed_s: float,
    stages_left: int,
    duration_left_s: float,
    stage_duration_s: float,
    alpha: float = 0.95,
    beta: float = 0.33,
) -> float:
    """Seconds a stage may take, after Baresi et al., dynaSpark (IEEE TSE 2019)::

        D_s = (α·D − t) / (w + 1)        w = β·stages_left + (1 − β)·(duration_left / stage_duration − 1)

    Args:
        deadline_s: D, from the start of the job.
        elapsed_s: t.
        stages_left: stages after this one.
        duration_left_s: profiled duration of this and all later stages.
        stage_duration_s: profiled duration of this stage.
        alpha: part of the deadline to aim at.
        beta: weight of the count of stages against their durations.
    """
    ratio = duration_left_s / stage_duration_s - 1 if stage_duration_s > 0 else 0.0
    weight = beta * stages_left + (1 - beta) * max(0.0, ratio)
    return (alpha * deadline_s - elapsed_s) / (weight + 1)
