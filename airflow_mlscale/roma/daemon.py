"""The ROMA daemon: puts the parts together, runs them, takes them apart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import controller, cores, fleet, gpus, lending, memory, rollout, settings
from airflow_mlscale.roma.adapters import (
    access,
    artefacts,
    control_api,
    executor_process,
    freshness,
    gateway,
    gpu_turn,
    grpc_health,
    grpc_server,
    guard,
    handover,
    http,
    metrics,
    nvml,
    sqlite_quality,
    sqlite_state,
    tfserving,
    tfserving_grpc,
    tls,
    tracing,
    v2,
    v2_grpc,
    worker_process,
)
from airflow_mlscale.runtime import journal

log = logging.getLogger(__name__)


def serve(config: settings.Settings, port: cpu.CpuPort, *, take_over: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, or until another daemon has taken over.

    Args:
        config: the whole daemon's.
        port: divides the host's cores.
        take_over: from the daemon that runs on the same state directory.

    Raises:
        InvalidInputError: the address is taken, or another daemon uses the state directory.
        UnreachableError: there is none to take over from.
        RunFailedError: one of its models does not come up here; it goes on.
    """
    import uvloop

    _open_files(config.gateway.max_connections)
    lock = handover.StateLock(config.state_dir)
    if take_over:
        with handover.offered(config.state_dir) as offer:
            uvloop.run(_serve(config, port, offer.listener, lock, offer))
        return
    if config.gateway.grpc_port:
        grpc_server.free(config.gateway.host, config.gateway.grpc_port)
    lock.take()
    with listening(config.gateway) as listener:
        uvloop.run(_serve(config, port, listener, lock))


def _open_files(connections: int) -> None:
    """Let so many connections and the files beside them be open, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 1024
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _serve(
    config: settings.Settings,
    port: cpu.CpuPort,
    listener: socket.socket,
    lock: handover.StateLock,
    offer: handover.Offer | None = None,
) -> None:
    import uvicorn

    from airflow_mlscale.roma.adapters import connections

    ending, leaves = asyncio.Event(), asyncio.Event()
    certificates = tls.Certificates(config.gateway.tls) if config.gateway.tls else None
    async with _application(config, port, ending, leaves, certificates, offer) as (app, models, held):
        if offer:
            await offer.accept(models, lock, held, timeout_s=2 * config.worker.load_timeout_s)
        server = connections.Server(
            uvicorn.Config(
                app,
                http=connections.bounded(config.gateway),
                limit_concurrency=config.gateway.max_connections,
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=int(config.gateway.drain_s),
            ),
            config.gateway,
            certificates.context if certificates else None,
        )
        # uvicorn would send itself the signal again once it has stopped serving, before the workers are drained.
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]

        def end(number: int) -> None:
            ending.set()
            server.handle_exit(number, None)

        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, end, each)

        def leave() -> None:
            ending.set()
            leaves.set()
            leaving.append(asyncio.create_task(server.leave(config.worker.drain_s), name="ROMA leaves"))

        leaving: list[asyncio.Task[None]] = []
        patience_s = 3 * config.worker.load_timeout_s
        door = handover.Door(config.state_dir, listener, models, lock, patience_s=patience_s, leave=leave)
        waiting = asyncio.create_task(door.run(), name="ROMA handover")
        waiting.add_done_callback(_tell_if_lost)
        host, number = listener.getsockname()[:2]
        scheme = "https" if certificates else "http"
        log.info("ROMA serves on %s://%s:%d, state in %s", scheme, host, number, config.state_dir)
        await server.serve(sockets=[listener])
        waiting.cancel()
        log.info("ROMA stops: no new requests; its workers finish what they accepted")


@contextlib.asynccontextmanager
async def _application(
    config: settings.Settings,
    port: cpu.CpuPort,
    ending: asyncio.Event,
    leaves: asyncio.Event,
    certificates: tls.Certificates | None,
    offer: handover.Offer | None,
) -> AsyncIterator[tuple[gateway.Gateway, fleet.Fleet, handover.HeldState]]:
    """The gateway over a running fleet under control.

    ``ending`` is set when no new requests are taken, ``leaves`` when another daemon takes them.
    """
    doorman = guard.Guard(config.gateway)
    store = sqlite_state.SqliteState(config.state_dir / "state.sqlite")
    held = handover.HeldState(store)
    if offer is None:
        held.release()
    quality = sqlite_quality.SqliteQuality(config.state_dir / "quality.sqlite")
    launcher = worker_process.ProcessLauncher(
        config.state_dir / "logs",
        start_timeout_s=config.worker.start_timeout_s,
        grace_s=config.gateway.drain_s + 5,
    )
    await launcher.open()
    kept = artefacts.ArtefactStore(config.state_dir / "artefacts", config.model_root, config.artefact)
    if offer is None:  # another daemon may be fetching
        kept.sweep()
    groups = cores.CoreGroups(port)
    models = fleet.Fleet(
        store=held,
        launcher=launcher,
        groups=groups,
        artefacts=kept,
        config=config,
        quality=quality,
        generation=offer.generation if offer else 1,
    )
    book = journal.Journal(config.journal_path)
    plant = controller.ServingPlant(models, port, config.control, book)
    budget = http.Budget(config.gateway.buffered_bytes)
    graphics = _graphics(config, models, launcher, groups, book)
    counted = metrics.Metrics(models, plant, host_cores=port.host_cores, budget=budget, graphics=graphics)
    requests = access.AccessBook(
        counted, logged=config.gateway.access_log, path=config.gateway.access_log_path, tracer=tracing.open_tracer()
    )
    loop = controller.control_loop(plant, host_cores=port.host_cores, control=config.control)
    stop = asyncio.Event()
    await models.restore()
    await groups.enter(models.gateway_group, *cores.gateway_share(config.control))
    control = asyncio.create_task(loop.run(stop), name="ROMA core control")
    control.add_done_callback(_tell_if_lost)
    loans = asyncio.create_task(
        lending.run(lending.LendingPlant(plant, port), control=config.control, host_cores=port.host_cores, stop=stop),
        name="ROMA core lending",
    )
    loans.add_done_callback(_tell_if_lost)
    rollouts = asyncio.create_task(
        rollout.rollout_loop(rollout.RolloutPlant(models, book)).run(stop), name="ROMA rollouts"
    )
    memories = asyncio.create_task(
        memory.memory_loop(memory.MemoryPlant(models, config.worker, book), config.worker).run(stop),
        name="ROMA memory",
    )
    memories.add_done_callback(_tell_if_lost)
    turn = handover.StateLock(config.state_dir, gpu_turn.LOCK)
    placing = asyncio.create_task(_place(graphics, config, turn, leaves, stop), name="ROMA GPUs")
    placing.add_done_callback(_tell_if_lost)
    read_again = [part for part in (doorman.file, certificates) if part]
    fresh = asyncio.create_task(freshness.keep(read_again, stop), name="ROMA files")
    try:
        messages = None
        if config.gateway.grpc_port is not None:
            messages = grpc_server.GrpcServer(
                config.gateway,
                _grpc_services(models),
                book=requests,
                budget=budget,
                doorman=doorman,
                certificates=certificates,
            )
        async with _grpc(messages, ending):
            app = gateway.Gateway(
                config.gateway,
                open_inference=v2.OpenInference(models),
                tensorflow_serving=tfserving.TensorFlowServing(models),
                control_api=control_api.ControlApi(models, plant, book, port, graphics),
                counted=counted,
                book=requests,
                budget=budget,
                doorman=doorman,
            )
            yield app, models, held
    finally:
        stop.set()
        await asyncio.gather(control, loans, fresh, rollouts, memories, placing)
        await models.end()
        if graphics:
            await graphics.end()
        turn.release()
        await launcher.close()
        await groups.close(models.gateway_group)
        requests.close()
        book.close()
        store.close()
        quality.close()


def _graphics(
    config: settings.Settings,
    models: fleet.Fleet,
    launcher: worker_process.ProcessLauncher,
    groups: cores.CoreGroups,
    book: journal.Journal,
) -> gpus.Gpus | None:
    """The GPUs, if they are to be used."""
    if not config.gpu.use:
        return None
    executors = executor_process.ExecutorLauncher(
        launcher, emulated=config.gpu.emulated, percentage=config.gpu.percentage
    )
    return gpus.Gpus(models, nvml.Nvml(), executors, groups=groups, control=config.gpu, worker=config.worker, book=book)


async def _place(
    graphics: gpus.Gpus | None,
    config: settings.Settings,
    turn: handover.StateLock,
    leaves: asyncio.Event,
    stop: asyncio.Event,
) -> None:
    if graphics:
        loop = gpus.gpu_loop(graphics, config.gpu)
        await asyncio.gather(loop.run(stop), gpu_turn.hold(graphics, turn, given_up=leaves, stop=stop))


def _grpc_services(models: fleet.Fleet) -> list[grpc_server.Service]:
    return [
        v2_grpc.OpenInferenceGrpc(models),
        tfserving_grpc.PredictionService(models),
        tfserving_grpc.ModelService(models),
        grpc_health.Health(models),
    ]


@contextlib.asynccontextmanager
async def _grpc(server: grpc_server.GrpcServer | None, ending: asyncio.Event) -> AsyncIterator[None]:
    """The gRPC services, if they have a port; they drain beside HTTP, and end before the workers do."""
    if server is None:
        yield
        return
    await server.start()
    stopping = asyncio.create_task(_stop_at(ending, server), name="ROMA gRPC stop")
    try:
        yield
    finally:
        ending.set()
        await stopping


async def _stop_at(ending: asyncio.Event, server: grpc_server.GrpcServer) -> None:
    await ending.wait()
    await server.stop()


def _tell_if_lost(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (exc := task.exception()):
        log.critical("%s has ended, models are served without it: %s", task.get_name(), exc)


@contextlib.contextmanager
def listening(gateway_settings: settings.GatewaySettings) -> Iterator[socket.socket]:
    """The socket of the gateway, bound.

    Raises:
        InvalidInputError: the address is taken or not of this machine.
    """
    host, number = gateway_settings.host, gateway_settings.port
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        fix = f"cannot listen there ({exc.strerror}); choose another --host or --port"
        raise errors.InvalidInputError("address", f"{host}:{number}", fix) from exc
    with listener:
        yield listener
