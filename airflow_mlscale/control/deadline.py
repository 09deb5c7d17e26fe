"""From a deadline to the time that one stage may take."""

from __future__ import annotations


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
