"""``mlscale roma upgrade``: another daemon, of the program as it is installed now, takes over from the service."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from airflow_mlscale.roma import reach
from airflow_mlscale.runtime import processes

FLAG = "--take-over"
"""Of ``roma serve``."""

_SUCCESSOR = f"{reach.SERVICE}-upgrade"


def add_command(actions: Any) -> None:
    """Add ``roma upgrade``."""
    upgrade = actions.add_parser("upgrade", help="let the program as it is installed now take over from the service")
    upgrade.add_argument("--timeout", type=float, default=900.0, help="seconds for it to load all models (%(default)g)")
    upgrade.set_defaults(run=_upgrade)


def _upgrade(options: argparse.Namespace) -> int:
    found = processes.service(reach.SERVICE)
    if found is None:
        print("ROMA is not running")
        return 3
    arguments = [one for one in found.command[1:] if one != FLAG]
    log_path = Path(found.log) if found.log else None
    successor = processes.detach(
        _SUCCESSOR, [sys.executable, *arguments, FLAG], details=found.details, log_path=log_path, grace_s=15
    )
    try:
        processes.wait_until(
            lambda: not found.alive(),
            what="the new ROMA",
            timeout_s=options.timeout,
            alive=successor.alive,
            log_path=log_path,
        )
    except BaseException:  # the running one goes on
        processes.end_service(_SUCCESSOR)
        raise
    processes.rename_service(_SUCCESSOR, reach.SERVICE)
    print(f"ROMA was replaced and serves on {found.details['address']}")
    return 0
