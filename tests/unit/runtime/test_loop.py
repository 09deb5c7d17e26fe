"""The periodic loop, with a clock that jumps."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from airflow_mlscale.runtime import clock as clocks
from airflow_mlscale.runtime import loop
from tests.fakes import clock as fake_clock


class Counter:
    """A plant whose measurement counts up; each part may fail, take time, or end the loop."""

    def __init__(self, clock: fake_clock.FakeClock) -> None:
        self.clock = clock
        self.stop = asyncio.Event()
        self.seen = 0
        self.acted: list[tuple[int, float]] = []
        self.before: dict[str, Callable[[int], None]] = {}
        self.last = 10

    async def observe(self) -> int:
        self.seen += 1
        if self.seen >= self.last:
            self.stop.set()
        self._do("observe")
        return self.seen

    def decide(self, seen: int, state: list[int], dt_s: float) -> tuple[tuple[int, float], list[int]]:
        self._do("decide")
        return (seen, dt_s), [*state, seen]

    async def act(self, plan: tuple[int, float]) -> None:
        self._do("act")
        self.acted.append(plan)

    def _do(self, part: str) -> None:
        if part in self.before:
            self.before[part](self.seen)


def looped(plant: Counter, period_s: float = 1.0) -> loop.PeriodicLoop[int, tuple[int, float], list[int]]:
    return loop.PeriodicLoop(plant, plant.decide, [], period_s=period_s, clock=plant.clock, name="test loop")


@pytest.fixture
async def plant() -> Counter:
    return Counter(fake_clock.FakeClock())


async def test_it_steps_every_period(plant: Counter) -> None:
    running = looped(plant, period_s=0.5)
    await running.run(plant.stop)
    assert plant.acted == [(number, 0.5) for number in range(1, 11)]
    assert running.state == list(range(1, 11))
    assert running.health == loop.Health(steps=10)
    assert plant.clock.slept[:9] == [0.5] * 9


@pytest.mark.parametrize("part", ["observe", "decide", "act"])
async def test_it_survives_an_exception_in_any_part(
    plant: Counter, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(number: int) -> None:
        if number in (3, 4):
            raise OSError("no luck")

    plant.before[part] = fail
    running = looped(plant)
    with caplog.at_level(logging.DEBUG):
        await running.run(plant.stop)
    assert [number for number, _ in plant.acted] == [1, 2, 5, 6, 7, 8, 9, 10]
    assert running.state == [1, 2, 5, 6, 7, 8, 9, 10]  # a step that failed leaves no trace
    assert (running.health.steps, running.health.failures, running.health.last_error) == (10, 2, "no luck")
    # said once, not twice, and then that it is over
    told = [(record.levelname, record.getMessage()) for record in caplog.records if record.name == loop.__name__]
    assert told == [
        ("WARNING", "test loop: step failed: no luck"),
        ("DEBUG", "test loop: step failed: no luck"),
        ("INFO", "test loop: works again"),
    ]


async def test_the_same_error_after_a_recovery_is_told_again(plant: Counter, caplog: pytest.LogCaptureFixture) -> None:
    def fail(number: int) -> None:
        if number % 2:
            raise OSError("no luck")

    plant.before["act"] = fail
    with caplog.at_level(logging.WARNING):
        await looped(plant).run(plant.stop)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 5


async def test_cancelling_ends_it_in_the_middle_of_a_step(plant: Counter) -> None:
    def cancel(number: int) -> None:
        raise asyncio.CancelledError

    plant.before["observe"] = cancel
    with pytest.raises(asyncio.CancelledError):
        await looped(plant).run(plant.stop)
    assert plant.seen == 1


async def test_missed_periods_are_dropped_and_counted(plant: Counter) -> None:
    plant.before["act"] = lambda number: plant.clock.advance(2.5) if number == 2 else None
    plant.last = 4
    running = looped(plant)
    await running.run(plant.stop)
    # steps at 0 and 1; the second ends at 3.5, so those due at 2 and 3 are dropped, and it goes on at 4 and 5
    assert [dt_s for _, dt_s in plant.acted] == [1.0, 1.0, 3.0, 1.0]
    assert (running.health.missed, running.health.late) == (2, 0)


async def test_late_steps_are_counted(plant: Counter) -> None:
    class LateClock(fake_clock.FakeClock):
        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds + (0.7 if len(self.slept) == 2 else 0.0))

    plant.clock = LateClock()
    running = looped(plant)
    await running.run(plant.stop)
    assert running.health.late == 1  # 0.7 of a period, more than half of it
    assert running.health.worst_lateness_s == pytest.approx(0.7)


async def test_a_loop_that_was_stopped_takes_no_step(plant: Counter) -> None:
    plant.stop.set()
    await looped(plant).run(plant.stop)
    assert plant.seen == 0


async def test_stopping_does_not_wait_for_the_period(plant: Counter) -> None:
    running = loop.PeriodicLoop(plant, plant.decide, [], period_s=3600.0, clock=clocks.SystemClock())
    task = asyncio.create_task(running.run(plant.stop))
    while not plant.acted:
        await asyncio.sleep(0)
    plant.stop.set()
    await asyncio.wait_for(task, timeout=60)
    assert plant.seen == 1


async def test_a_period_must_be_positive(plant: Counter) -> None:
    with pytest.raises(ValueError, match="period_s=0"):
        looped(plant, period_s=0)
