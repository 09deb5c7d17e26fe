"""``mlscale federated``: a federation on this machine. Across machines: `site_commands`; runs: `run_commands`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from airflow_mlscale.federated import run_commands, site_commands
from airflow_mlscale.federated.settings import FederationSettings


def add_commands(commands: Any) -> None:
    """Add ``federated up | down | status``, those of sites and those of runs to the ``mlscale`` command."""
    federated = commands.add_parser("federated", help="a federation: NVFlare server and sites, here or across machines")
    actions = federated.add_subparsers(dest="action", required=True, metavar="ACTION")
    up = actions.add_parser("up", help="provision and start server and sites, wait until they are ready")
    up.add_argument("--sites", required=True, help="names of the sites, separated by commas")
    up.add_argument("--threads", type=int, default=1, help="TensorFlow threads of each site's trainer (default 1)")
    up.add_argument("--timeout", type=float, default=120.0, help="seconds to wait for readiness (default 120)")
    up.add_argument("--encrypted", action="store_true", help="for runs whose weights the server must not read")
    up.add_argument(
        "--python-path",
        action="append",
        default=[],
        type=Path,
        help="directory with modules that sites and server import",
    )
    up.set_defaults(run=_up)
    down = actions.add_parser("down", help="end server, sites and whatever their jobs started")
    down.set_defaults(run=_down)
    status = actions.add_parser("status", help="who runs and which sites the server sees")
    status.set_defaults(run=_status)
    site_commands.add_commands(actions)
    run_commands.add_commands(actions)
    for action in (up, down, status):
        action.add_argument("--home", type=Path, help="state directory instead of $MLSCALE_HOME or ~/.mlscale")


def _at_home(options: argparse.Namespace) -> None:
    if options.home:
        os.environ["MLSCALE_HOME"] = str(options.home.expanduser().resolve())


def _up(options: argparse.Namespace) -> int:
    from airflow_mlscale.federated.adapters import local_federation

    _at_home(options)
    settings = FederationSettings(
        sites=tuple(site.strip() for site in options.sites.split(",") if site.strip()),
        start_timeout_s=options.timeout,
        trainer_threads=options.threads,
        encrypted=options.encrypted,
    )
    federation = local_federation.up(settings, python_path=[path.resolve() for path in options.python_path])
    print(f"federation ready on localhost:{federation.port} with sites {', '.join(federation.ready)}")
    print(f"AIRFLOW_CONN_MLSCALE_FEDERATED='{federation.connection}'")
    return 0


def _down(options: argparse.Namespace) -> int:
    from airflow_mlscale.federated.adapters import local_federation

    _at_home(options)
    ended = local_federation.down()
    print(f"ended {', '.join(ended)}" if ended else "nothing was running")
    return 0


def _status(options: argparse.Namespace) -> int:
    from airflow_mlscale.federated.adapters import local_federation, nvflare_admin
    from airflow_mlscale.runtime import processes

    _at_home(options)
    federation = local_federation.running()
    if not federation:
        print("not running")
        return 1
    seen = nvflare_admin.NvflareAdmin(federation.admin_kit).sites()
    print(f"server      localhost:{federation.port}")
    for site in federation.sites:
        alive = processes.service(local_federation.SITE_SERVICE + site) is not None
        words = "registered" if site in seen else "running, not registered" if alive else "not running"
        print(f"site        {site}: {words}")
    print(f"run store   {federation.run_store}")
    return 0 if set(federation.sites) <= set(seen) else 1
