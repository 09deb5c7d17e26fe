"""Runs one `DeadlineSparkSubmitOperator` as a task process would: ``spark_task.py ARGUMENTS_JSON RESULT_FILE``."""

from __future__ import annotations

import json
import signal
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator


class Store(dict[str, object]):
    """The part of Airflow's task state store that operators use."""

    def set(self, key: str, value: object) -> None:
        self[key] = json.loads(json.dumps(value))

    def delete(self, key: str) -> None:
        self.pop(key, None)


def context(store: Store | None = None, **task_instance: object) -> dict[str, object]:
    """The part of a task's context that the operator uses."""
    pushed: dict[str, object] = {}
    fields = {
        "dag_id": "dag",
        "task_id": "task",
        "start_date": datetime.now(UTC),
        "max_tries": 0,
        "pushed": pushed,
        "xcom_push": lambda key, value: pushed.update({key: value}),
        **task_instance,
    }
    return {"ti": SimpleNamespace(**fields), "task_state_store": Store() if store is None else store}


def main(arguments: dict[str, object], result: Path) -> None:
    arguments["deadline"] = timedelta(seconds=float(str(arguments["deadline"])))
    operator = DeadlineSparkSubmitOperator(task_id="task", **arguments)
    signal.signal(signal.SIGTERM, lambda *_: operator.on_kill())  # as Airflow's task runner does
    result.write_text(json.dumps(operator.execute(context())))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), Path(sys.argv[2]))
