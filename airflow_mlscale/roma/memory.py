"""Keeps model workers within their memory: measures them once a second, and has one that grew too large renewed.

Too large and still alive, it serves until a fresh one is warm; beyond a hard bound it is ended at once. How a worker is
replaced is `supervision`'s choice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum

import psutil

from airflow_mlscale.roma import fleet, settings
from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.runtime import journal, loop

MIB = 2**20
HOST_PART = 0.5
"""Of the host's memory for one worker, where nothing else is said."""


class Step(StrEnum):
    """What to do about a worker."""

    RENEW = "renew"
    END = "end"


@dataclass(frozen=True, kw_only=True)
class Look:
    """One worker that is too large."""

    name: str
    replica: replicas.Replica
    resident_mb: float
    limit_mb: float
    step: Step

    @property
    def why(self) -> str:
        beyond = "far above" if self.step is Step.END else "above"
        return f"it holds {self.resident_mb:.0f} MiB of memory, {beyond} max_memory_mb={self.limit_mb:.0f}"


def resident_bytes(replica: replicas.Replica) -> int:
    """Of its worker; 0 without one."""
    worker = replica.supervisor.worker
    return worker.memory_bytes() if worker else 0


def choose(resident_mb: float, limit_mb: float, *, hard_factor: float) -> Step | None:
    """What to do about a worker of this size; None for nothing."""
    if resident_mb > hard_factor * limit_mb:
        return Step.END
    return Step.RENEW if resident_mb > limit_mb else None


class MemoryPlant:
    """The workers of a fleet."""

    def __init__(self, models: fleet.Fleet, config: settings.WorkerSettings, book: journal.Journal) -> None:
        self._models = models
        self._book = book
        self._hard_factor = config.memory_hard_factor
        self._default_mb = config.max_memory_mb or HOST_PART * psutil.virtual_memory().total / MIB

    async def observe(self) -> tuple[Look, ...]:
        return tuple(
            seen
            for one in self._models
            for replica in (one.active, one.trial)
            if replica and (seen := self._look(one.name, replica))
        )

    async def act(self, plan: tuple[Look, ...]) -> None:
        for look in plan:
            supervisor = look.replica.supervisor
            begun = supervisor.kill(look.why) if look.step is Step.END else supervisor.renew(look.why)
            if begun:
                self._book.append(_record(look))

    def _look(self, name: str, replica: replicas.Replica) -> Look | None:
        limit_mb = replica.spec.max_memory_mb or self._default_mb
        resident_mb = resident_bytes(replica) / MIB
        step = choose(resident_mb, limit_mb, hard_factor=self._hard_factor)
        if step is None:
            return None
        return Look(name=name, replica=replica, resident_mb=resident_mb, limit_mb=limit_mb, step=step)


def decide(seen: tuple[Look, ...], memory: None, dt_s: float) -> tuple[tuple[Look, ...], None]:
    """All that was seen is acted upon: each look stands for itself."""
    return seen, None


def memory_loop(
    plant: MemoryPlant, config: settings.WorkerSettings
) -> loop.PeriodicLoop[tuple[Look, ...], tuple[Look, ...], None]:
    """The loop over all workers."""
    return loop.PeriodicLoop(plant, decide, None, period_s=config.memory_period_s, name="ROMA memory")


def _record(look: Look) -> journal.Record:
    return journal.Record(
        at=time.time(),
        subject=look.name,
        seen={"resident_mb": round(look.resident_mb, 1), "max_memory_mb": round(look.limit_mb, 1)},
        decided={"worker": str(look.step), "version": look.replica.spec.version},
        reason=look.why,
    )
