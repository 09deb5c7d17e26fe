"""``mlscale roma``: run the daemon here, or as a service of this machine."""

from __future__ import annotations

import argparse
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
from airflow_mlscale.roma import model_commands, reach, settings, token_commands, top, upgrade_command
from airflow_mlscale.runtime import journal, processes

SERVICE = reach.SERVICE

_OWN_LOG = Path("-")

_PASSED_ON = (
    "host",
    "port",
    "grpc_port",
    "state",
    "token_file",
    "tokens_file",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "rate",
    "model_root",
    "max_artefact_gb",
    "journal",
    "mode",
    "law",
    "dispatch",
    "utilisation",
    "period",
    "cpu",
    "gpus",
    "gpu_percentage",
    "max_body_mb",
    "max_queue",
    "give_up_factor",
    "execution_timeout",
    "access_log",
)


def add_commands(commands: Any) -> None:
    """Add ``roma serve|up|down|status``, and the commands of models and tokens."""
    parser = commands.add_parser("roma", help="serve models under latency objectives")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    serve = actions.add_parser("serve", help="run the daemon in the foreground")
    _add_options(serve)
    serve.add_argument(
        upgrade_command.FLAG, action="store_true", help="from the daemon that runs on the same --state, without a gap"
    )
    serve.set_defaults(run=_serve)
    up = actions.add_parser("up", help="start the daemon as a service and wait until it answers")
    _add_options(up)
    up.set_defaults(run=_up)
    down = actions.add_parser("down", help="stop the service")
    down.set_defaults(run=_down)
    status = actions.add_parser("status", help="print the service's models as JSON")
    reach.add_options(status)
    status.set_defaults(run=_status)
    upgrade_command.add_command(actions)
    model_commands.add_commands(actions)
    token_commands.add_commands(actions)
    top.add_commands(actions)


def _add_options(parser: argparse.ArgumentParser) -> None:
    gateway, queue, control = settings.GatewaySettings(), settings.QueueSettings(), settings.ControlSettings()
    parser.add_argument("--host", default=gateway.host, help="address to bind (default %(default)s)")
    parser.add_argument("--port", type=int, default=gateway.port, help="port (default %(default)s)")
    parser.add_argument("--grpc-port", type=int, help="port of gRPC (default: one less than --port)")
    parser.add_argument("--no-grpc", action="store_true", help="serve HTTP alone")
    parser.add_argument("--state", type=Path, help="directory for the desired state (default $MLSCALE_HOME/roma)")
    _add_security(parser)
    parser.add_argument("--model-root", type=Path, help="refuse artefacts outside this directory")
    parser.add_argument("--journal", type=Path, help="append every decision to this file as a JSON line")
    parser.add_argument("--mode", choices=get_args(settings.Mode), default=control.mode, help="default %(default)s")
    parser.add_argument("--law", choices=get_args(settings.LawName), default=control.law, help="default %(default)s")
    parser.add_argument(
        "--dispatch", choices=get_args(settings.DispatchName), default=control.dispatch, help="default %(default)s"
    )
    parser.add_argument("--utilisation", type=float, default=control.utilisation, help="default %(default)s")
    parser.add_argument("--period", type=float, default=control.period_s, help="seconds between decisions")
    parser.add_argument("--cpu", default="auto", help="CPU-share adapter (default %(default)s)")
    _add_gpus(parser)
    parser.add_argument("--max-body-mb", type=float, default=gateway.max_body_bytes / 2**20, help="default %(default)g")
    parser.add_argument(
        "--artefact-url",
        metavar="PREFIX",
        action="append",
        default=[],
        help="beginning of URLs that may be deployed; may be given again (default: any, with --model-root none)",
    )
    most_gb = settings.ArtefactSettings().max_bytes / 2**30
    parser.add_argument("--max-artefact-gb", type=float, default=most_gb, help="of a download, default %(default)g")
    parser.add_argument("--max-queue", type=int, default=queue.max_requests, help="requests waiting for each model")
    parser.add_argument("--give-up-factor", type=float, default=queue.give_up_factor, help="default %(default)g")
    hangs_s = settings.WorkerSettings().execution_timeout_s
    parser.add_argument(
        "--execution-timeout",
        type=float,
        default=hangs_s,
        help="seconds after which a worker counts as hung, default %(default)g",
    )
    parser.add_argument(
        "--access-log",
        nargs="?",
        type=Path,
        const=_OWN_LOG,
        metavar="FILE",
        help="log every request as a JSON line, to the file or the daemon's own log",
    )


def _add_gpus(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpus",
        default="none",
        metavar="none|auto|UUID,…",
        help="GPUs or MIG instances that models may run on (default %(default)s)",
    )
    parser.add_argument("--emulate-gpus", action="store_true", help="compute on the CPU what belongs on the GPUs")
    share = settings.GpuSettings().percentage
    parser.add_argument("--gpu-percentage", type=int, default=share, help="of each GPU's cores, where MPS runs")


def _add_security(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tokens-file", type=Path, help="tokens with scopes, as `mlscale roma token` makes them")
    parser.add_argument("--token-file", type=Path, help="file that holds one token of every scope")
    parser.add_argument("--tls-cert", type=Path, help="certificate chain, PEM; required beyond loopback, with a token")
    parser.add_argument("--tls-key", type=Path, help="its private key, PEM")
    parser.add_argument("--tls-client-ca", type=Path, help="serve only clients with a certificate of these, PEM")
    parser.add_argument("--plaintext", action="store_true", help="no TLS beyond loopback: a proxy before it encrypts")
    parser.add_argument("--rate", type=float, help="requests a second of each token or address (default: no limit)")


def _serve(options: argparse.Namespace) -> int:
    from airflow_mlscale.cpu import detect
    from airflow_mlscale.roma import daemon

    config = _config(options)
    _check_files(config)
    daemon.serve(config, detect.detect(options.cpu), take_over=options.take_over)
    return 0


def _up(options: argparse.Namespace) -> int:
    from airflow_mlscale.roma import daemon
    from airflow_mlscale.roma.adapters import grpc_server

    config = _config(options)
    secured = config.gateway.tls
    address = reach.local_address("https" if secured else "http", config.gateway.host, options.port)
    if found := processes.service(SERVICE):
        if [one for one in found.command if one != upgrade_command.FLAG] != _command(options):
            fix = "it runs with other options; end it first with `mlscale roma down`"
            raise errors.InvalidInputError("roma", found.details["address"], fix)
        print(f"ROMA already serves on {found.details['address']}")
        return 0
    _check_files(config)
    # Another server on this port would answer the question below and look like ours.
    with daemon.listening(config.gateway):
        pass
    if config.gateway.grpc_port:
        grpc_server.free(config.gateway.host, config.gateway.grpc_port)
    log_path = processes.home() / "logs" / "roma.log"
    command = _command(options)
    service = processes.detach(
        SERVICE, command, details=_details(config, address), log_path=log_path, grace_s=config.gateway.drain_s + 5
    )

    try:
        processes.wait_until(
            lambda: reach.answers(address, secured), what="ROMA", timeout_s=60, alive=service.alive, log_path=log_path
        )
    except BaseException:  # an interrupt too leaves nothing half-done
        processes.end_service(SERVICE)
        raise
    print(f"ROMA serves on {address}")
    return 0


def _down(_: argparse.Namespace) -> int:
    print("ROMA stopped" if processes.end_service(SERVICE) else "ROMA was not running")
    return 0


def _status(options: argparse.Namespace) -> int:
    roma = reach.connected(options)
    if roma is None:
        print("ROMA is not running")
        return 3
    with roma:
        print(json.dumps({"address": roma.address, "models": roma.models()}, indent=1))
    return 0


def _details(config: settings.Settings, address: str) -> dict[str, str]:
    """What is kept of a service for those who will ask it."""
    if config.gateway.tls is None:
        return {"address": address}
    return {"address": address, "certificate": str(config.gateway.tls.certificate.resolve())}


def _artefact(options: argparse.Namespace) -> settings.ArtefactSettings:
    if not 0 < options.max_artefact_gb < inf:
        raise errors.InvalidInputError("max_artefact_gb", options.max_artefact_gb, "give a size above 0")
    size = int(options.max_artefact_gb * 2**30)
    return settings.ArtefactSettings(urls=tuple(options.artefact_url), max_bytes=size)


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
            grpc_port=_grpc_port(options),
            token=reach.token(options.token_file),
            tokens_path=options.tokens_file,
            tls=_tls(options),
            plaintext=options.plaintext,
            rate_per_s=options.rate,
            max_body_bytes=int(max_body_bytes),
            buffered_bytes=max(settings.GatewaySettings().buffered_bytes, 4 * int(max_body_bytes)),
            access_log=options.access_log is not None,
            access_log_path=None if options.access_log in (None, _OWN_LOG) else options.access_log.resolve(),
        ),
        artefact=_artefact(options),
        queue=settings.QueueSettings(
            max_requests=options.max_queue,
            max_bytes=max(settings.QueueSettings().max_bytes, int(max_body_bytes)),
            give_up_factor=options.give_up_factor,
        ),
        control=settings.ControlSettings(
            mode=options.mode,
            law=options.law,
            dispatch=options.dispatch,
            utilisation=options.utilisation,
            period_s=options.period,
        ),
        worker=settings.WorkerSettings(execution_timeout_s=options.execution_timeout),
        gpu=_gpu(options),
    )


def _gpu(options: argparse.Namespace) -> settings.GpuSettings:
    named = options.gpus not in ("none", "auto")
    uuids = tuple(one.strip() for one in options.gpus.split(",")) if named else ()
    if not all(uuid.startswith(("GPU-", "MIG-")) for uuid in uuids):
        fix = "give none, auto, or UUIDs as `nvidia-smi -L` has them, with commas"
        raise errors.InvalidInputError("gpus", options.gpus, fix)
    return settings.GpuSettings(
        use=options.gpus != "none" or options.emulate_gpus,
        uuids=uuids,
        emulated=options.emulate_gpus,
        percentage=options.gpu_percentage,
    )


def _grpc_port(options: argparse.Namespace) -> int | None:
    """Beside the HTTP port unless it was given; any free one beside any free one."""
    if options.no_grpc:
        return None
    if options.grpc_port is not None:
        return int(options.grpc_port)
    return max(0, int(options.port) - 1)


def _tls(options: argparse.Namespace) -> settings.TlsSettings | None:
    files = {"tls_cert": options.tls_cert, "tls_key": options.tls_key}
    if not any(files.values()):
        if options.tls_client_ca:
            fix = "clients can only prove who they are over TLS: give --tls-cert and --tls-key too"
            raise errors.InvalidInputError("tls_client_ca", str(options.tls_client_ca), fix)
        return None
    for field, path in files.items():
        if path is None:
            raise errors.InvalidInputError(field, None, "a certificate and its key go together: give both")
    return settings.TlsSettings(certificate=options.tls_cert, key=options.tls_key, client_ca=options.tls_client_ca)


def _check_files(config: settings.Settings) -> None:
    """Open what the daemon will read and write, as it will, so that a bad path is told before anything starts.

    Raises:
        InvalidInputError: a file of tokens or certificates is none, a GPU is not there, or the state directory, the
            journal or the access log cannot be had.
    """
    from airflow_mlscale.roma import residents
    from airflow_mlscale.roma.adapters import nvml, tls, tokens

    if config.gateway.tokens_path:
        tokens.load(config.gateway.tokens_path)
    if config.gateway.tls:
        tls.Certificates(config.gateway.tls)
    if config.gpu.use:
        library = nvml.Nvml()
        try:
            residents.chosen(library.found(), config.gpu)
        finally:
            library.close()
    with _writable("access-log", config.gateway.access_log_path):
        if config.gateway.access_log_path:
            config.gateway.access_log_path.open("a").close()
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


def _command(options: argparse.Namespace) -> list[str]:
    return [sys.executable, "-m", "airflow_mlscale.cli", "roma", "serve", *_arguments(options)]


def _arguments(options: argparse.Namespace) -> list[str]:
    """The same options as a command line."""
    arguments = []
    for name in _PASSED_ON:
        value = getattr(options, name)
        if value is not None:
            shown = value.resolve() if isinstance(value, Path) and value != _OWN_LOG else value
            arguments += [f"--{name.replace('_', '-')}", str(shown)]
    for prefix in options.artefact_url:
        arguments += ["--artefact-url", prefix]
    flags = ("no_grpc", "plaintext", "emulate_gpus")
    return [*arguments, *(f"--{name.replace('_', '-')}" for name in flags if getattr(options, name))]
