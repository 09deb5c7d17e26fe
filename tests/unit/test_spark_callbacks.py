"""Who is called back when the outlook of a run changes, and from where; without Spark."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from airflow.sdk import AsyncCallback, BaseNotifier, SyncCallback

from airflow_mlscale import errors
from airflow_mlscale.hooks import callbacks
from airflow_mlscale.hooks.callbacks import Callee, Herald
from airflow_mlscale.operators import onlookers
from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator
from airflow_mlscale.runtime.journal import Journal
from airflow_mlscale.spark import changes
from airflow_mlscale.triggers.spark import DeadlineSparkTrigger
from tests.fakes import federated_task
from tests.fakes.spark_records import record

HEARD: list[dict[str, Any]] = []


@pytest.fixture(autouse=True)
def nothing_heard() -> None:
    HEARD.clear()


def heard(context: dict[str, Any]) -> None:
    """Found by its import path."""
    HEARD.append(context)


async def heard_later(context: dict[str, Any], by: str = "nobody") -> None:
    HEARD.append({**context, "by": by})


def counted(by: str) -> None:
    HEARD.append({"by": by})


class Notifier(BaseNotifier):
    template_fields = ("message",)

    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self.message = "{{ outlook }} after {{ previous }}, due {{ deadline.isoformat() }}"
        self.told = told

    def notify(self, context: Any) -> None:
        self.told.append(self.message)


class Loud(BaseNotifier):
    """Made where it is needed; can be awaited only."""

    template_fields = ("room",)

    def __init__(self, *, room: str) -> None:
        super().__init__()
        self.room = room

    async def async_notify(self, context: Any) -> None:
        HEARD.append({**context, "by": self.room})


def records(*outlooks: str) -> list[Any]:
    """A run whose outlook is each of these for ten seconds."""
    return [record(t, outlook=outlooks[t // 10], finish_s=90, deadline_s=100) for t in range(10 * len(outlooks))]


def follow(given: Any, *outlooks: str) -> None:
    """Such a run, in its task."""
    journal = Journal()
    with onlookers.looking_on(journal, federated_task.context("task"), callbacks.checked(given)):
        for one in records(*outlooks):
            journal.append(one)


def path(name: str) -> str:
    return f"{__name__}.{name}"


def test_callbacks_hear_of_each_change_with_the_context_and_the_numbers() -> None:
    calls: list[dict[str, Any]] = []
    follow(calls.append, "on_track", "at_risk", "will_miss")
    assert [(call["previous"], call["outlook"]) for call in calls] == [
        ("on_track", "at_risk"),
        ("at_risk", "will_miss"),
    ]
    first = calls[0]
    assert first["ti"].task_id == first["task_id"] == "task"
    assert first["predicted_finish"] == datetime.fromtimestamp(1090, UTC)
    assert first["interval"] == (datetime.fromtimestamp(1080, UTC), datetime.fromtimestamp(1100, UTC))
    assert first["deadline"] == datetime.fromtimestamp(1100, UTC)


def test_several_callbacks_a_notifier_and_an_import_path_may_be_given() -> None:
    told: list[str] = []
    follow([Notifier(told), path("heard")], "at_risk", "will_miss")
    due = "due 1970-01-01T00:18:20+00:00"
    assert told == [f"at_risk after None, {due}", f"will_miss after at_risk, {due}"]
    assert [context["outlook"] for context in HEARD] == ["at_risk", "will_miss"]


def test_airflows_own_callbacks_and_asynchronous_functions_may_be_given() -> None:
    given = [
        heard_later,
        path("heard_later"),
        AsyncCallback(heard_later, {"by": "awaited"}),
        SyncCallback(path("counted"), {"by": "without context"}),
        AsyncCallback(Loud, {"room": "{{ outlook }} of {{ task_id }}"}),
    ]
    follow(given, "at_risk")
    assert [context["by"] for context in HEARD] == [
        "nobody",
        "nobody",
        "awaited",
        "without context",
        "at_risk of task",
    ]
    assert HEARD[2]["outlook"] == "at_risk"


def test_a_callback_that_raises_is_logged_and_the_next_one_is_called(caplog: pytest.LogCaptureFixture) -> None:
    def bad(context: Any) -> None:
        context["outlook"] = "spoilt"  # each has a copy of its own
        raise RuntimeError("nobody home")

    calls: list[dict[str, Any]] = []
    follow([bad, "no.such.module.function", calls.append], "at_risk")
    assert [call["outlook"] for call in calls] == ["at_risk"]
    assert "nobody home" in caplog.text
    assert "no.such.module.function failed" in caplog.text


@pytest.mark.parametrize("given", [3, "notapath", "a..b", [print, None]])
def test_what_cannot_be_called_breaks_the_dag_at_once(given: Any) -> None:
    with pytest.raises(
        errors.InvalidInputError, match=r"on_outlook_change=.*must be a function that takes the context"
    ):
        DeadlineSparkSubmitOperator(task_id="t", application="/job.py", deadline="PT1H", on_outlook_change=given)


def test_arguments_that_cannot_travel_break_the_dag_at_once_and_are_not_shown() -> None:
    given = SyncCallback(path("counted"), {"token": "hush", "by": datetime.now(UTC)})
    with pytest.raises(errors.InvalidInputError, match="counted': its kwargs must be plain values") as refused:
        DeadlineSparkSubmitOperator(task_id="t", application="/job.py", deadline="PT1H", on_outlook_change=given)
    assert "hush" not in str(refused.value)


@pytest.fixture
def dag_file(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A DAG file as Airflow loads it: under a name that means nothing in other processes."""
    name = "unusual_prefix_0123_the_dag"
    module = ModuleType(name)
    exec("def page(context): pass", module.__dict__)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_what_a_triggerer_can_import_travels_and_a_warning_names_the_rest(
    dag_file: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    def inner(context: Any) -> None: ...

    there = [heard, "a.b", AsyncCallback("c.d", {"rooms": ("x",)}), SyncCallback("e.f")]
    rows = callbacks.travelling(there)
    assert caplog.text == ""
    assert rows == [
        {"path": path("heard"), "kwargs": None},
        {"path": "a.b", "kwargs": None},
        {"path": "c.d", "kwargs": {"rooms": ["x"]}},
        {"path": "e.f", "kwargs": {}},
    ]
    assert json.loads(json.dumps(rows)) == rows

    assert callbacks.travelling([dag_file.page, heard, inner, Notifier([]), partial(inner, token="hush")]) == rows[:1]
    (warning,) = caplog.messages
    for name in ("page", "inner", "Notifier", "partial"):
        assert name in warning
    assert "hush" not in warning
    assert "give its import path to hear of a change at once" in warning


def test_the_trigger_carries_them_through_airflows_serialisation() -> None:
    from airflow.sdk.serde import deserialize, serialize

    rows = callbacks.travelling([heard, AsyncCallback("c.d", {"rooms": ["x"], "loud": True})])
    trigger = DeadlineSparkTrigger(conn_id="c", submission={"run": "r"}, on_outlook_change=rows)
    _, arguments = trigger.serialize()
    again = DeadlineSparkTrigger(**deserialize(serialize(arguments)))
    assert again.on_outlook_change == rows
    assert again.serialize() == trigger.serialize()


def found(*outlooks: str) -> list[changes.Change]:
    return changes.News(records(*outlooks)).found


def test_a_herald_keeps_account_of_whom_it_told(caplog: pytest.LogCaptureFixture) -> None:
    identity = callbacks.identity(federated_task.TaskInstance("task", map_index=3))
    herald = Herald(
        [Callee(path=path("heard")), Callee(path="no.such.page"), Callee(path=path("counted"), kwargs={"by": "me"})],
        identity,
    )
    first, second = found("at_risk", "will_miss")
    herald(first)
    assert [(context.get("outlook"), context.get("map_index")) for context in HEARD] == [("at_risk", 3), (None, None)]
    assert HEARD[0]["run_id"] == identity["ti"].run_id
    assert "the triggerer cannot import no.such.page" in caplog.text
    assert herald.account() == [(path("heard"), 1), ("no.such.page", 0), (path("counted"), 1)]
    herald(second)  # too late: the task tells it
    assert len(HEARD) == 2


def test_the_task_tells_what_nobody_was_told_and_no_more() -> None:
    calls: list[dict[str, Any]] = []
    news = found("at_risk", "will_miss", "on_track")
    given = (path("heard"), calls.append, path("heard_later"), SyncCallback(path("counted"), {"by": "sync"}))
    account = [(path("heard"), 2), (path("heard_later"), 3), (path("counted"), 0)]
    event = {"outlooks": {"changes": [changes.to_row(change) for change in news], "heard": account}}
    onlookers.told_afterwards(json.loads(json.dumps(event)), federated_task.context("task"), given)
    assert [call["outlook"] for call in calls] == ["at_risk", "will_miss", "on_track"]
    assert [context.get("outlook", context.get("by")) for context in HEARD] == ["sync", "sync", "on_track", "sync"]


def test_a_trigger_that_had_to_give_up_leaves_nothing_to_tell() -> None:
    onlookers.told_afterwards({"state": "error"}, federated_task.context("task"), (heard,))
    assert HEARD == []


def test_callbacks_that_were_changed_while_the_task_was_away_are_told_everything() -> None:
    account = [["a.old_one", 2], ["b.kept", 2]]
    assert list(callbacks.unheard(("a.new_one", "b.kept"), account)) == [("a.new_one", 0), ("b.kept", 0)]
    assert list(callbacks.unheard(("a.old_one", "b.kept"), account)) == [("a.old_one", 2), ("b.kept", 2)]
