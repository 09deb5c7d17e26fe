"""Functions that run in Spark drivers by the DAG run's deadline."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, DeadlineAlert, DeadlineReference, SyncCallback, task

STEPS = 40


def grind(value: int) -> int:
    """Travels to the driver with the function that uses it, and on to Python workers."""
    return sum((value * step) % 7 for step in range(STEPS))


# A minute before the moment of $DEADLINE_AT; Airflow's own callback is of no matter here.
alert = DeadlineAlert(
    reference=DeadlineReference.FIXED_DATETIME(datetime.fromisoformat(os.environ["DEADLINE_AT"])),
    interval=timedelta(minutes=-1),
    callback=SyncCallback("airflow.sdk.timezone.utcnow"),
)

with DAG("by_deadline", deadline=alert):

    @task
    def rows() -> int:
        return 200

    @task.deadline_pyspark(deadline="dag")
    def good(spark: Any, count: int, *, sc: Any, run_id: str, factor: int = 2) -> dict[str, Any]:
        total = sc.parallelize(range(count), 2).map(grind).sum()
        return {"total": total * factor, "rows": spark.range(count).count(), "run_id": run_id}

    @task.deadline_pyspark(deadline="dag")
    def bad(spark: Any) -> None:
        raise LookupError(f"no table in {spark.range(3).count()} rows")

    good(rows(), factor=3) >> bad()
