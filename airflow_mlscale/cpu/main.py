"""Sub-commands ``mlscale agent`` and ``mlscale agent-status``."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

    from airflow_mlscale.cpu import server

    # argparse gives this class no public name
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = Any

log = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    """Add them to the ``mlscale`` command."""
    from airflow_mlscale.control import arbitration

    agent = commands.add_parser("agent", help="run the host agent, which divides this host's cores among controllers")
    agent.add_argument(
        "--socket", type=Path, metavar="PATH", help="Unix socket (default: run/agent.sock in $MLSCALE_HOME)"
    )
    agent.add_argument("--listen", metavar="HOST:PORT", help="listen on TCP too; needs --token-file")
    agent.add_argument("--token-file", type=Path, metavar="PATH", help="file with the bearer token asked for on TCP")
    agent.add_argument(
        "--policy", default="guaranteed_first", metavar="NAME", help=f"{', '.join(arbitration.POLICIES)}"
    )
    agent.add_argument("--cores", type=float, help="cores to divide (default: all of the host)")
    agent.add_argument("--base", metavar="DIR", help="cgroup for the groups, relative to the mount (default: its root)")
    agent.add_argument("--backend", default="auto", metavar="NAME", help="auto, cgroup-v1, cgroup-v2 or observe-only")
    agent.set_defaults(run=run_agent)

    status = commands.add_parser("agent-status", help="show the host agent's groups and what they use")
    status.add_argument("--agent", metavar="ADDRESS", help="unix:/path or http://host:port (default: $MLSCALE_AGENT)")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.set_defaults(run=show_status)


def run_agent(options: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT; every group is restored then."""
    import asyncio

    from airflow_mlscale import errors
    from airflow_mlscale.cpu import agent as agents
    from airflow_mlscale.cpu import detect, listeners, server
    from airflow_mlscale.cpu.adapters import cgroup

    settings = agents.Settings(policy=options.policy, cores=options.cores)
    token = listeners.token(options.token_file) if options.token_file else None
    if token and not options.listen:
        raise errors.InvalidInputError(
            "token-file", str(options.token_file), "only TCP asks for a token: give --listen"
        )
    sockets = [(listeners.tcp_socket(options.listen, token=token), token)] if options.listen else []
    path = options.socket or detect.default_socket()
    sockets.insert(0, (listeners.unix_socket(path), None))
    try:
        backend = detect.local(options.base, only=None if options.backend == "auto" else options.backend)
        if isinstance(backend, cgroup.CgroupPort):
            listeners.lock(backend.layout.bases()[0], field="base")
        # Who divides a busy host must not wait behind those it divides: of its session, and of all sessions.
        with contextlib.suppress(OSError):
            os.nice(-10)
            Path("/proc/self/autogroup").write_text("-10")
        log.info("host agent at %s divides %g cores through %s", path, backend.host_cores, backend.name)
        asyncio.run(_until_told(server.Service(agents.Agent(backend, settings)), sockets))
    finally:
        path.unlink(missing_ok=True)
    return 0


async def _until_told(service: server.Service, sockets: list[tuple[socket.socket, str | None]]) -> None:
    import asyncio
    import signal

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await service.run(sockets, stop)


def show_status(options: argparse.Namespace) -> int:
    """Print one line for each group."""
    import json

    from airflow_mlscale.cpu import detect

    agent = detect.agent(options.agent)
    rows = agent.status()
    if options.json:
        print(json.dumps({"host_cores": agent.host_cores, "enforces": agent.enforces, "groups": rows}))
        return 0
    print(f"{agent.host_cores:g} cores, shares are {'enforced' if agent.enforces else 'only recorded'}")
    for row in rows:
        print(_line(row))
    return 0


def _line(row: dict[str, Any]) -> str:
    ceiling, left_s = row["share"]["ceiling_cores"], row["lease_left_s"]
    return (
        f"{row['name']:<40} guaranteed {row['share']['guaranteed_cores']:5.2f}  "
        f"ceiling {'-' if ceiling is None else format(ceiling, '.2f'):>5}  "
        f"used {row['usage']['used_core_s']:9.1f} core-s  {len(row['members']):3} processes  "
        f"{'no lease' if left_s is None else f'lease for {left_s:.1f} s'}"
    )
