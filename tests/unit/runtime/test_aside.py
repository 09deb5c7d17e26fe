"""Listeners in threads of their own."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest

from airflow_mlscale.runtime.aside import Aside
from airflow_mlscale.runtime.journal import Journal, Record
from tests.fakes.spark_records import record


def test_everything_is_told_in_order_before_it_ends() -> None:
    told: list[float] = []
    journal = Journal()
    with Aside(lambda seen: told.append(seen.at), "test") as aside:
        journal.listen(aside)
        for t in range(100):
            journal.append(record(t))
    assert told == [1000.0 + t for t in range(100)]


def test_who_appends_does_not_wait_for_a_listener_that_is_busy() -> None:
    go_on, told = threading.Event(), []

    def busy(seen: Record) -> None:
        go_on.wait(10)
        told.append(seen)

    with Aside(busy, "busy") as aside:
        aside(record(0))
        aside(record(1))
        assert told == []  # we are here, and it has not even begun
        go_on.set()
    assert len(told) == 2


def test_a_listener_that_raises_is_reported_and_hears_the_next(caplog: pytest.LogCaptureFixture) -> None:
    told = []

    def picky(seen: Record) -> None:
        if seen.at == 1000:
            raise RuntimeError("not this one")
        told.append(seen.at)

    with Aside(picky, "the picky listener") as aside:
        aside(record(0))
        aside(record(1))
    assert told == [1001.0]
    assert "the picky listener failed" in caplog.text
    assert "not this one" in caplog.text


def test_one_that_hangs_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    never = threading.Event()
    with Aside(lambda _: never.wait(60) and None, "the sleeper", patience_s=0.05) as aside:
        aside(record(0))
    assert "the sleeper was still busy" in caplog.text
    never.set()


async def test_the_event_loop_goes_on_while_a_listener_is_waited_for() -> None:
    go_on, told = threading.Event(), []

    def busy(number: int) -> None:
        if go_on.wait(30):
            told.append(number)

    async with Aside(busy, "busy") as aside:
        aside(1)
        asyncio.get_running_loop().call_soon(go_on.set)  # while this is left, or never
    assert told == [1]


async def test_who_is_cancelled_waits_for_nobody() -> None:
    never, begun = threading.Event(), asyncio.Event()

    async def follow() -> None:
        async with Aside(lambda _: never.wait(300) and None, "the sleeper", patience_s=300) as aside:
            aside(1)
            begun.set()
            await asyncio.Event().wait()

    following = asyncio.create_task(follow())
    await begun.wait()
    following.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(following, 60)
    finally:
        never.set()


def test_a_listener_is_in_the_context_of_who_made_it() -> None:
    task: contextvars.ContextVar[str] = contextvars.ContextVar("task")
    task.set("mine")
    told: list[str] = []
    with Aside(lambda _: told.append(task.get("nobody's")), "test") as aside:
        aside(1)
    assert told == ["mine"]
