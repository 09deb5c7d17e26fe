"""The server or a site of a federation across machines, in the foreground under our guard.

Whatever ends the command ends NVFlare, its jobs and their trainers with it; an NVFlare process that dies by itself is
started again, after longer and longer pauses if it keeps dying.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated.adapters import environment, handshake, provisioning, start_up_kit
from airflow_mlscale.federated.adapters.start_up_kit import Kit
from airflow_mlscale.runtime import processes

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Before a process that died is started again: doubled each time."""
SETTLED_S = 60.0
"""A process that has lived this long begins anew with the shortest pause."""
GRACE_S = 10.0
SITE_TIMEOUT_S = 20.0
"""A site silent for this long is no longer offered work of new segments."""
HEARTBEAT_S = 2.0
MOST_SITES = 10_000
"""Certificates decide who is a site; NVFlare's own limit of a hundred must not."""
SHUT_DOWN = "shutdown.fl"
"""NVFlare's word, in the kit, that an administrator has shut this participant down for good."""
SERVER_PROGRAM = "airflow_mlscale.federated.adapters.bound_server"
SITE_PROGRAM = "nvflare.private.fed.app.client.client_train"


@dataclass(frozen=True, kw_only=True)
class SiteOptions:
    """What a site decides for itself."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """Beside those of its kit, or in their place."""
    data_args: Mapping[str, Any] = field(default_factory=dict)
    """Its own arguments of the client data function; they win over the run's."""
    threads: int = 1
    """TensorFlow threads of each trainer."""
    python_path: Sequence[Path] = ()
    """Directories with modules that the run's functions import and that do not travel with the job."""


def site(kit: Kit, options: SiteOptions) -> int:
    """Be a site until told to end, or until an administrator shuts it down; returns the exit code.

    Raises:
        InvalidInputError: the kit is in use, or its server is of another federation.
    """
    with _alone(kit):
        labels = {**kit.own.get("labels", {}), **options.labels}
        provisioning.tune_site(kit.directory / "local", labels)
        _meet(kit)
        told = ", ".join(f"{key}={value}" for key, value in sorted(labels.items())) or "no labels"
        log.info("site %s (%s) joins the federation at %s:%d", kit.name, told, kit.host, kit.port)
        return _keep_running(
            kit,
            _command(kit, SITE_PROGRAM, f"uid={kit.name}", f"heart_beat_interval={HEARTBEAT_S:g}"),
            environment.of_participant(
                threads=options.threads, python_path=options.python_path, data_args=options.data_args
            ),
        )


def server(kit: Kit, *, bind: str | None = None, python_path: Sequence[Path] = ()) -> int:
    """Be the server until told to end, or until an administrator shuts it down; returns the exit code.

    Args:
        kit: of the server.
        bind: address to listen on; the kit's without it.
        python_path: directories with modules that the evaluation data function imports.

    Raises:
        InvalidInputError: the kit is in use, its address is none of this machine, its port is taken, or the
            directory of runs is not there.
    """
    address = _own_address(kit, bind or kit.own.get("bind") or kit.host)
    store = kit.own.get("run_store")
    if store and not Path(store).is_dir():
        fix = "is no directory here; it is what this server and Airflow share: mount it, or correct sites.yaml"
        raise errors.InvalidInputError("run_store", store, fix)
    with _alone(kit):
        provisioning.tune_server(
            kit.directory / "local",
            storage=kit.directory / "storage",
            sites=MOST_SITES,
            site_timeout_s=SITE_TIMEOUT_S,
        )
        log.info("federation server %s listens on %s:%d", kit.name, address, kit.port)
        return _keep_running(
            kit,
            _command(kit, SERVER_PROGRAM),
            {**environment.of_participant(threads=1, python_path=python_path), environment.BIND: address},
        )


def _command(kit: Kit, program: str, *extra: str) -> list[str]:
    values = ["secure_train=true", f"org={kit.organisation}", "config_folder=config", *extra]
    config = start_up_kit.PROGRAMS[kit.role]
    return [sys.executable, "-u", "-m", program, "-m", str(kit.directory), "-s", config, "--set", *values]


def _own_address(kit: Kit, wanted: str) -> str:
    """The IPv4 address to listen on.

    Raises:
        InvalidInputError: it is none of this machine, or its port is taken.
    """
    fix = "is no address of this machine; set server.bind in sites.yaml, or --bind (0.0.0.0 for all addresses)"
    try:
        address = str(socket.getaddrinfo(wanted, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
        with socket.socket() as probe:
            probe.bind((address, 0))
    except OSError as exc:
        raise errors.InvalidInputError("bind", wanted, fix) from exc
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, kit.port))
    except OSError as exc:
        raise errors.InvalidInputError("port", kit.port, f"cannot be listened on at {address}: {exc.strerror}") from exc
    return address


def _meet(kit: Kit) -> None:
    """Look whether the kit's server is the one that answers; one that does not answer may still come.

    Raises:
        InvalidInputError: it is another one.
    """
    try:
        name = handshake.server_name(
            kit.host, kit.port, authority=kit.file("rootCA.pem"), pair=kit.pair, kit=kit.directory,
            hint="the site tries on until it does",
        )  # fmt: skip
    except errors.UnreachableError as exc:
        log.warning("%s", exc)
        return
    if name != kit.identity:
        fix = f"{kit.host}:{kit.port} is {name!r}, and this kit is for {kit.identity!r}"
        raise errors.InvalidInputError("kit", str(kit.directory), fix)


@contextlib.contextmanager
def _alone(kit: Kit) -> Iterator[None]:
    """Two processes on one kit would throw each other out of the federation again and again.

    Raises:
        InvalidInputError: another process holds it.
    """
    with (kit.directory / ".in-use").open("w") as mark:
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            fix = f"another process on this machine is {kit.name} already"
            raise errors.InvalidInputError("kit", str(kit.directory), fix) from exc
        yield


def _keep_running(kit: Kit, command: Sequence[str], env: Mapping[str, str]) -> int:
    """The command again and again; the end of this process, by a signal or otherwise, ends all of it."""
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    child: processes.Child | None = None
    pause_s = FIRST_PAUSE_S
    try:
        while True:
            began_s = time.monotonic()
            child = processes.spawn(kit.name, command, env=env, cwd=kit.directory, grace_s=GRACE_S)
            code = child.wait()
            if (kit.directory / SHUT_DOWN).exists():
                log.info("%s was shut down by an administrator", kit.name)
                return 0
            if time.monotonic() - began_s >= SETTLED_S:
                pause_s = FIRST_PAUSE_S
            log.warning("%s ended with code %d; it is started again in %g s", kit.name, code, pause_s)
            time.sleep(pause_s)  # nothing is waited for: so that a process that cannot live does not take the machine
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
    except _Ended as told:
        log.info("%s ends: %s", kit.name, signal.Signals(told.args[0]).name)
        return 0
    finally:
        for number in before:  # one word is enough: a second one must not leave anything behind
            signal.signal(number, signal.SIG_IGN)
        if child is not None:
            child.end()
        for number, handler in before.items():
            signal.signal(number, handler)


class _Ended(BaseException):
    """A signal has told this process to end."""


def _end(number: int, _frame: object) -> None:
    raise _Ended(number)
