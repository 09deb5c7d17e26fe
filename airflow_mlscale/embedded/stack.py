"""The local stack: host agent, Spark cluster, federation, ROMA and, if wanted, Airflow itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from airflow_mlscale import errors
from airflow_mlscale.cpu import detect
from airflow_mlscale.runtime import processes


@dataclass(frozen=True, kw_only=True)
class StackSettings:
    """What `up` starts."""

    sites: Sequence[str] = ("site-1", "site-2", "site-3")
    """Names of the federation's sites."""
    worker_cores: int = 2
    """Cores that the Spark worker offers."""
    worker_memory: str = "3g"
    """Memory that the Spark worker offers."""
    spark_port: int = 7077
    """Port of the Spark master on loopback."""
    roma_port: int = 8501
    """Port of the serving daemon on loopback."""
    airflow_port: int | None = None
    """Port of a standalone Airflow on loopback; None starts none."""
    dags_folder: Path | None = None
    """DAGs of that Airflow."""


def up(settings: StackSettings, *, told: Callable[[str], None]) -> None:
    """Start what is not running yet and wait until all of it is ready.

    Raises:
        TransientError: a service did not become ready; `down` ends the others.
    """
    _start_agent()
    told("host agent ready")
    engines = {
        "Spark": [
            "spark",
            "up",
            "--port",
            str(settings.spark_port),
            "--cores",
            str(settings.worker_cores),
            "--memory",
            settings.worker_memory,
        ],
        "Federation": ["federated", "up", "--sites", ",".join(settings.sites)],
        "ROMA": ["roma", "up", "--port", str(settings.roma_port)],
    }
    with ThreadPoolExecutor() as pool:
        starts = {name: pool.submit(_mlscale, arguments) for name, arguments in engines.items()}
        for name, start in starts.items():
            start.result()
            told(f"{name} ready")
    if settings.airflow_port:
        _start_airflow(settings, settings.airflow_port)
        told(f"Airflow ready at http://127.0.0.1:{settings.airflow_port}")


def connections() -> dict[str, str]:
    """Airflow connections of the services that are running, as ``AIRFLOW_CONN_…`` variables."""
    found = {service.name: service.details for service in processes.services()}
    values = {}
    if spark := found.get("spark-master"):
        host, _, port = spark["master"].rpartition(":")
        values["SPARK"] = json.dumps({"conn_type": "mlscale_spark", "host": host, "port": int(port)})
    if federated := found.get("federated-server"):
        values["FEDERATED"] = federated["connection"]
    if roma := found.get("roma"):
        scheme, _, address = roma["address"].partition("://")
        host, _, port = address.rpartition(":")
        values["ROMA"] = json.dumps({"conn_type": "mlscale_roma", "schema": scheme, "host": host, "port": int(port)})
    return {f"AIRFLOW_CONN_MLSCALE_{name}": value for name, value in values.items()}


def down() -> None:
    """End all of it: Airflow first, then the engines, the agent last.

    Raises:
        TransientError: what an engine's ``down`` said; the others are ended all the same.
    """
    failed = []
    processes.end_service("airflow")
    for engine in ("federated", "spark", "roma"):
        try:
            _mlscale([engine, "down"])
        except errors.TransientError as exc:
            failed.append(str(exc))
    processes.end_service("agent")
    if failed:
        raise errors.TransientError("\n".join(failed))


def _mlscale(arguments: Sequence[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "airflow_mlscale.cli", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        _, found, reason = done.stderr.partition("mlscale: ")  # how the command line begins a deliberate error
        tail = reason if found else "\n".join((done.stderr or done.stdout).splitlines()[-15:])
        raise errors.TransientError(f"mlscale {' '.join(arguments)} failed with exit code {done.returncode}:\n{tail}")


def _start_agent() -> None:
    if processes.service("agent") or os.environ.get(detect.AGENT_VARIABLE):  # one agent divides one host
        return
    log_path = processes.home() / "agent" / "agent.log"
    started = processes.detach(
        "agent", [sys.executable, "-m", "airflow_mlscale.cli", "agent"], details={}, log_path=log_path
    )
    processes.wait_until(_agent_answers, what="the host agent", timeout_s=60, alive=started.alive, log_path=log_path)


def _agent_answers() -> bool:
    try:
        detect.agent()
    except errors.UnreachableError:
        return False
    return True


def _start_airflow(settings: StackSettings, port: int) -> None:
    if processes.service("airflow"):
        return
    home = processes.home() / "airflow"
    address = f"http://127.0.0.1:{port}"
    env = {
        **os.environ,
        # Airflow starts its components as `airflow …` and Spark its drivers as `python3 …`.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(settings.dags_folder or home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "120",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__API__WORKERS": "1",
        # Airflow's servers for task logs have fixed ports otherwise; a second Airflow on this host would clash.
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(processes.free_port()),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(processes.free_port()),
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
        **connections(),
    }
    log_path = home / "standalone.log"
    started = processes.detach(
        "airflow", ["airflow", "standalone"], env=env, log_path=log_path, details={"address": address}
    )
    processes.wait_until(
        lambda: _healthy(address), what="Airflow", timeout_s=300, alive=started.alive, log_path=log_path, poll_s=1.0
    )


def _healthy(address: str) -> bool:
    try:
        parts = httpx.get(f"{address}/api/v2/monitor/health", timeout=5).json()
        return all(
            parts[name]["status"] == "healthy" for name in ("metadatabase", "scheduler", "triggerer", "dag_processor")
        )
    except (httpx.HTTPError, ValueError, KeyError):
        return False
