"""``mlscale spark``: a local standalone cluster from the pip package, and the profiles of applications."""

from __future__ import annotations

import argparse
from typing import Any

from airflow_mlscale.spark import profile_commands
from airflow_mlscale.spark.adapters import cluster


def add_commands(commands: Any) -> None:
    """Add ``spark up | down | status | profile``."""
    defaults = cluster.ClusterSettings()
    spark = commands.add_parser("spark", help="a local Spark cluster, and what was learned about applications")
    actions = spark.add_subparsers(dest="action", required=True, metavar="ACTION")

    up = actions.add_parser("up", help="start a master and workers on loopback, unless they run")
    up.add_argument("--workers", type=int, help=f"worker processes (default {defaults.workers})")
    up.add_argument("--cores", type=int, help=f"cores of each worker (default {defaults.cores})")
    up.add_argument("--memory", help=f"memory of each worker (default {defaults.memory})")
    up.add_argument("--port", type=int, default=defaults.port, help="port of the master (default %(default)s)")
    up.set_defaults(run=_up)

    actions.add_parser("down", help="end all of it").set_defaults(run=_down)
    actions.add_parser("status", help="tell what runs; exit code 3 when nothing does").set_defaults(run=_status)
    profile_commands.add_commands(actions)


def _up(options: argparse.Namespace) -> int:
    names = ("workers", "cores", "memory")
    asked = {name: value for name in names if (value := getattr(options, name)) is not None}
    running = cluster.up(cluster.ClusterSettings(port=options.port, **asked), asked=asked)
    print(f"Spark master at {running.details['master']}, web page {running.details['web_url']}")
    return 0


def _down(_: argparse.Namespace) -> int:
    ended = cluster.down()
    print(f"ended {', '.join(ended)}" if ended else "nothing was running")
    return 0


def _status(_: argparse.Namespace) -> int:
    services, master = cluster.status()
    if not services:
        print("no local Spark cluster runs; mlscale spark up starts one")
        return 3
    for service in services:
        print(f"{service.name}: process {service.pid}, log {service.log}")
    if master is None:
        print("the master does not answer")
        return 3
    print(f"{master.status}: {len(master.workers)} worker(s), {master.cores} cores")
    return 0
