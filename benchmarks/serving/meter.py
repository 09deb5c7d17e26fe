"""What a system costs: CPU that it used, by the kernel's count, and cores that it withheld from others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import psutil

GATEWAY = "gateway"
"""Last part of the name of a control plane's own group."""


@dataclass(frozen=True)
class Spent:
    """CPU seconds since their processes began."""

    system_s: float
    """Gateway, workers, control plane: everything below the process that was started, the dead included."""
    gateway_s: float
    """The one process that answers; 0 where there is none."""


def spent(root: int, gateway: int | None = None) -> Spent:
    """Read the meters of the process tree below ``root``.

    Processes that have ended count with the parent that reaped them, so nothing is lost as long as the topmost lives.
    """
    total = 0.0
    everything = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    for process in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # its own, and of children that were reaped
    own = sum(psutil.Process(gateway).cpu_times()[:2]) if gateway else 0.0
    return Spent(total, own)


@dataclass(frozen=True)
class Withheld:
    """Core-seconds, integrals over a window."""

    granted_core_s: float
    """Of guarantees."""
    cap_core_s: float
    """Of ceilings; a group without one may take the whole host. The control plane's own, which has none, counts with
    what it is guaranteed."""


def events(path: Path) -> list[dict[str, Any]]:
    """What `apps` and `daemon` wrote: lines of ``{at, group, guaranteed, ceiling}``; ``guaranteed`` null at its end."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def withheld(found: Iterable[dict[str, Any]], *, begin: float, end: float, host_cores: float) -> Withheld:
    """Integrate shares from ``begin`` to ``end``; at no time can more be withheld than the host has."""
    shares: dict[str, tuple[float, float]] = {}
    granted = cap = 0.0
    ordered = sorted(found, key=lambda one: float(one["at"]))
    last: dict[str, Any] = {"at": inf, "group": None}
    for event, following in pairwise([*ordered, last]):
        if event["guaranteed"] is None:
            shares.pop(event["group"], None)
        else:
            shares[event["group"]] = (event["guaranteed"], _ceiling(event))
        length_s = min(end, following["at"]) - max(begin, event["at"])
        if length_s > 0:
            granted += length_s * min(host_cores, sum(share for share, _ in shares.values()))
            cap += length_s * min(host_cores, sum(ceiling for _, ceiling in shares.values()))
    return Withheld(granted, cap)


def _ceiling(event: dict[str, Any]) -> float:
    if event["ceiling"] is not None:
        return float(event["ceiling"])
    return float(event["guaranteed"]) if event["group"].endswith(GATEWAY) else inf
