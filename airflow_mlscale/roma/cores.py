"""The CPU groups of model workers: opened before a worker starts, joined by it, closed behind it.

Serving must go on when shares cannot be managed: a port that fails costs the guarantee, not the model.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import settings

log = logging.getLogger(__name__)


def gateway_share(control: settings.ControlSettings, *, used_cores: float = 0.0) -> tuple[cpu.CpuShare, cpu.Terms]:
    """What the daemon's own process asks for, using so many cores now: every request passes it twice."""
    wanted = min(1.0, used_cores / control.gateway_utilisation)  # it computes in one thread
    share = cpu.CpuShare(guaranteed_cores=max(control.gateway_cores, wanted))
    return share, cpu.Terms(priority=cpu.SERVING_PRIORITY, ttl_s=control.lease_ttl_s)


class CoreGroups:
    """A `CpuPort` for the event loop: calls run in a thread, failures are logged."""

    def __init__(self, port: cpu.CpuPort) -> None:
        self.port = port

    @property
    def host_cores(self) -> float:
        return self.port.host_cores

    async def open(self, group: str) -> tuple[Path, ...]:
        """Create the group; returns the files a worker writes its id to."""
        try:
            await asyncio.to_thread(self.port.open, group)
            return self.port.entry_files(group)
        except Exception as exc:  # an unmanaged worker serves too
            log.warning("cannot manage the cores of %s: %s", group, exc)
            return ()

    async def admit(self, group: str, pid: int) -> None:
        """Move a worker in, where writing to a file does not do it."""
        try:
            if not self.port.entry_files(group):
                await asyncio.to_thread(self.port.admit, group, pid)
        except Exception as exc:  # an unmanaged worker serves too
            log.warning("cannot move worker %d into %s: %s", pid, group, exc)

    async def enter(self, group: str, share: cpu.CpuShare, terms: cpu.Terms) -> None:
        """Move this process itself into a group of its own."""
        try:
            await asyncio.to_thread(self.port.open, group)
            # The share first: what the port starts for it must not be a member, or the group never empties.
            await asyncio.to_thread(self.port.apply, group, share, terms)
            await asyncio.to_thread(self.port.admit, group, os.getpid())
        except Exception as exc:  # an unmanaged gateway serves too
            log.warning("cannot manage the cores of the gateway: %s", exc)

    async def sweep(self, prefix: str) -> None:
        """Close the groups that an earlier life of this daemon left."""
        try:
            for info in await asyncio.to_thread(self.port.groups):
                if info.name.startswith(prefix):
                    await self.open(info.name)
                    await self.close(info.name)
        except Exception as exc:  # what is left limits nobody
            log.warning("cannot look for groups that were left: %s", exc)

    async def close(self, group: str) -> None:
        try:
            await asyncio.to_thread(self.port.close, group)
        except Exception as exc:  # the group is empty; the port cleans up what is left at its own end
            log.warning("cannot close %s: %s", group, exc)
