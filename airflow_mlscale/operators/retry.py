"""Whether another try can still keep the promise, and how soon it should begin."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import RetryDecision, RetryPolicy

from airflow_mlscale import errors

SHORTEST_DELAY_S = 1.0
PART_OF_SLACK = 0.1
"""Waiting may use up so much of the time that a retry would have to spare."""


class DeadlineRetryPolicy(RetryPolicy):
    """Gives up when the time left cannot suffice, retries soon otherwise.

    The retry policy of `DeadlineSparkSubmitOperator` where none is given. What a retry needs is what the
    profile says of a run at the full share; without a profile only a deadline that has passed ends the
    tries. It never gives up with ``on_infeasible="best_effort"``, where late is better than never, nor
    while an application in the cluster may still run, which the next try takes up. The task's ``retries``
    and ``retry_delay`` are upper limits.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Any | None = None
    ) -> RetryDecision:
        """Airflow calls this in the task's process when a try has failed."""
        task: Any = context.get("task") if context else None
        chance = task.chance(context) if hasattr(task, "chance") else None
        if chance is None or try_number > max_tries:
            return RetryDecision.default()
        slack_s = chance.left_s - chance.needed_s
        if slack_s < 0 and task.settings.on_infeasible == "fail" and not chance.runs_on:
            why = f"another try needs about {chance.needed_s:.0f} s, {chance.left_s:.0f} s are left to the deadline"
            if chance.left_s <= 0:
                why = f"the deadline passed {-chance.left_s:.0f} s ago"
            return RetryDecision.fail(f"{why}; set on_infeasible='best_effort' to try all the same")
        wished_s = exception.retry_after_s if isinstance(exception, errors.TransientError) else SHORTEST_DELAY_S
        delay_s = min(max(SHORTEST_DELAY_S, wished_s, PART_OF_SLACK * slack_s), task.retry_delay.total_seconds())
        return RetryDecision.retry(
            timedelta(seconds=delay_s),
            f"{chance.left_s:.0f} s are left to the deadline, {chance.needed_s:.0f} s needed",
        )

    def serialize(self) -> dict[str, Any]:
        return {"__type": type(self).__name__}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> DeadlineRetryPolicy:
        return cls()
