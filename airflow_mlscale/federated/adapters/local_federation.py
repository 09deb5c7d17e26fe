"""A federation on this machine: server and sites as detached services on loopback, each in its own process group.

Services are recorded as ``federated-server`` and ``federated-site-NAME``; a process of theirs that dies is
started again after a pause, by a shell loop under the service's guard.
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.federated.adapters import environment, nvflare_admin, provisioning
from airflow_mlscale.federated.settings import FederationSettings
from airflow_mlscale.runtime import processes

SERVER_SERVICE = "federated-server"
SITE_SERVICE = "federated-site-"
AGAIN = ["/bin/sh", "-c", 'while :; do "$@"; sleep 1; done', "keep-running"]
"""Runs the command that follows it for as long as the service lives; costs no second Python."""


@dataclass(frozen=True)
class Federation:
    """What is running, and how to talk to it."""

    sites: tuple[str, ...]
    port: int
    admin_kit: Path
    run_store: Path
    ready: tuple[str, ...] = ()
    """Sites that the server sees."""

    @property
    def connection(self) -> str:
        """Airflow's JSON form of the connection, for ``AIRFLOW_CONN_MLSCALE_FEDERATED``. Holds paths, no secret."""
        extra = {"admin_kit": str(self.admin_kit), "run_store": str(self.run_store)}
        return json.dumps({"conn_type": "mlscale_federated", "extra": extra})


def directory() -> Path:
    """Where the federation keeps its kits, runs and logs."""
    return processes.home() / "federated"


def up(settings: FederationSettings, *, python_path: Sequence[Path] = ()) -> Federation:
    """Start what is not running and wait until every site has registered.

    Raises:
        InvalidInputError: a federation of other sites, or without the encryption that is asked for, is running.
        TransientError: server or sites were not ready in time; nothing of it is left running but its logs.
    """
    kits, port = _kits(settings)
    admin = nvflare_admin.NvflareAdmin(kits.admin)
    env = _environment(settings, python_path)
    runs = directory() / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    federation = Federation(sites=settings.sites, port=port, admin_kit=kits.admin, run_store=runs)
    begun = running() is None
    try:
        _start_server(federation, kits, env)
        for site in settings.sites:
            _start_site(site, kits, env, settings)
        _wait_for_server(port, settings)
        ready = _wait_for_sites(admin, settings)
    except BaseException:
        if begun:  # leave nothing half-done, but never end a federation that ran before
            down()
        raise
    return Federation(**{**federation.__dict__, "ready": ready})


def down() -> list[str]:
    """End all services of the federation, with everything their jobs started; returns their names."""
    names = [found.name for found in processes.services("federated-")]
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(processes.end_service, names))
    return names


def running() -> Federation | None:
    """The recorded federation, if its server is alive; whoever is ready is not asked."""
    found = processes.service(SERVER_SERVICE)
    if not found:
        return None
    known = found.details
    return Federation(
        sites=tuple(known["sites"].split(",")), port=int(known["port"]), admin_kit=Path(known["admin_kit"]),
        run_store=Path(known["run_store"]),
    )  # fmt: skip


def _kits(settings: FederationSettings) -> tuple[provisioning.Kits, int]:
    """The running federation's kits, or fresh ones."""
    known = running()
    if known:
        if set(known.sites) != set(settings.sites):
            raise errors.InvalidInputError(
                "sites",
                ",".join(settings.sites),
                f"sites {','.join(known.sites)} are running; run 'mlscale federated down' first",
            )
        kits = provisioning.Kits(known.admin_kit.parent)
        if settings.encrypted and not kits.encrypted:
            fix = "the federation that is running has no key for it; run 'mlscale federated down' first"
            raise errors.InvalidInputError("encrypted", True, fix)
        return kits, known.port
    down()  # sites whose server is gone hold certificates of the past
    port = processes.free_port()
    return provisioning.provision(directory() / "provisioned", settings, port=port), port


def _start_server(federation: Federation, kits: provisioning.Kits, env: Mapping[str, str]) -> None:
    if processes.service(SERVER_SERVICE):
        return
    command = _nvflare("server.server_train", kits.server, "fed_server.json")
    processes.detach(
        SERVER_SERVICE,
        [*AGAIN, *command],
        details={
            "sites": ",".join(federation.sites),
            "port": str(federation.port),
            "admin_kit": str(federation.admin_kit),
            "run_store": str(federation.run_store),
            "connection": federation.connection,
        },
        env=env,
        cwd=kits.server,
        log_path=_log("server"),
        grace_s=3.0,
    )


def _start_site(site: str, kits: provisioning.Kits, env: Mapping[str, str], settings: FederationSettings) -> None:
    name = SITE_SERVICE + site
    if processes.service(name):
        return
    extra = [f"uid={site}", f"heart_beat_interval={settings.site_heartbeat_s:g}"]
    processes.detach(
        name,
        [*AGAIN, *_nvflare("client.client_train", kits.site(site), "fed_client.json", *extra)],
        details={"site": site},
        env=env,
        cwd=kits.site(site),
        log_path=_log(site),
        grace_s=3.0,
    )


def _nvflare(program: str, workspace: Path, config: str, *extra: str) -> list[str]:
    values = ["secure_train=true", f"org={provisioning.ORG}", "config_folder=config", *extra]
    module = f"nvflare.private.fed.app.{program}"
    return [sys.executable, "-u", "-m", module, "-m", str(workspace), "-s", config, "--set", *values]


def _environment(settings: FederationSettings, python_path: Sequence[Path]) -> dict[str, str]:
    """As for any participant, and no GPU: the sites of one machine would share it."""
    shared = environment.of_participant(threads=settings.trainer_threads, python_path=python_path)
    return {**shared, "CUDA_VISIBLE_DEVICES": "-1"}


def _wait_for_server(port: int, settings: FederationSettings) -> None:
    def listening() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    processes.wait_until(
        listening,
        what="the federation server",
        timeout_s=settings.start_timeout_s,
        alive=lambda: processes.service(SERVER_SERVICE) is not None,
        log_path=_log("server"),
    )


def _wait_for_sites(admin: nvflare_admin.NvflareAdmin, settings: FederationSettings) -> tuple[str, ...]:
    seen: list[str] = []
    until = time.monotonic() + settings.start_timeout_s

    def registered(site: str) -> bool:
        if site not in seen:
            with contextlib.suppress(errors.UnreachableError):
                seen[:] = admin.sites()
        return site in seen

    for site in settings.sites:  # one by one, so that the log of the missing one is told
        processes.wait_until(
            functools.partial(registered, site),
            what=f"the federation's site {site}",
            timeout_s=max(0.0, until - time.monotonic()),
            log_path=_log(site),
            poll_s=0.5,
        )
    return tuple(seen)


def _log(name: str) -> Path:
    return directory() / "logs" / f"{name}.log"
