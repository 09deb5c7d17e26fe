"""What is on each GPU: its executor, the models that have a seat there or are being loaded, what is known of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import devices, model, placement, ports, seats, settings
from airflow_mlscale.roma import replica as replicas


@dataclass
class Known:
    """What is known of one replica's life on GPUs."""

    need_bytes: int = 0
    measured: bool = False
    gpu_s: float | None = None
    used_at: float = -inf
    """When requests were last seen."""
    barred_until: float = -inf
    failures: int = 0
    """Loads that failed, in a row."""
    note: str = ""
    """Why it has no seat, as far as it was tried."""


@dataclass(eq=False)
class Resident:
    """One replica on one GPU: being loaded until it has a seat."""

    name: str
    replica: replicas.Replica
    known: Known
    seat: seats.Seat | None = None
    closing: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        return "closing" if self.closing else "ready" if self.seat else "loading"

    def as_json(self) -> dict[str, Any]:
        """For the model's status."""
        seat = self.seat
        means = seat.beside.times.means if seat else {}
        return {
            "state": self.state,
            "reserved_bytes": self.known.need_bytes,
            "measured": self.known.measured,
            "executed": seat.post.executed if seat else 0,
            "executing": len(seat.post) if seat else 0,
            "service_ms": {str(size): round(1000 * s, 3) for size, s in sorted(means.items())},
            "note": self.known.note or None,
        }


@dataclass(eq=False)
class Host:
    """One GPU with its executor."""

    gpu: devices.Gpu
    lane: seats.Lane
    group: str
    """CPU group of its executor."""
    reading: devices.Reading
    executor: ports.ExecutorPort | None = None
    residents: dict[str, Resident] = field(default_factory=dict)
    """By group."""
    fault: str | None = None
    """Why it is not used."""
    deaths: int = 0
    """Of executors, in a row."""
    back_at: float = -inf
    """When the next executor may be started."""
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One load at a time: else nobody could tell whose memory it is."""

    def promised_bytes(self, control: settings.GpuSettings) -> int:
        """Memory that its models and its executor may take."""
        needs = sum(one.known.need_bytes for one in self.residents.values())
        return needs + (control.context_bytes if self.executor or self.residents else 0)

    def seen(self, control: settings.GpuSettings) -> placement.GpuSeen:
        """What leaves room on it."""
        return placement.GpuSeen(
            uuid=self.gpu.uuid,
            total_bytes=self.gpu.total_bytes,
            used_bytes=self.reading.used_bytes,
            own_bytes=self._own_bytes(control),
        )

    def as_json(self, device: devices.Device, control: settings.GpuSettings, *, ours: bool) -> dict[str, Any]:
        """For people and programs; ``ours``: whether this daemon may use it yet, or still."""
        gpu = self.gpu
        waits = not ours or self.back_at > time.monotonic()
        return {
            "uuid": gpu.uuid,
            "name": gpu.name,
            "device": device,
            "kind": gpu.kind,
            "parent": gpu.parent,
            "mps": gpu.mps,
            "compute_mode": gpu.sharing,
            "state": "lost" if self.fault else "waiting" if waits else "ready",
            "fault": self.fault,
            "total_bytes": gpu.total_bytes,
            "used_bytes": self.reading.used_bytes,
            "budget_bytes": placement.budget_bytes(self.seen(control), control),
            "reserved_bytes": self.promised_bytes(control),
            "utilisation": self.reading.utilisation,
            "executor": self.executor and {"pid": self.executor.pid},
            "models": {one.name: one.state for one in self.residents.values()},
            "executions": {one.name: one.seat.executions if one.seat else 0 for one in self.residents.values()},
        }

    def _own_bytes(self, control: settings.GpuSettings) -> int:
        """What our executor holds; where NVML does not know it (in a container), what it may hold."""
        if self.executor is None:
            return 0
        held = self.reading.processes.get(self.executor.pid)
        if held is None and not control.emulated:
            return min(self.reading.used_bytes, self.promised_bytes(control))
        return held or 0


class Worker:
    """One model of an executor, as a `post.Worker`."""

    def __init__(self, executor: ports.ExecutorPort, key: str) -> None:
        self._executor = executor
        self._key = key

    def infer(self, calls: Sequence[model.Call]) -> asyncio.Future[ports.Served]:
        return self._executor.infer(self._key, calls)


def chosen(found: Sequence[devices.Gpu], control: settings.GpuSettings) -> list[devices.Gpu]:
    """Those of the GPUs that the settings name; a physical GPU stands for its MIG instances.

    Raises:
        InvalidInputError: one of the names is none of them.
    """
    for uuid in control.uuids:
        if not any(uuid in (gpu.uuid, gpu.parent) for gpu in found):
            known = ", ".join(gpu.uuid for gpu in found) or "none"
            raise errors.InvalidInputError("gpus", uuid, f"no such GPU; this host has {known}")
    return [gpu for gpu in found if not control.uuids or {gpu.uuid, gpu.parent} & set(control.uuids)]


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(one.stat().st_size for one in files if one.is_file())
