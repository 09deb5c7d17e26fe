"""The one periodic loop: observe → decide → act.

Every controller of this package runs in it. A step that raises is reported and skipped, never the end
of the loop; a step that comes late is counted, and missed periods are dropped rather than caught up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from airflow_mlscale.runtime import clock as clocks

log = logging.getLogger(__name__)

SeenT = TypeVar("SeenT")
PlanT = TypeVar("PlanT")
StateT = TypeVar("StateT")


SeenT_co = TypeVar("SeenT_co", covariant=True)
PlanT_contra = TypeVar("PlanT_contra", contravariant=True)


class Plant(Protocol[SeenT_co, PlanT_contra]):
    """What is controlled: measured by `observe`, moved by `act`."""

    async def observe(self) -> SeenT_co: ...

    async def act(self, plan: PlanT_contra) -> None: ...


@dataclass
class Health:
    """How the loop itself fares."""

    steps: int = 0
    failures: int = 0
    late: int = 0
    """Steps that began more than half a period late."""
    missed: int = 0
    """Periods that passed without a step because the step before took so long."""
    worst_lateness_s: float = 0.0
    last_error: str | None = None
    """Of the last step that failed."""


class PeriodicLoop(Generic[SeenT, PlanT, StateT]):
    """Runs ``decide`` on a plant every ``period_s`` until told to stop."""

    def __init__(
        self,
        plant: Plant[SeenT, PlanT],
        decide: Callable[[SeenT, StateT, float], tuple[PlanT, StateT]],
        state: StateT,
        *,
        period_s: float,
        clock: clocks.Clock | None = None,
        name: str = "control loop",
    ) -> None:
        if period_s <= 0:
            raise ValueError(f"period_s={period_s} must be > 0")
        self.plant = plant
        self.decide = decide
        self.state = state
        self.period_s = period_s
        self.clock = clock or clocks.SystemClock()
        self.name = name
        self.health = Health()
        self._last_step: float | None = None
        self._failing: str | None = None
        """The error that is being reported, until a step succeeds."""

    async def step(self) -> None:
        """One turn; exceptions of any of the three parts are logged and counted.

        The state moves on only when all three have succeeded.
        """
        started = self.clock.monotonic()
        dt_s = self.period_s if self._last_step is None else started - self._last_step
        self._last_step = started
        self.health.steps += 1
        try:
            seen = await self.plant.observe()
            plan, state = self.decide(seen, self.state, dt_s)
            await self.plant.act(plan)
            self.state = state
        except Exception as exc:  # one bad step must not end control: the next one sees fresh data
            self._report(exc)
        else:
            if self._failing is not None:
                log.info("%s: works again", self.name)
                self._failing = None

    def _report(self, exc: Exception) -> None:
        message = f"{type(exc).__name__}: {exc}"
        repeated = message == self._failing
        self._failing = message
        self.health.failures += 1
        self.health.last_error = str(exc)
        level = logging.DEBUG if repeated else logging.WARNING
        log.log(level, "%s: step failed: %s", self.name, exc, exc_info=None if repeated else exc)

    async def run(self, stop: asyncio.Event) -> None:
        """Step every period until ``stop`` is set; returns within one step of it."""
        due = self.clock.monotonic()
        while not stop.is_set():
            lateness = self.clock.monotonic() - due
            if lateness > self.period_s / 2:
                self.health.late += 1
                self.health.worst_lateness_s = max(self.health.worst_lateness_s, lateness)
            await self.step()
            missed = max(0, int((self.clock.monotonic() - due) // self.period_s))
            self.health.missed += missed
            due += self.period_s * (1 + missed)
            await _sleep_unless(stop, max(0.0, due - self.clock.monotonic()), self.clock)


async def _sleep_unless(stop: asyncio.Event, seconds: float, clock: clocks.Clock) -> None:
    waits = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(clock.sleep(seconds))]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
