"""Lends cores that nobody is guaranteed to models whose lines would miss deadlines, many times a second.

What is lent is `laws.boosts`' choice; the shares below the loans are the `controller`'s, once a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from math import inf

from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import controller, laws, policy, settings
from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.runtime import loop

log = logging.getLogger(__name__)

Seen = tuple[laws.LineSeen, ...]
Loans = Mapping[str, laws.Boost]


class LendingPlant:
    """The lines of the models, and the ceilings above their bases."""

    def __init__(self, plant: controller.ServingPlant, port: cpu.CpuPort) -> None:
        self._plant = plant
        self._port = port
        self._told: set[str] = set()

    async def observe(self) -> Seen:
        now = time.monotonic()
        return tuple(
            line_seen(replica, step, now, self._port.host_cores)
            for replica, step in self._plant.controlled()
            if step.share.ceiling_cores is not None
        )

    async def act(self, loans: Loans) -> None:
        for replica, step in self._plant.controlled():
            cores = loans[replica.group].cores if replica.group in loans else 0.0
            if abs(cores - self._plant.loans.get(replica.group, 0.0)) <= 1e-9:
                continue  # each write of a quota refills its bucket
            self._plant.loans[replica.group] = cores
            try:
                await self._plant.write(replica, step)
            except Exception as exc:  # the other models' loans must still move; the slow loop reports it
                if replica.group not in self._told:
                    log.warning("%s: loan not applied: %s", step.seen.name, exc)
                self._told.add(replica.group)
            else:
                self._told.discard(replica.group)


def line_seen(replica: replicas.Replica, step: policy.SetShare, now: float, host_cores: float) -> laws.LineSeen:
    """What a loan is decided from."""
    return laws.LineSeen(
        group=replica.group,
        base_cores=step.share.guaranteed_cores,
        most_cores=min(host_cores, replica.spec.max_cores or inf),
        objective_s=replica.spec.objective.seconds,
        left_s=[deadline - now for deadline in replica.deadlines()],
        executions=replica.executions,
        cpu_s_per_request=step.seen.cpu_s_per_request,
    )


def lending_loop(
    plant: LendingPlant, *, host_cores: float, control: settings.ControlSettings
) -> loop.PeriodicLoop[Seen, Loans, Loans]:
    """The fast loop over all lines."""

    def decide(seen: Seen, loans: Loans, dt_s: float) -> tuple[Loans, Loans]:
        now = laws.boosts(seen, loans, dt_s=dt_s, host_cores=host_cores, control=control)
        return now, now

    nothing: Loans = {}
    return loop.PeriodicLoop(plant, decide, nothing, period_s=control.boost_period_s, name="ROMA core lending")


async def run(
    plant: LendingPlant, *, control: settings.ControlSettings, host_cores: float, stop: asyncio.Event
) -> None:
    """Lend until told to stop; returns at once where there are no ceilings to raise."""
    if control.mode == "reserve" and control.boost and control.law == "base":
        await lending_loop(plant, host_cores=host_cores, control=control).run(stop)
