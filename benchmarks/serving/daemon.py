"""ROMA's daemon with settings that the command line does not have: ``python -m benchmarks.serving.daemon CONFIG``.

It is the product's daemon, with the product's CPU port; every share that is written is noted on its way there.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from airflow_mlscale.cpu import detect
from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import daemon, settings


class NotingPort:
    """A CPU port that writes every change of a share to a file, as `meter.events` reads it."""

    def __init__(self, port: cpu.CpuPort, notes: IO[str]) -> None:
        self._port = port
        self._notes = notes
        self._last: dict[str, cpu.CpuShare] = {}
        self._lock = threading.Lock()  # the port is called from several threads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    def apply(self, group: str, share: cpu.CpuShare, terms: cpu.Terms = cpu.Terms()) -> cpu.CpuShare:
        granted = self._port.apply(group, share, terms)
        with self._lock:
            if self._last.get(group) != granted:
                self._last[group] = granted
                self._note(group, granted.guaranteed_cores, granted.ceiling_cores)
        return granted

    def close(self, group: str) -> None:
        self._port.close(group)
        with self._lock:
            if self._last.pop(group, None):
                self._note(group, None, None)

    def _note(self, group: str, guaranteed: float | None, ceiling: float | None) -> None:
        line = {"at": time.monotonic(), "group": group, "guaranteed": guaranteed, "ceiling": ceiling}
        self._notes.write(json.dumps(line) + "\n")


def main() -> None:
    """Serve as the file says until SIGTERM."""
    config = json.loads(Path(sys.argv[1]).read_text())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    control = settings.ControlSettings()
    with Path(config["shares"]).open("a", buffering=1) as notes:
        port = NotingPort(detect.detect(config["cpu"]), notes)
        daemon.serve(
            settings.Settings(
                state_dir=Path(config["state"]),
                journal_path=Path(config["journal"]),
                gateway=settings.GatewaySettings(port=config["port"]),
                queue=settings.QueueSettings(**config["queue"]),
                control=replace(
                    control,
                    **{
                        **config["control"],
                        "paper": replace(control.paper, **config["paper"]),
                        "rival": replace(control.rival, **config["hpa"]),
                    },
                ),
            ),
            port,
        )


if __name__ == "__main__":
    main()
