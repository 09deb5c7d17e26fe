"""The local stack: host agent, Spark cluster, federation and ROMA, each started by its own command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from airflow_mlscale import errors
from airflow_mlscale.runtime import processes

ENGINES = ("agent", "spark", "federated", "roma")


@dataclass(frozen=True, kw_only=True)
class StackSettings:
    """What `up` starts."""

    sites: Sequence[str] = ("site-1", "site-2", "site-3")
    """Names of the federation's sites."""
    worker_cores: int = 2
    """Cores that the Spark worker offers."""
    worker_memory: str = "3g"
    """Memory that the Spark worker offers."""
    roma_port: int = 8500
    """Port of the serving daemon on loopback."""
    python_path: Sequence[Path] = ()
    """Directories with the users' own model and data modules."""


def up(settings: StackSettings, *, told: Callable[[str], None]) -> dict[str, str]:
    """Start what is not running yet and wait until all of it is ready.

    Returns:
        Airflow connections of the three engines, as ``AIRFLOW_CONN_…`` variables.

    Raises:
        TransientError: a service did not become ready; the others are left for `down`.
    """
    _start_agent()
    told("host agent ready")
    with ThreadPoolExecutor() as pool:
        starts = {
            "Spark": pool.submit(_start_spark, settings),
            "federation": pool.submit(_start_federation, settings),
            "ROMA": pool.submit(_start_roma, settings),
        }
        for name, start in starts.items():
            start.result()
            told(f"{name} ready")
    return connections()


def connections() -> dict[str, str]:
    """Airflow connections of the engines that are running, as environment variables."""
    found = {
        "AIRFLOW_CONN_MLSCALE_SPARK": ("spark-master", "connection"),
        "AIRFLOW_CONN_MLSCALE_FEDERATED": ("federated-server", "connection"),
        "AIRFLOW_CONN_MLSCALE_ROMA": ("roma", "connection"),
    }
    values = {}
    for variable, (name, detail) in found.items():
        service = processes.service(name)
        if service and detail in service.details:
            values[variable] = service.details[detail]
    return values


def down() -> None:
    """End all of it, engines first, the agent last."""
    for engine in ("federated", "spark"):
        _mlscale([engine, "down"])
    processes.end_service("roma")
    processes.end_service("agent")


def status() -> Mapping[str, bool]:
    """Which recorded services are alive."""
    return {found.name: True for found in processes.services()}
