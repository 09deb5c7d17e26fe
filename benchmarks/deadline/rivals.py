"""Who competes: each rival as the settings and the hands with which the product's engine runs it.

Every rival runs under the same engine, in the same CPU groups, with the same meters. For those without a
controller its hands are tied: whatever it decides, the share stays what the rival's rule says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.control import schedule
from airflow_mlscale.cpu.ports import UNMANAGED, CpuPort, CpuShare, Terms
from airflow_mlscale.spark import estimate
from airflow_mlscale.spark.model import Mode, Observation, Plan, Profile
from airflow_mlscale.spark.settings import FLOOR_CORES, DeadlineSettings


class Share(StrEnum):
    """Who decides the share."""

    CONTROLLED = "controlled"
    """A policy, step by step."""
    UNMANAGED = "unmanaged"
    """Nobody: the application competes like any other process."""
    CONSTANT = "constant"
    """The profile, once: the smallest quota that should suffice."""


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One row of the table."""

    name: str
    says: str
    """For the report."""
    share: Share = Share.CONTROLLED
    policy: str = "remaining_work"
    mode: Mode = Mode.RESERVE
    profile: float | None = 1.0
    """All work of the warm profile is multiplied by this; None for a first run."""
    neighbour: bool = False
    """Whether greedy processes of normal weight start half-way to the deadline."""
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def knows_deadline(self) -> bool:
        """Whether a run depends on the deadline; one that does not counts for all of them."""
        return self.share is not Share.UNMANAGED

    @property
    def ours(self) -> bool:
        return self.name.startswith("ours")

    def settings(self) -> DeadlineSettings:
        """Every run is made, however its chances look."""
        return DeadlineSettings(mode=self.mode, policy=self.policy, on_infeasible="best_effort")


_DYNAMIC = {
    "spark.dynamicAllocation.enabled": "true",
    "spark.dynamicAllocation.shuffleTracking.enabled": "true",
    "spark.dynamicAllocation.minExecutors": "1",
    "spark.dynamicAllocation.maxExecutors": "2",
    "spark.executor.cores": "1",
    "spark.executor.memory": "1g",
}

RIVALS = {
    rival.name: rival
    for rival in (
        Rival(name="none", says="no control", share=Share.UNMANAGED, profile=None),
        Rival(name="fixed", says="best constant quota", share=Share.CONSTANT),
        Rival(
            name="dynamic_allocation",
            says="Spark's dynamic allocation, 1 to 2 executors",
            share=Share.UNMANAGED,
            profile=None,
            properties=_DYNAMIC,
        ),
        Rival(name="paper", says="the published policy", policy="paper"),
        Rival(name="ours_reserve", says="ours, reserve, warm profile"),
        Rival(name="ours_reserve_first", says="ours, reserve, first run", profile=None),
        Rival(name="ours_reserve_half", says="ours, reserve, profile × 0.5", profile=0.5),
        Rival(name="ours_reserve_double", says="ours, reserve, profile × 2", profile=2.0),
        Rival(name="ours_work_conserving", says="ours, work conserving, alone", mode=Mode.WORK_CONSERVING),
        Rival(
            name="ours_work_conserving_greedy",
            says="ours, work conserving, greedy neighbour",
            mode=Mode.WORK_CONSERVING,
            neighbour=True,
        ),
    )
}


_DRIVER = "-driver"
"""End of the name of a driver's group."""


@dataclass
class Hands:
    """`CpuPort` that keeps a constant share if it has one, and remembers what each group used at its end."""

    cpu: CpuPort
    constant: CpuShare | None = None
    """For the executors' group, the driver's stays unmanaged; None lets the controller act."""
    used_core_s: dict[str, float] = field(default_factory=dict)
    """By group, once it is closed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cpu, name)  # all that is not about giving

    def apply(self, group: str, share: CpuShare, terms: Terms = Terms()) -> CpuShare:
        if self.constant is None:
            return self.cpu.apply(group, share, terms)
        return self.cpu.apply(group, UNMANAGED if group.endswith(_DRIVER) else self.constant)

    def close(self, group: str) -> None:
        if group not in self.used_core_s:
            self.used_core_s[group] = self.cpu.usage(group).used_core_s
        self.cpu.close(group)

    def used(self) -> tuple[float, float]:
        """Core-seconds of the driver's groups and of the executors', all closed by now."""
        driver = sum(used for group, used in self.used_core_s.items() if group.endswith(_DRIVER))
        return driver, sum(self.used_core_s.values()) - driver


def hands(rival: Rival, cpu: CpuPort, profile: Profile | None, *, deadline_s: float, slots: float) -> Hands:
    """What the rival's controller may move."""
    match rival.share:
        case Share.CONTROLLED:
            return Hands(cpu)
        case Share.UNMANAGED:
            return Hands(cpu, UNMANAGED)
        case Share.CONSTANT:
            plan = estimate.best_plan(profile, None)
            if plan is None:
                raise errors.InvalidInputError(
                    "rival", rival.name, "a constant quota follows from a warm profile: run uncontrolled first"
                )
            aim_s = rival.settings().aim * deadline_s
            return Hands(cpu, CpuShare.strict(constant_cores(plan, aim_s, slots=slots)))


def constant_cores(plan: Plan, time_s: float, *, slots: float) -> float:
    """The smallest share that brings a whole run to its end within ``time_s``, by its profile."""
    nothing = Observation(now=0.0, progress=None, used_core_s=0.0, elapsed_s=0.0)
    left = estimate.left(plan, nothing, estimate.Beta(), slots=slots, lead_left_s=0.0)
    # A quota slows the start of the executors too.
    start = schedule.Node(
        phases=schedule.phases(plan.startup_core_s, tasks=int(slots), slots=slots),
        gap_s=max(0.0, plan.lead_s - plan.startup_core_s / slots),
    )
    rest = (replace(node, after=tuple(place + 1 for place in node.after) or (0,)) for node in left.nodes)
    cores = schedule.cores_within((start, *rest), time_s - left.tail_s)
    return round(min(slots, max(FLOOR_CORES, cores)), 3)


def distorted(profile: Profile, factor: float) -> Profile:
    """The profile of an application that took so many times the work."""
    plans = tuple(
        replace(
            plan,
            startup_core_s=plan.startup_core_s * factor,
            stages=tuple(
                replace(stage, core_s=stage.core_s * factor, longest_core_s=stage.longest_core_s * factor)
                for stage in plan.stages
            ),
        )
        for plan in profile.plans
    )
    return replace(profile, plans=plans)
