"""``mlscale up | down | status``: the whole stack on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from airflow_mlscale.embedded import stack
from airflow_mlscale.runtime import processes


def add_commands(commands: Any) -> None:
    """Add the commands to the ``mlscale`` parser."""
    up = commands.add_parser("up", help="start the host agent and all engines on this machine")
    up.add_argument("--sites", default="site-1,site-2,site-3", help="names of the federation's sites")
    up.add_argument("--worker-cores", type=int, default=2, help="cores of the Spark worker")
    up.add_argument("--worker-memory", default="3g", help="memory of the Spark worker")
    up.add_argument("--spark-port", type=int, default=7077, help="port of the Spark master (default %(default)s)")
    up.add_argument("--roma-port", type=int, default=8501, help="port of the serving daemon")
    up.add_argument("--airflow-port", type=int, help="start a standalone Airflow on this port too")
    up.add_argument("--dags-folder", type=Path, help="DAGs of that Airflow")
    up.set_defaults(run=_up)
    commands.add_parser("down", help="end everything that `up` started").set_defaults(run=_down)
    commands.add_parser("status", help="list the local services that run").set_defaults(run=_status)


def _up(options: argparse.Namespace) -> int:
    settings = stack.StackSettings(
        sites=tuple(options.sites.split(",")),
        worker_cores=options.worker_cores,
        worker_memory=options.worker_memory,
        spark_port=options.spark_port,
        roma_port=options.roma_port,
        airflow_port=options.airflow_port,
        dags_folder=options.dags_folder,
    )
    before = bool(processes.services())
    try:
        stack.up(settings, told=print)
    except BaseException:
        if not before:  # leave nothing half-done, but end nothing that ran before
            stack.down()
        raise
    for variable, uri in stack.connections().items():
        print(f"export {variable}='{uri}'")
    return 0


def _down(options: argparse.Namespace) -> int:
    stack.down()
    return 0


def _status(options: argparse.Namespace) -> int:
    running = processes.services()
    for found in running:
        print(f"{found.name:24} pid {found.pid}  " + "  ".join(f"{k}={v}" for k, v in found.details.items()))
    if not running:
        print("nothing is running")
    return 0
