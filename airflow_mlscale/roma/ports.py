"""What ROMA needs from outside: workers that run models, and a memory that survives a crash.

CPU shares are `cpu.ports.CpuPort`. Adapters live in `roma.adapters`; every port has a fake in ``tests/fakes``
that passes the same contract tests.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from airflow_mlscale import errors
from airflow_mlscale.roma import devices, feedback, model, runtimes


class WorkerLostError(errors.TransientError):
    """The worker process ended; what it had not answered can be asked again."""


@dataclass(frozen=True, kw_only=True)
class LoadOrder:
    """What a worker is told to load."""

    name: str
    version: str
    artefact: str
    threads: int
    """Executions side by side."""
    max_batch: int
    """Largest batch to warm up with."""
    objective_s: float
    """Batches that alone take longer than this are not tried while warming up."""
    runtime: runtimes.Runtime = field(default_factory=runtimes.Runtime)
    """What computes it."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a worker says once its model is warm."""

    signatures: Mapping[str, Any]
    """Signatures as JSON: ``{name: {"method": …, "inputs": [tensor…], "outputs": [tensor…]}}``, a tensor being
    ``{"name": …, "graph_name": …, "datatype": …, "dtype": …, "shape": [… or null for unknown rank]}``."""
    default_signature: str
    batchable: bool
    """Whether requests can be joined along the first dimension."""
    service_s: Mapping[int, float]
    """Measured seconds by batch size; empty when the warm-up could not make inputs up."""
    note: str
    """Anything a person should know, such as why there was no warm-up."""
    runtime: Mapping[str, Any] = field(default_factory=dict)
    """``{"name": …, "asked": …, "tolerance": …, "candidates": [{"runtime": …, "ms": {…}, "greatest_difference": …,
    "refused": …}…]}``: what computes it, and how others did."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """The answers to one execution."""

    answers: tuple[model.Answer, ...]
    service_s: float
    """From the worker's first look at it to the last answer."""
    cpu_s: float
    """CPU seconds of the worker since its start."""


class WorkerPort(Protocol):
    """One process that holds one model. Lives in the event loop's thread."""

    pid: int
    lost: Future[str]
    """Set, with a description, when the process has ended for any reason."""

    async def load(self, order: LoadOrder, progress: Callable[[model.State], None]) -> Loaded:
        """Load and warm up.

        Raises:
            ModelArtefactError: the artefact cannot be loaded.
            WorkerLostError: the process ended meanwhile.
        """

    def infer(self, calls: Sequence[model.Call]) -> Future[Served]:
        """Run calls as one execution; the future may raise `WorkerLostError`."""

    def memory_bytes(self) -> int:
        """Resident memory of the process; 0 once it has ended."""

    async def rest(self, timeout_s: float) -> None:
        """Return when nothing is under way any more, or time is up."""

    async def end(self) -> None:
        """End the process; safe to call twice."""


class LauncherPort(Protocol):
    """Where workers come from."""

    async def launch(self, name: str, entry_files: Sequence[Path]) -> WorkerPort:
        """Start a worker that first writes its process id into ``entry_files``.

        Raises:
            WorkerLostError: it ended, or said nothing in time.
        """


class GpuPort(Protocol):
    """The GPUs of a host. Blocking; one thread at a time."""

    name: str
    driver: str
    """Its version."""

    def found(self) -> list[devices.Gpu]:
        """GPUs, or MIG instances in place of the GPUs they divide."""

    def read(self) -> list[devices.Reading]:
        """How each of them is now."""

    def close(self) -> None:
        """Let go of them."""


@dataclass(frozen=True, kw_only=True)
class Seated:
    """What an executor says once a model is warm on its GPU."""

    service_s: Mapping[int, float]
    """Measured seconds by batch size."""
    note: str = ""


class ExecutorPort(Protocol):
    """One process that runs any number of models on one GPU. Lives in the event loop's thread."""

    pid: int
    lost: Future[str]
    """Set, with a description, when the process has ended for any reason."""

    async def load(self, key: str, order: LoadOrder) -> Seated:
        """Load a model and warm it up; ``key`` names it from then on. ``order.threads`` run side by side.

        Raises:
            ModelArtefactError: it cannot be loaded there.
            WorkerLostError: the process ended meanwhile.
        """

    def unload(self, key: str) -> None:
        """Free a model; nothing of it may be under way."""

    def infer(self, key: str, calls: Sequence[model.Call]) -> Future[Served]:
        """Run calls as one execution; the future may raise `WorkerLostError`."""

    async def end(self) -> None:
        """End the process; safe to call twice."""


class ExecutorLauncherPort(Protocol):
    """Where executors come from."""

    async def launch(self, gpu: devices.Gpu, entry_files: Sequence[Path]) -> ExecutorPort:
        """Start one on a GPU; it first writes its process id into ``entry_files``.

        Raises:
            WorkerLostError: it ended, or said nothing in time.
        """


class StatePort(Protocol):
    """The desired state, durable once a call returns. Writing raises `TransientError` if the disk refuses."""

    def load(self) -> list[model.Desired]:
        """Everything saved, ordered by name."""

    def save(self, desired: model.Desired) -> None:
        """Insert or replace one model."""

    def remove(self, name: str) -> None:
        """Forget one model; nothing happens if it is not there."""


class QualityPort(Protocol):
    """How good the answers of each version were, counted in slots of `feedback.SLOT_S`."""

    def add(self, name: str, at: float, counted: Mapping[str, feedback.Tally]) -> None:
        """Count by version, at a time in seconds since the epoch: all or nothing.

        Raises:
            TransientError: it cannot be kept.
        """

    def since(self, name: str, at: float) -> dict[str, feedback.Tally]:
        """By version, of the slots that have not ended at ``at``."""

    def forget(self, name: str) -> None:
        """A model is gone."""


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A model that a worker can load."""

    source: str
    """Where it came from: an absolute path, or a URL without its secrets."""
    files: Path
    """What workers read."""
    checksum: str


class ArtefactPort(Protocol):
    """Models, wherever they come from. Blocking, and called from several threads."""

    def fetch(self, artefact: str, checksum: str | None = None) -> Artefact:
        """The daemon's own copy of what lies at a path or URL: whole, or nothing is left of it.

        Args:
            artefact: path of a model or an archive with one, or a URL.
            checksum: sha256 that it must have, if any.

        Raises:
            ModelArtefactError: it holds no model, lies where it must not, or has another checksum.
            TransientError: its store does not answer, or the daemon's disk has no room.
        """

    def find(self, name: str) -> tuple[Path, str] | None:
        """Path and version of a model of this name under the model root; None if there is none.

        Raises:
            ModelArtefactError: it cannot be read.
        """

    def listed(self) -> dict[str, str]:
        """Names and versions of all that `find` finds, by name; what cannot be read is left out."""

    def prune(self, keep: Collection[str]) -> None:
        """Forget copies but those with these checksums, and those that were fetched lately."""
