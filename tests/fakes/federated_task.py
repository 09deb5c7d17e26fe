"""What the operator and the sensor need of a running task: a context and its state store."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass
class StateStore:
    """The task state store: remembers what was set, tells who waits for a key."""

    values: dict[str, Any] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def set(self, key: str, value: Any) -> None:
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()


@dataclass
class TaskInstance:
    """One task instance; a retry is the same object again."""

    task_id: str
    dag_id: str = "a_dag"
    run_id: str = "manual__2026-01-01T00:00:00+00:00"
    map_index: int = -1
    max_tries: int = 0
    start_date: datetime = field(default_factory=lambda: datetime.now(UTC))
    pushed: dict[str, Any] = field(default_factory=dict)

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def context(task_id: str) -> dict[str, Any]:
    """A context for one task instance."""
    ti = TaskInstance(task_id)
    return {"ti": ti, "task_instance": ti, "task_state_store": StateStore()}
