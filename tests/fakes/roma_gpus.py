"""Fakes of ROMA's GPU ports: GPUs that are what a test says, executors in this process that answer when told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.roma import devices, model, ports

MIB = 2**20


class FakeGpus:
    """GPUs by UUID, with what is read of them."""

    name = "fake"
    driver = "0"

    def __init__(self, *gpus: devices.Gpu) -> None:
        self.gpus = list(gpus) or [devices.Gpu(uuid="GPU-a", name="Fake GPU", total_bytes=8000 * MIB)]
        self.readings = {gpu.uuid: devices.Reading(uuid=gpu.uuid) for gpu in self.gpus}
        self.closed = False

    def found(self) -> list[devices.Gpu]:
        return list(self.gpus)

    def read(self) -> list[devices.Reading]:
        return [self.readings[gpu.uuid] for gpu in self.gpus]

    def close(self) -> None:
        self.closed = True


class FakeExecutorLauncher:
    """Executors whose artefact is ``foreign`` cannot load it, ``deadly`` ones die of it."""

    def __init__(self) -> None:
        self.automatic = True
        """Answer at once; else when a test says so."""
        self.executors: list[FakeExecutor] = []
        self._pids = count(5000)

    @property
    def last(self) -> FakeExecutor:
        return self.executors[-1]

    async def launch(self, gpu: devices.Gpu, entry_files: Sequence[Path]) -> FakeExecutor:
        self.executors.append(FakeExecutor(next(self._pids), self))
        return self.last


class FakeExecutor:
    def __init__(self, pid: int, launcher: FakeExecutorLauncher) -> None:
        self.pid = pid
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.models: dict[str, ports.LoadOrder] = {}
        self.batches: list[tuple[str, list[model.Call], asyncio.Future[ports.Served]]] = []
        self.ended = False
        self._launcher = launcher

    async def load(self, key: str, order: ports.LoadOrder) -> ports.Seated:
        await asyncio.sleep(0)
        if "foreign" in order.artefact:
            raise errors.ModelArtefactError("artefact", order.artefact, "it cannot run on a GPU")
        if "deadly" in order.artefact:
            self.die()
            raise ports.WorkerLostError("killed")
        self.models[key] = order
        return ports.Seated(service_s={1: 0.0005, 2: 0.0005, 4: 0.0005})

    def unload(self, key: str) -> None:
        self.models.pop(key, None)

    def infer(self, key: str, calls: Sequence[model.Call]) -> asyncio.Future[ports.Served]:
        future: asyncio.Future[ports.Served] = asyncio.get_running_loop().create_future()
        if self.lost.done():
            future.set_exception(ports.WorkerLostError(self.lost.result()))
            return future
        self.batches.append((key, list(calls), future))
        if self._launcher.automatic:
            self.answer()
        return future

    def answer(self) -> None:
        """Answer the oldest batch with each call's own body."""
        _, calls, future = self.batches.pop(0)
        answers = tuple(
            model.Answer(200, json.dumps({"echo": call.body.decode(), "device": "gpu"}).encode()) for call in calls
        )
        if not future.done():
            future.set_result(ports.Served(answers=answers, service_s=0.0005, cpu_s=0.0))

    def die(self, why: str = "killed by a test") -> None:
        if self.lost.done():
            return
        self.lost.set_result(why)
        for _, _, future in self.batches:
            if not future.done():
                future.set_exception(ports.WorkerLostError(why))

    async def end(self) -> None:
        self.ended = True
        self.die("ended")
