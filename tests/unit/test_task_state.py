"""The journal in Airflow's task state store."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_mlscale.operators.task_state import JOURNAL_KEY, SUMMARY_KEY, TaskStateJournal
from airflow_mlscale.runtime.journal import Record


class Store(dict[str, Any]):
    def set(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))  # what the real one does to a value


def records(count: int) -> list[Record]:
    return [
        Record(at=float(n), subject="job", seen={"n": n}, decided={"cores": 1.0}, reason="because")
        for n in range(count)
    ]


def test_both_keys_are_written() -> None:
    store = Store()
    TaskStateJournal(store).publish(records(2), {"met": True})
    assert [point["at"] for point in store[JOURNAL_KEY]] == [0.0, 1.0]
    assert store[SUMMARY_KEY] == {"met": True}


def test_it_writes_no_more_often_than_told_except_at_the_end() -> None:
    store = Store()
    journal = TaskStateJournal(store, every_s=3600)
    journal.publish(records(1), {"n": 1})
    journal.publish(records(2), {"n": 2})
    assert store[SUMMARY_KEY] == {"n": 1}
    journal.publish(records(3), {"n": 3}, now=True)
    assert store[SUMMARY_KEY] == {"n": 3}


def test_a_long_run_fits() -> None:
    store = Store()
    TaskStateJournal(store).publish(records(20_000), {})
    assert len(store[JOURNAL_KEY]) <= 500
    assert len(json.dumps(store[JOURNAL_KEY])) < 65_535
    assert store[JOURNAL_KEY][-1]["at"] == 19_999.0


def test_a_store_that_fails_does_not_fail_the_task(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def set(self, key: str, value: Any) -> None:
            raise ConnectionError("api-server away")

    TaskStateJournal(Broken()).publish(records(1), {})
    assert "api-server away" in caplog.text


def test_outside_a_task_nothing_is_published() -> None:
    TaskStateJournal(None).publish(records(1), {})
