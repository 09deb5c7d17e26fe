"""What ROMA needs from outside: workers that run models, and a memory that survives a crash.

CPU shares are `cpu.ports.CpuPort`. Adapters live in `roma.adapters`; every port has a fake in ``tests/fakes``
that passes the same contract tests.
"""

from __future__ import annotations

from asyncio import Future
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from airflow_mlscale import errors
from airflow_mlscale.roma import model


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

    async def end(self) -> None:
        """End the process; safe to call twice."""


class LauncherPort(Protocol):
    """Where workers come from."""

    async def launch(self, name: str, entry_files: Sequence[Path]) -> WorkerPort:
        """Start a worker that first writes its process id into ``entry_files``.

        Raises:
            WorkerLostError: it ended, or said nothing in time.
        """


class StatePort(Protocol):
    """The desired state, durable once a call returns."""

    def load(self) -> list[model.Desired]:
        """Everything saved, ordered by name."""

    def save(self, desired: model.Desired) -> None:
        """Insert or replace one model."""

    def remove(self, name: str) -> None:
        """Forget one model; nothing happens if it is not there."""


class ArtefactPort(Protocol):
    """Models on disk. Blocking."""

    def check(self, artefact: str) -> tuple[Path, str]:
        """The absolute path of an artefact and a fingerprint of its files.

        Raises:
            ModelArtefactError: it is not a SavedModel, or lies outside the model root.
        """

    def find(self, name: str) -> tuple[Path, str] | None:
        """Path and version of a model of this name under the model root; None if there is none."""
