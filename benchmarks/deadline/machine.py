"""The machine: what it is, how busy others keep it, and the greedy neighbour that a rival may get."""

from __future__ import annotations

import platform
import shlex
import sys
import threading
import time
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import httpx
import psutil

import airflow_mlscale
from airflow_mlscale.cpu.ports import CpuPort
from airflow_mlscale.runtime import processes

NEIGHBOUR = "bench-neighbour"
"""CPU group of the greedy processes: an ordinary one, which weighs as one ordinary process does."""
SAMPLE_S = 0.5
_LAW = (
    "control/*.py",
    *(
        f"spark/{name}.py"
        for name in ("estimate", "ledger", "model", "outlook", "paper", "policy", "profile", "settings")
    ),
)


def info() -> dict[str, object]:
    """What a reader needs to judge the numbers."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
    }


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "pyspark": version("pyspark"), "law": law()}


def law() -> str:
    """Names the policies' code: rows of different laws are not to be compared."""
    package, digest = Path(airflow_mlscale.__file__).parent, sha256()
    for path in sorted(found for name in _LAW for found in package.glob(name)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


@dataclass(frozen=True)
class Busy:
    """Core-seconds of the whole host since it was started."""

    used_core_s: float
    stolen_core_s: float
    """Taken by the hypervisor for others."""


def busy() -> Busy:
    times = psutil.cpu_times()
    # Time of guests is part of the user's already.
    used = times.user + times.nice + times.system + times.irq + times.softirq
    return Busy(used, times.steal)


class Neighbour:
    """Greedy processes, one for each core, that start after a while and end with the context."""

    def __init__(self, cpu: CpuPort, *, after_s: float) -> None:
        self._cpu = cpu
        self._timer = threading.Timer(after_s, self._begin)
        self._lock = threading.Lock()
        self._over = False
        self._greedy: list[processes.Child] = []
        self.used_core_s = 0.0

    def __enter__(self) -> Neighbour:
        self._cpu.open(NEIGHBOUR)
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._over = True
        self._timer.cancel()
        for child in self._greedy:
            child.end()
        self.used_core_s = self._cpu.usage(NEIGHBOUR).used_core_s
        self._cpu.close(NEIGHBOUR)

    def _begin(self) -> None:
        entries = [shlex.quote(str(path)) for path in self._cpu.entry_files(NEIGHBOUR)]
        joins = "".join(f"echo $$ > {entry}; " for entry in entries)
        command = f"{joins}exec {shlex.quote(sys.executable)} -c 'while True: pass'"
        with self._lock:
            if not self._over:
                count = range(psutil.cpu_count() or 1)
                self._greedy = [processes.spawn(NEIGHBOUR, ["sh", "-c", command], grace_s=1) for _ in count]


@dataclass
class Allocation:
    """Cores that the master has given to applications, integrated over time; use as a context manager."""

    web_url: str
    """Of a standalone master that runs nothing else meanwhile."""
    core_s: float = field(default=0.0, init=False)
    peak_cores: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="allocation", daemon=True)

    def __enter__(self) -> Allocation:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        cores, read_at = 0, time.monotonic()
        with httpx.Client(base_url=self.web_url, timeout=5.0, trust_env=False, follow_redirects=True) as client:
            while not self._stop.wait(SAMPLE_S):
                now = time.monotonic()
                self.core_s += cores * (now - read_at)
                read_at = now
                try:
                    cores = int(client.get("/json/").json()["coresused"])
                except (httpx.HTTPError, ValueError, KeyError):  # the last reading holds
                    continue
                self.peak_cores = max(self.peak_cores, cores)
