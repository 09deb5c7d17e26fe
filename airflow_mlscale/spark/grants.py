"""Asking a host for an application's shares, and what it gave of what was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from airflow_mlscale import errors
from airflow_mlscale.cpu.ports import IDLE, UNMANAGED, CpuPort, CpuShare, Terms
from airflow_mlscale.spark.model import Decision

NEGLIGIBLE_CORES = 0.01
"""The kernel's weights are no finer."""
ALIVE_CORES = 0.05
"""Part of a share that is kept whoever else comes first: executors and drivers without any CPU miss heartbeats."""


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


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What the host gave, beside what was asked for."""

    asked: CpuShare
    share: CpuShare
    """Of the executors."""
    driver_cores: float = 0.0
    """Guaranteed to their driver."""
    host_cores: float
    refused: str = ""
    """Why not even the least cores are promised, if they are not."""

    @property
    def short(self) -> bool:
        """Whether less was guaranteed than was asked for."""
        return self.share.guaranteed_cores < self.asked.guaranteed_cores - NEGLIGIBLE_CORES

    @property
    def long(self) -> bool:
        """Whether clearly more is guaranteed than was asked for, as where pods can give nothing back."""
        return self.share.guaranteed_cores > 1.1 * self.asked.guaranteed_cores + ALIVE_CORES

    @property
    def contended(self) -> bool:
        """Whether that is because of others."""
        own = self.share.guaranteed_cores + self.driver_cores
        return bool(self.refused) or (self.short and own < self.host_cores - NEGLIGIBLE_CORES)

    @property
    def why(self) -> str:
        """Why not as much was guaranteed as was asked for, to follow a decision's reason; empty when it was."""
        if self.refused:
            return f"; {self.refused}"
        if self.long:
            return f"; {self.share.guaranteed_cores:.2f} cores stay guaranteed, which is more"
        if not self.short:
            return ""
        asked = f"; asked for {self.asked.guaranteed_cores:.2f} cores, "
        if self.contended:
            return f"{asked}granted {self.share.guaranteed_cores:.2f}: the host's cores are promised to others"
        driver = f", {self.driver_cores:.2f} of them for the driver" if self.driver_cores else ""
        return f"{asked}the host has {self.host_cores:g}{driver}"


NOTHING = Grant(asked=IDLE, share=IDLE, host_cores=0.0)
"""While nobody answers."""
UNASKED = Grant(asked=UNMANAGED, share=UNMANAGED, host_cores=0.0)
"""Before the first time."""


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Asks for the shares of one application's groups."""

    cpu: CpuPort
    group: str
    driver_group: str | None
    min_cores: float
    """Least cores of the executors that the user asked for."""
    deadline_at: float
    ttl_s: float

    def ask(self, decision: Decision, *, strict: bool) -> Grant:
        """Ask for what was decided.

        Args:
            decision: of the policy.
            strict: refuse to go on without `min_cores`.

        Raises:
            AdmissionRefusedError: the host cannot guarantee the least cores, and ``strict``.
        """
        asked = CpuShare(guaranteed_cores=decision.guaranteed_cores, ceiling_cores=decision.ceiling_cores)
        share, refused = self._granted(self.group, asked, self.min_cores, strict=strict and self.min_cores > 0)
        driver = 0.0
        if self.driver_group:
            own = CpuShare(guaranteed_cores=decision.driver_cores)
            driver = self._granted(self.driver_group, own, 0.0, strict=False)[0].guaranteed_cores
        return Grant(asked=asked, share=share, driver_cores=driver, host_cores=self.cpu.host_cores, refused=refused)

    def _granted(self, group: str, asked: CpuShare, least: float, *, strict: bool) -> tuple[CpuShare, str]:
        """What is granted, and why that lacks the least cores, if it does.

        An agent that was restarted may have promised them to others meanwhile: no reason to go without a share.
        """
        minimum = min(max(least, ALIVE_CORES), asked.guaranteed_cores)
        terms = Terms(minimum_cores=minimum, deadline_at=self.deadline_at, ttl_s=self.ttl_s)
        try:
            return self.cpu.apply(group, asked, terms), ""
        except errors.AdmissionRefusedError as exc:
            if strict:
                raise
            return self.cpu.apply(group, asked, replace(terms, minimum_cores=0.0)), str(exc)
