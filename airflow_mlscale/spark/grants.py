"""What an application's groups used, and what its host gave it of what was asked for: pure bookkeeping."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_mlscale.cpu.ports import CpuShare

NEGLIGIBLE_CORES = 0.01
"""The kernel's weights are no finer."""


@dataclass
class Meter:
    """Core-seconds of one group; goes on counting when the group was made anew and its own meter began again."""

    last: float
    """Its latest reading, or the one from which on to count."""
    used_core_s: float = 0.0

    def read(self, reading: float) -> None:
        """Count what was used since the last reading."""
        anew = reading < self.last
        self.used_core_s += reading if anew else reading - self.last
        self.last = reading


def short(asked: CpuShare, granted: CpuShare) -> bool:
    """Whether less was guaranteed than was asked for."""
    return granted.guaranteed_cores < asked.guaranteed_cores - NEGLIGIBLE_CORES


def why_short(asked: CpuShare, granted: CpuShare, *, host_cores: float) -> str:
    """Why less was guaranteed than was asked for, to follow a decision's reason; empty when it was not."""
    if not short(asked, granted):
        return ""
    if granted.guaranteed_cores >= host_cores - NEGLIGIBLE_CORES:
        return f"; asked for {asked.guaranteed_cores:.2f} cores, the host has {host_cores:g}"
    return (
        f"; asked for {asked.guaranteed_cores:.2f} cores, granted {granted.guaranteed_cores:.2f}: "
        "the host's cores are promised to others"
    )
