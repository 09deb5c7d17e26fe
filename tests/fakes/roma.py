"""Fakes of ROMA's ports: workers in this process that answer when told to, and a state that lives in memory."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.roma import model, ports


class MemoryState:
    def __init__(self) -> None:
        self.saved: dict[str, model.Desired] = {}
        self.full = False
        """Whether the disk refuses."""

    def load(self) -> list[model.Desired]:
        return [self.saved[name] for name in sorted(self.saved)]

    def save(self, desired: model.Desired) -> None:
        if self.full:
            raise errors.TransientError("the disk is full")
        self.saved[desired.name] = replace(desired)

    def remove(self, name: str) -> None:
        self.saved.pop(name, None)


class AnyArtefact:
    """Takes every path for a model; its checksum is the path. What is ``remote`` comes when a test lets it."""

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.arriving = threading.Event()

    def fetch(self, artefact: str, checksum: str | None = None) -> ports.Artefact:
        if "missing" in artefact:
            raise errors.ModelArtefactError("artefact", artefact, "no such directory")
        if checksum not in (None, artefact):
            raise errors.ModelArtefactError("checksum", checksum, "the model is another one")
        if "remote" in artefact and not self.arriving.wait(10):
            raise errors.UnreachableError("the store", artefact, "wait")
        return ports.Artefact(source=artefact, files=Path(artefact), checksum=artefact)

    def prune(self, keep: Collection[str]) -> None:
        self.kept = set(keep)

    def find(self, name: str) -> tuple[Path, str] | None:
        return (Path("/root") / name, "3") if name == "found" else None

    def listed(self) -> dict[str, str]:
        return {"found": "3"}


@dataclass
class FakeLauncher:
    """Workers whose artefact is ``broken`` fail to load, ``deadly`` ones die while loading, ``slow`` ones wait."""

    automatic: bool = True
    """Answer at once; else when a test says so."""
    workers: list[FakeWorker] = field(default_factory=list)
    failing_starts: int = 0
    """Launches that raise."""
    refusal: Exception = field(default_factory=lambda: ports.WorkerLostError("cannot start"))
    """What they raise."""
    slow: asyncio.Event = field(default_factory=asyncio.Event)

    async def launch(self, name: str, entry_files: Sequence[Path]) -> FakeWorker:
        if self.failing_starts:
            self.failing_starts -= 1
            raise self.refusal
        worker = FakeWorker(os.getpid(), self)
        self.workers.append(worker)
        return worker

    @property
    def last(self) -> FakeWorker:
        return self.workers[-1]


class FakeWorker:
    def __init__(self, pid: int, launcher: FakeLauncher) -> None:
        self.pid = pid
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.batches: list[tuple[list[model.Call], asyncio.Future[ports.Served]]] = []
        self.seen: list[model.Call] = []
        """Every call, in order."""
        self.order: ports.LoadOrder | None = None
        self.ended = False
        self.resident_bytes = 0
        self._launcher = launcher
        self._cpu_s = 0.0

    async def load(self, order: ports.LoadOrder, progress: Callable[[model.State], None]) -> ports.Loaded:
        self.order = order
        progress(model.State.LOADING)
        if "broken" in order.artefact:
            raise errors.ModelArtefactError("artefact", order.artefact, "TensorFlow cannot load it")
        if "deadly" in order.artefact:
            self.die("killed")
            raise ports.WorkerLostError("killed")
        if "slow" in order.artefact:
            await self._launcher.slow.wait()
        progress(model.State.WARMING)
        tensor = {"name": "x", "graph_name": "x:0", "datatype": "FP32", "dtype": "DT_FLOAT", "shape": [-1, 3]}
        return ports.Loaded(
            signatures={"serving_default": {"method": "predict", "inputs": [tensor], "outputs": [tensor]}},
            default_signature="serving_default",
            batchable=True,
            service_s={1: 0.001, 2: 0.001, 4: 0.001, 8: 0.001},
            note="",
            runtime={"name": "tensorflow", "asked": order.runtime.name, "tolerance": None, "candidates": []},
        )

    def infer(self, calls: Sequence[model.Call]) -> asyncio.Future[ports.Served]:
        future: asyncio.Future[ports.Served] = asyncio.get_running_loop().create_future()
        if self.lost.done():
            future.set_exception(ports.WorkerLostError(self.lost.result()))
            return future
        self.batches.append((list(calls), future))
        self.seen.extend(calls)
        if self._launcher.automatic:
            self.answer()
        return future

    def memory_bytes(self) -> int:
        return self.resident_bytes

    async def rest(self, timeout_s: float) -> None:
        if self.batches:
            await asyncio.wait([future for _, future in self.batches], timeout=timeout_s)

    def answer(self, status: int = 200) -> None:
        """Answer the oldest batch with each call's own body and this worker's version."""
        calls, future = self.batches.pop(0)
        version = self.order.version if self.order else None
        self._cpu_s += 0.001 * len(calls)
        answers = tuple(
            model.Answer(status, json.dumps({"echo": call.body.decode(errors="replace"), "version": version}).encode())
            for call in calls
        )
        if not future.done():
            future.set_result(ports.Served(answers=answers, service_s=0.001, cpu_s=self._cpu_s))

    def answer_with(self, body: bytes, status: int = 200) -> None:
        """Answer the oldest batch with these bytes."""
        calls, future = self.batches.pop(0)
        answers = tuple(model.Answer(status, body) for _ in calls)
        if not future.done():
            future.set_result(ports.Served(answers=answers, service_s=0.001, cpu_s=self._cpu_s))

    def die(self, why: str = "killed by a test") -> None:
        if self.lost.done():
            return
        self.lost.set_result(why)
        for _, future in self.batches:
            if not future.done():
                future.set_exception(ports.WorkerLostError(why))
        self.batches.clear()

    async def end(self) -> None:
        self.ended = True
        self.die("ended")
