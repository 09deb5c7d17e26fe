"""Finding the executors of an application in this host's process table."""

from __future__ import annotations

import psutil

MAIN_CLASS = "org.apache.spark.executor.CoarseGrainedExecutorBackend"
"""Of an executor on any cluster manager but Mesos."""


class LocalExecutors:
    """`ExecutorFinder` by command line: the backend's main class with the application's id."""

    def find(self, application_id: str) -> frozenset[int]:
        found = set()
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or ()
            if MAIN_CLASS in words and application_id in words:
                found.add(process.pid)
        return frozenset(found)


class OneProcess:
    """`ExecutorFinder` for local mode, where the driver is the executor."""

    def __init__(self) -> None:
        self.pid: int | None = None

    def find(self, application_id: str) -> frozenset[int]:
        return frozenset(() if self.pid is None else (self.pid,))
