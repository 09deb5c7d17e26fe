"""The gateway's side of a GPU's executor: starting the process, and talking to it about many models."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from airflow_mlscale import errors
from airflow_mlscale.roma import devices, model, ports
from airflow_mlscale.roma.adapters import executor, frames, worker_process
from airflow_mlscale.runtime import processes


class ExecutorLauncher:
    """Starts executors; see `ports.ExecutorLauncherPort`."""

    def __init__(self, launcher: worker_process.ProcessLauncher, *, emulated: bool, percentage: int) -> None:
        self._launcher = launcher
        self._emulated = emulated
        self._percentage = percentage

    async def launch(self, gpu: devices.Gpu, entry_files: Sequence[Path]) -> ProcessExecutor:
        """Start one; see `ports.ExecutorLauncherPort`."""
        if self._emulated:
            environment = {"CUDA_VISIBLE_DEVICES": "-1", executor.EMULATED_VARIABLE: "1"}
        else:
            environment = dict(devices.environment(gpu, percentage=self._percentage))
        kind = "emulated-gpu" if self._emulated else "gpu"
        name = f"{kind}-{gpu.uuid}".replace("/", "_")
        return ProcessExecutor(*await self._launcher.start("executor", name, entry_files, environment))


class ProcessExecutor:
    """One executor process. Lives in the event loop's thread."""

    def __init__(self, child: processes.Child, connection: worker_process.Connection, pid: int, log_path: Path) -> None:
        self.pid = pid
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._process = psutil.Process(pid)
        self._child = child
        self._connection = connection
        self._log_path = log_path
        self._numbers = count()
        self._executing: dict[int, asyncio.Future[ports.Served]] = {}
        self._loading: dict[str, asyncio.Future[ports.Seated]] = {}
        connection.on_frame = self._receive
        connection.closed.add_done_callback(lambda _: self._closed())

    async def load(self, key: str, order: ports.LoadOrder) -> ports.Seated:
        """See `ports.ExecutorPort`."""
        if self.lost.done():
            raise ports.WorkerLostError(self.lost.result())
        loading: asyncio.Future[ports.Seated] = asyncio.get_running_loop().create_future()
        self._loading[key] = loading
        self._connection.send(
            {
                "kind": "load",
                "model": key,
                "name": order.name,
                "version": order.version,
                "artefact": order.artefact,
                "places": order.threads,
                "max_batch": order.max_batch,
                "objective_s": order.objective_s,
            }
        )
        try:
            return await loading
        finally:
            self._loading.pop(key, None)

    def unload(self, key: str) -> None:
        """See `ports.ExecutorPort`."""
        self._connection.send({"kind": "unload", "model": key})

    def infer(self, key: str, calls: Sequence[model.Call]) -> asyncio.Future[ports.Served]:
        """See `ports.ExecutorPort`."""
        future: asyncio.Future[ports.Served] = asyncio.get_running_loop().create_future()
        if self.lost.done():
            future.set_exception(ports.WorkerLostError(self.lost.result()))
            return future
        number = next(self._numbers)
        self._executing[number] = future
        items = [[call.protocol, len(call.body), call.header_length] for call in calls]
        header = {"kind": "infer", "model": key, "id": number, "calls": items}
        self._connection.send(header, [call.body for call in calls])
        return future

    async def end(self) -> None:
        """See `ports.ExecutorPort`."""
        self._connection.close()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.kill()  # it has nothing to put in order
        await asyncio.to_thread(self._child.end)

    def _receive(self, header: frames.Header, body: bytes) -> None:
        if header["kind"] == "served":
            future = self._executing.pop(header["id"])
            if not future.done():
                future.set_result(worker_process.served(header, body))
            return
        loading = self._loading.get(header["model"])
        if loading is None or loading.done():
            return
        if header["kind"] == "failed":
            loading.set_exception(errors.ModelArtefactError("device", "gpu", header["error"]))
        else:
            seconds = {int(size): s for size, s in header["service_s"].items()}
            loading.set_result(ports.Seated(service_s=seconds, note=header["note"]))

    def _closed(self) -> None:
        """The process is going or gone. ``lost`` comes first: who waits for an answer asks what happened."""
        if self.lost.done():
            return
        code = self._child.poll()
        why = f"executor {self.pid} ended" + (f" with code {code}" if code is not None else "")
        self.lost.set_result(f"{why}, see {self._log_path}")
        waiting: list[asyncio.Future[Any]] = [*self._executing.values(), *self._loading.values()]
        self._executing.clear()
        for future in waiting:
            if not future.done():
                future.set_exception(ports.WorkerLostError(self.lost.result()))
