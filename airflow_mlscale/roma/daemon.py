"""The ROMA daemon: puts the parts together, runs them, takes them apart."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import controller, cores, fleet, settings
from airflow_mlscale.roma.adapters import (
    artefacts,
    control_api,
    gateway,
    metrics,
    sqlite_state,
    tfserving,
    v2,
    worker_process,
)
from airflow_mlscale.runtime import journal

log = logging.getLogger(__name__)


def serve(config: settings.Settings, port: cpu.CpuPort) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InvalidInputError: the address is taken, or another daemon uses the state directory.
    """
    import uvloop

    with _locked(config.state_dir), listening(config.gateway) as listener:
        uvloop.run(_serve(config, port, listener))


async def _serve(config: settings.Settings, port: cpu.CpuPort, listener: socket.socket) -> None:
    import uvicorn

    async with _application(config, port) as app:
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="httptools",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=int(config.gateway.drain_s),
            )
        )
        # uvicorn would send itself the signal again once it has stopped serving, before the workers are drained.
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, server.handle_exit, each, None)
        host, number = listener.getsockname()[:2]
        log.info("ROMA serves on http://%s:%d, state in %s", host, number, config.state_dir)
        await server.serve(sockets=[listener])
        log.info("ROMA stops: no new requests; its workers finish what they accepted")


@contextlib.asynccontextmanager
async def _application(config: settings.Settings, port: cpu.CpuPort) -> AsyncIterator[gateway.Gateway]:
    """The gateway over a running fleet under control."""
    store = sqlite_state.SqliteState(config.state_dir / "state.sqlite")
    launcher = worker_process.ProcessLauncher(
        config.state_dir / "logs",
        start_timeout_s=config.worker.start_timeout_s,
        grace_s=config.gateway.drain_s + 5,
    )
    await launcher.open()
    groups = cores.CoreGroups(port)
    models = fleet.Fleet(
        store=store,
        launcher=launcher,
        groups=groups,
        artefacts=artefacts.LocalArtefacts(config.model_root),
        config=config,
    )
    book = journal.Journal(config.journal_path)
    plant = controller.ServingPlant(models, port, config.control, book)
    loop = controller.control_loop(plant, host_cores=port.host_cores, control=config.control)
    stop = asyncio.Event()
    await models.restore()
    await groups.enter(models.gateway_group, *cores.gateway_share(config.control))
    control = asyncio.create_task(loop.run(stop), name="ROMA core control")
    control.add_done_callback(_tell_if_lost)
    try:
        yield gateway.Gateway(
            config.gateway,
            open_inference=v2.OpenInference(models),
            tensorflow_serving=tfserving.TensorFlowServing(models),
            control_api=control_api.ControlApi(models, plant, book, port),
            counted=metrics.Metrics(models, plant),
        )
    finally:
        stop.set()
        await control
        await models.end()
        await launcher.close()
        await groups.close(models.gateway_group)
        book.close()
        store.close()


def _tell_if_lost(control: asyncio.Task[None]) -> None:
    if not control.cancelled() and (exc := control.exception()):
        log.critical("core control has ended, models are served without it: %s", exc)


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


@contextlib.contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """One daemon for each state directory; the lock goes with the process, however it ends."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (state_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise errors.InvalidInputError(
                "state", str(state_dir), "another daemon uses this directory; stop it or give another --state"
            ) from exc
        yield
