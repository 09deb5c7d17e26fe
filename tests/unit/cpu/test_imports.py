"""What the CPU rooms load, and what they do not."""

from __future__ import annotations

import subprocess
import sys


def loaded(modules: str) -> set[str]:
    code = f"import sys, {modules}\nprint(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_the_agent_never_loads_airflow() -> None:
    names = loaded("airflow_mlscale.cpu.server, airflow_mlscale.cpu.detect, airflow_mlscale.cpu.main")
    assert names.isdisjoint({"airflow", "tensorflow", "pyspark", "nvflare", "pandas", "pyarrow", "fastapi"})


def test_the_command_line_and_the_watchdog_are_light() -> None:
    heavy = {"airflow", "httpx", "uvicorn", "starlette", "psutil", "prometheus_client"}
    assert loaded("airflow_mlscale.cpu.main").isdisjoint(heavy)
    assert loaded("airflow_mlscale.cpu.watchdog").isdisjoint(heavy)
