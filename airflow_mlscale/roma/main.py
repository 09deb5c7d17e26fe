"""``mlscale roma``: run the daemon here, or as a service of this machine."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, get_args

from airflow_mlscale import errors
from airflow_mlscale.roma import settings
from airflow_mlscale.runtime import journal, processes

SERVICE = "roma"

_NOT_A_LINE = "it holds no token; write one line of printable ASCII into it"

_PASSED_ON = (
    "host",
    "port",
    "state",
    "token_file",
    "model_root",
    "journal",
    "mode",
    "utilisation",
    "period",
    "cpu",
    "max_body_mb",
    "max_queue",
    "give_up_factor",
)


def add_commands(commands: Any) -> None:
    """Add ``roma serve|up|down|status``."""
    parser = commands.add_parser("roma", help="serve models under latency objectives")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    serve = actions.add_parser("serve", help="run the daemon in the foreground")
    _add_options(serve)
    serve.set_defaults(run=_serve)
    up = actions.add_parser("up", help="start the daemon as a service and wait until it answers")
    _add_options(up)
    up.set_defaults(run=_up)
    down = actions.add_parser("down", help="stop the service")
    down.set_defaults(run=_down)
    status = actions.add_parser("status", help="print the service's models as JSON")
    status.add_argument("--token-file", type=Path, help="file that holds the token, if one is set")
    status.set_defaults(run=_status)


def _add_options(parser: argparse.ArgumentParser) -> None:
    gateway, queue, control = settings.GatewaySettings(), settings.QueueSettings(), settings.ControlSettings()
    parser.add_argument("--host", default=gateway.host, help="address to bind (default %(default)s)")
    parser.add_argument("--port", type=int, default=gateway.port, help="port (default %(default)s)")
    parser.add_argument("--state", type=Path, help="directory for the desired state (default $MLSCALE_HOME/roma)")
    parser.add_argument("--token-file", type=Path, help="file that holds the bearer token; required beyond loopback")
    parser.add_argument("--model-root", type=Path, help="refuse artefacts outside this directory")
    parser.add_argument("--journal", type=Path, help="append every decision to this file as a JSON line")
    parser.add_argument("--mode", choices=get_args(settings.Mode), default=control.mode, help="default %(default)s")
    parser.add_argument("--utilisation", type=float, default=control.utilisation, help="default %(default)s")
    parser.add_argument("--period", type=float, default=control.period_s, help="seconds between decisions")
    parser.add_argument("--cpu", default="auto", help="CPU-share adapter (default %(default)s)")
    parser.add_argument("--max-body-mb", type=float, default=gateway.max_body_bytes / 2**20, help="default %(default)g")
    parser.add_argument("--max-queue", type=int, default=queue.max_requests, help="requests waiting for each model")
    parser.add_argument("--give-up-factor", type=float, default=queue.give_up_factor, help="default %(default)g")
    parser.add_argument("--access-log", action="store_true", help="log every request as a JSON line")


def _serve(options: argparse.Namespace) -> int:
    from airflow_mlscale.cpu import detect
    from airflow_mlscale.roma import daemon

    config = _config(options)
    _check_writable(config)
    daemon.serve(config, detect.detect(options.cpu))
    return 0


def _up(options: argparse.Namespace) -> int:
    import httpx

    from airflow_mlscale.roma import daemon

    config = _config(options)
    address = f"http://{_reachable(config.gateway.host)}:{options.port}"
    if found := processes.service(SERVICE):
        if found.command != _command(options):
            fix = "it runs with other options; end it first with `mlscale roma down`"
            raise errors.InvalidInputError("roma", found.details["address"], fix)
        print(f"ROMA already serves on {found.details['address']}")
        return 0
    _check_writable(config)
    # Another server on this port would answer the question below and look like ours.
    with daemon.listening(config.gateway):
        pass
    log_path = processes.home() / "logs" / "roma.log"
    command = _command(options)
    service = processes.detach(
        SERVICE, command, details={"address": address}, log_path=log_path, grace_s=config.gateway.drain_s + 5
    )

    def ready() -> bool:
        try:
            return httpx.get(f"{address}/v2/health/live", timeout=1, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        processes.wait_until(ready, what="ROMA", timeout_s=60, alive=service.alive, log_path=log_path)
    except BaseException:  # an interrupt too leaves nothing half-done
        processes.end_service(SERVICE)
        raise
    print(f"ROMA serves on {address}")
    return 0


def _down(_: argparse.Namespace) -> int:
    print("ROMA stopped" if processes.end_service(SERVICE) else "ROMA was not running")
    return 0


def _status(options: argparse.Namespace) -> int:
    from airflow_mlscale.roma.adapters import client

    found = processes.service(SERVICE)
    if found is None:
        print("ROMA is not running")
        return 3
    with client.RomaClient(found.details["address"], token=_token(options.token_file)) as roma:
        print(json.dumps({"address": found.details["address"], "models": roma.models()}, indent=1))
    return 0


def _config(options: argparse.Namespace) -> settings.Settings:
    if options.model_root is not None and not os.path.isdir(options.model_root):  # Path.is_dir raises for long names
        raise errors.InvalidInputError("model_root", str(options.model_root), "give a directory that exists")
    max_body_bytes = options.max_body_mb * 2**20
    if not 1024 <= max_body_bytes < inf:
        raise errors.InvalidInputError(
            "max_body_mb", options.max_body_mb, "give a number of megabytes of at least 0.001"
        )
    return settings.Settings(
        state_dir=options.state or processes.home() / "roma",
        model_root=options.model_root,
        journal_path=options.journal,
        gateway=settings.GatewaySettings(
            host=options.host,
            port=options.port,
            token=_token(options.token_file),
            max_body_bytes=int(max_body_bytes),
            access_log=options.access_log,
        ),
        queue=settings.QueueSettings(max_requests=options.max_queue, give_up_factor=options.give_up_factor),
        control=settings.ControlSettings(mode=options.mode, utilisation=options.utilisation, period_s=options.period),
    )


def _token(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as exc:
        raise errors.InvalidInputError("token_file", str(path), f"it cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError:  # its message, or the chain of errors, would show what the file holds
        raise errors.InvalidInputError("token_file", str(path), _NOT_A_LINE) from None
    if not token:
        raise errors.InvalidInputError("token_file", str(path), "it is empty; write a long random token into it")
    if not (token.isascii() and token.isprintable()):  # no HTTP header can carry it
        raise errors.InvalidInputError("token_file", str(path), _NOT_A_LINE)
    return token


def _check_writable(config: settings.Settings) -> None:
    """Open what the daemon will write to, as it will, so that a bad path is told before anything starts.

    Raises:
        InvalidInputError: the state directory or the journal cannot be had.
    """
    with _writable("journal", config.journal_path):
        journal.Journal(config.journal_path).close()
    with _writable("state", config.state_dir):
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        tempfile.TemporaryFile(dir=config.state_dir).close()


@contextmanager
def _writable(field: str, path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        fix = f"it cannot be written ({exc.strerror}); give another --{field}"
        raise errors.InvalidInputError(field, str(path), fix) from exc
    except UnicodeDecodeError as exc:
        raise errors.InvalidInputError(field, str(path), f"another kind of file; give another --{field}") from exc


def _reachable(host: str) -> str:
    """An address of this machine for one to bind."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return f"[{host}]" if address.version == 6 else host


def _command(options: argparse.Namespace) -> list[str]:
    return [sys.executable, "-m", "airflow_mlscale.cli", "roma", "serve", *_arguments(options)]


def _arguments(options: argparse.Namespace) -> list[str]:
    """The same options as a command line."""
    arguments = []
    for name in _PASSED_ON:
        value = getattr(options, name)
        if value is not None:
            shown = value.resolve() if isinstance(value, Path) else value
            arguments += [f"--{name.replace('_', '-')}", str(shown)]
    return [*arguments, "--access-log"] if options.access_log else arguments
