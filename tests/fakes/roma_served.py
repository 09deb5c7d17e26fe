"""ROMA's gateway, HTTP and gRPC, over a fleet of fake workers: real sockets and messages, no TensorFlow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import uvicorn

from airflow_mlscale.cpu.adapters import observe_only
from airflow_mlscale.roma import controller, cores, fleet, gpus, model, placement, replica, settings
from airflow_mlscale.roma.adapters import (
    access,
    connections,
    control_api,
    gateway,
    grpc_health,
    grpc_server,
    guard,
    http,
    metrics,
    tfserving,
    tfserving_grpc,
    tls,
    tracing,
    v2,
    v2_grpc,
)
from airflow_mlscale.runtime import journal, processes
from tests.fakes import roma as fakes
from tests.fakes import roma_gpus

GPU = settings.GpuSettings(use=True, emulated=True)
CONFIG = settings.Settings(state_dir=Path("/nowhere"), gpu=GPU)


class Served:
    """A model ``m`` behind both ports."""

    def __init__(
        self,
        models: fleet.Fleet,
        launcher: fakes.FakeLauncher,
        config: settings.GatewaySettings,
        doorman: guard.Guard,
        certificates: tls.Certificates | None,
        book: journal.Journal,
        graphics: gpus.Gpus | None,
        gpu_port: roma_gpus.FakeGpus,
    ) -> None:
        self.graphics = graphics
        self.gpu_port = gpu_port
        self.journal = book
        self.models = models
        self.guard = doorman
        self.certificates = certificates
        self.launcher = launcher
        self.port = config.port
        assert config.grpc_port is not None
        self.grpc_port = config.grpc_port
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{config.port}", trust_env=False, timeout=10)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{config.grpc_port}")
        self._held: list[replica.Request] = []

    @property
    def replica(self) -> replica.Replica:
        return self.models["m"].replica()

    async def place(self) -> None:
        """One turn of the GPUs' loop, and all loads that it begins."""
        assert self.graphics is not None
        seen = await self.graphics.observe()
        await self.graphics.act(placement.place(seen.gpus, seen.models, GPU))
        loads = [one.task for host in self.graphics.hosts.values() for one in host.residents.values() if one.task]
        await asyncio.gather(*loads)

    def occupy(self) -> None:
        """Take both places at the worker, for as long as the test likes."""
        self.launcher.automatic = False
        self._held += [self.replica.accept(model.Call("v2", b""), 3600.0) for _ in range(2)]

    @asynccontextmanager
    async def answering(self, body: bytes, status: int = 200) -> AsyncIterator[None]:
        """The next batch at the worker is answered with this."""

        async def answer() -> None:
            while not self.launcher.last.batches:
                await asyncio.sleep(0.001)
            self.launcher.last.answer_with(body, status)

        self.launcher.automatic = False
        task = asyncio.ensure_future(answer())
        try:
            yield
            await task
        finally:
            task.cancel()
            self.launcher.automatic = True

    async def raw(self, sent: bytes) -> bytes:
        """What a connection answers to these bytes until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(sent)
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def close(self) -> None:
        for request in self._held:
            self.replica.forget(request)
        await self.http.aclose()
        await self.channel.close()


@asynccontextmanager
async def serving(*, emulated_gpu: bool = False, **changes: Any) -> AsyncIterator[Served]:
    """Both ports, with these settings of the gateway changed; with a fake GPU that counts as emulated."""
    launcher = fakes.FakeLauncher()
    port = observe_only.ObserveOnlyPort(host_cores=2.0)
    groups = cores.CoreGroups(port)
    models = fleet.Fleet(
        store=fakes.MemoryState(),
        launcher=launcher,
        groups=groups,
        artefacts=fakes.AnyArtefact(),
        config=CONFIG,
    )
    order = model.DeployOrder(name="m", artefact="/a", objective=model.Objective(milliseconds=1000))
    await (await models.deploy(order)).wait_settled(5)
    listener = socket.create_server(("127.0.0.1", 0))
    config = settings.GatewaySettings(
        port=listener.getsockname()[1], grpc_port=processes.free_port(), drain_s=1, **changes
    )
    book = journal.Journal()
    plant = controller.ServingPlant(models, port, settings.ControlSettings(), book)
    budget = http.Budget(config.buffered_bytes)
    gpu_port, executors = roma_gpus.FakeGpus(), roma_gpus.FakeExecutorLauncher()
    parts = {"groups": groups, "control": GPU, "worker": CONFIG.worker, "book": book}
    graphics = gpus.Gpus(models, gpu_port, executors, **parts) if emulated_gpu else None
    counted = metrics.Metrics(models, plant, host_cores=port.host_cores, budget=budget, graphics=graphics)
    requests = access.AccessBook(
        counted, logged=config.access_log, path=config.access_log_path, tracer=tracing.open_tracer()
    )
    doorman = guard.Guard(config)
    certificates = tls.Certificates(config.tls) if config.tls else None
    messages = grpc_server.GrpcServer(
        config,
        [
            v2_grpc.OpenInferenceGrpc(models),
            tfserving_grpc.PredictionService(models),
            tfserving_grpc.ModelService(models),
            grpc_health.Health(models),
        ],
        book=requests,
        budget=budget,
        doorman=doorman,
        certificates=certificates,
    )
    app = gateway.Gateway(
        config,
        open_inference=v2.OpenInference(models),
        tensorflow_serving=tfserving.TensorFlowServing(models),
        control_api=control_api.ControlApi(models, plant, book, port, graphics),
        counted=counted,
        book=requests,
        budget=budget,
        doorman=doorman,
    )
    server = connections.Server(
        uvicorn.Config(
            app,
            http=connections.bounded(config),
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        ),
        config,
        certificates.context if certificates else None,
    )
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.ensure_future(server.serve(sockets=[listener]))
    await messages.start()
    served = Served(models, launcher, config, doorman, certificates, book, graphics, gpu_port)
    try:
        yield served
        assert budget.used == 0, "every request gives back what it held"
    finally:
        await served.close()
        server.should_exit = True
        await task
        await messages.stop()
        await models.end()
        if graphics:
            await graphics.end()
        listener.close()
        requests.close()
