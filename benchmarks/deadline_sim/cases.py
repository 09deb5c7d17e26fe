"""Who is compared under which conditions, and one row per run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from random import Random
from typing import Any

from airflow_mlscale.spark.model import Mode, Profile
from airflow_mlscale.spark.settings import DeadlineSettings
from benchmarks.deadline_sim import applications, closed_loop, draws

SYSTEMS = ("none", "fixed_oracle", "paper", "ours_reserve", "ours_work_conserving", "ours_work_conserving_greedy")
"""No control; the least constant quota that would have met the deadline, found by trying; the published law; ours."""
PROFILES = ("warm", "half", "double", "first", "partly")
"""Learned from 1–3 runs; the same off by ×0.5 and ×2; none; stages off, and a plan that is partly another one."""
SLACKS = (1.2, 1.5, 2.0)
"""Deadline ÷ what the very same run takes with the host for itself."""
ANY_PROFILE = "any"
"""Of systems that have none."""
_IDLE_LEFT = 0.02
"""Part of the host that a greedy neighbour of normal weight leaves to the idle class."""


@dataclass(frozen=True)
class Cell:
    """One condition."""

    system: str
    profile: str
    slack: float

    @property
    def name(self) -> str:
        return f"{self.system}/{self.profile}/{self.slack:g}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run."""

    system: str
    profile: str
    slack: float
    shape: str
    seed: int
    slots: int
    uncontrolled_s: float
    deadline_s: float
    finish_s: float
    granted_core_s: float
    cap_core_s: float
    used_core_s: float
    work_core_s: float
    """Used by the same run without control."""
    peak_cores: float
    outlook: str | None
    """What was said at the first step."""
    mishaps: tuple[str, ...]

    @property
    def met(self) -> bool:
        return self.finish_s <= self.deadline_s

    @property
    def error(self) -> float:
        return abs(self.finish_s - self.deadline_s) / self.deadline_s

    @property
    def granted_ratio(self) -> float:
        """Mean granted cores ÷ (work ÷ deadline)."""
        return self.granted_core_s / self.finish_s / (self.work_core_s / self.deadline_s)


def cells(only: Sequence[str] = ()) -> list[Cell]:
    """All conditions whose name ``system/profile/slack`` matches one of the patterns."""
    found = [
        Cell(system, profile, slack)
        for system in SYSTEMS
        for profile in ((ANY_PROFILE,) if system in ("none", "fixed_oracle") else PROFILES)
        for slack in SLACKS
    ]
    return [cell for cell in found if not only or any(fnmatchcase(cell.name, f"{pattern}*") for pattern in only)]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One seed: an application, what was learned of it, and the run that is repeated under each system."""

    seed: int
    application: applications.Application
    profile: Profile | None
    draw: draws.Draw
    alone: closed_loop.Outcome
    """The run without control."""


def trial(
    seed: int, *, partly: bool = False, length_s: tuple[float, float] = (60.0, 300.0), shape: str | None = None
) -> Trial:
    """The trial of a seed; ``partly``: the run follows another plan here and there, and the profile is wrong."""
    shapes = list(applications.SHAPES)
    rng = Random(f"{seed}")
    application = applications.random_application(shape or shapes[seed % len(shapes)], rng, length_s=length_s)
    plans = [
        plan
        for _ in range(rng.randint(1, 3))
        if (plan := closed_loop.uncontrolled(draws.draw(application, rng)).plan) is not None
    ]
    profile = closed_loop.learned(plans)
    if partly:
        rng = Random(f"{seed} partly")
        profile = _off_in_parts(profile, rng)
    draw = draws.draw(application, rng, draws.OTHER_PLAN if partly else draws.USUAL)
    return Trial(seed=seed, application=application, profile=profile, draw=draw, alone=closed_loop.uncontrolled(draw))


def run(
    trial_: Trial, cell: Cell, tuning: Mapping[str, Any] | None = None, *, trace: bool = False
) -> closed_loop.Outcome:
    """One run under one condition; ``tuning`` overrides settings by name."""
    deadline_s = cell.slack * trial_.alone.finish_s
    host = float(trial_.application.slots)
    if cell.system == "none":
        return trial_.alone
    if cell.system == "fixed_oracle":
        return _oracle(trial_, deadline_s)
    settings = DeadlineSettings(
        mode=Mode.WORK_CONSERVING if "work_conserving" in cell.system else Mode.RESERVE,
        policy="paper" if cell.system == "paper" else "remaining_work",
        on_infeasible="best_effort",
    )
    settings = replace(settings, **(tuning or {}))

    def free(t_s: float) -> float:
        greedy = cell.system.endswith("greedy") and t_s > deadline_s / cell.slack / 2
        return host * (_IDLE_LEFT if greedy else 1.0)

    return closed_loop.controlled(
        trial_.draw,
        settings=settings,
        profile=_off(trial_.profile, cell.profile),
        deadline_s=deadline_s,
        free=free if settings.mode is Mode.WORK_CONSERVING else None,
        trace=trace,
    )


def row(trial_: Trial, cell: Cell, outcome: closed_loop.Outcome) -> Row:
    return Row(
        system=cell.system,
        profile=cell.profile,
        slack=cell.slack,
        shape=trial_.application.shape,
        seed=trial_.seed,
        slots=trial_.application.slots,
        uncontrolled_s=round(trial_.alone.finish_s, 2),
        deadline_s=round(cell.slack * trial_.alone.finish_s, 2),
        finish_s=round(outcome.finish_s, 2),
        granted_core_s=round(outcome.granted_core_s, 2),
        cap_core_s=round(outcome.cap_core_s, 2),
        used_core_s=round(outcome.used_core_s, 2),
        work_core_s=round(trial_.alone.used_core_s, 2),
        peak_cores=round(outcome.peak_cores, 2),
        outlook=outcome.first_outlook,
        mishaps=tuple(sorted(trial_.draw.mishaps)),
    )


def rows(
    seed: int,
    wanted: Sequence[Cell],
    *,
    length_s: tuple[float, float],
    tuning: Mapping[str, Any] | None = None,
    shape: str | None = None,
) -> list[Row]:
    """All rows of a seed."""
    found = []
    for partly in (False, True):
        mine = [cell for cell in wanted if (cell.profile == "partly") is partly]
        if mine:
            same = trial(seed, partly=partly, length_s=length_s, shape=shape)
            found += [row(same, cell, run(same, cell, tuning)) for cell in mine]
    return found


def _oracle(trial_: Trial, deadline_s: float) -> closed_loop.Outcome:
    """Bisection over runs of the same draw: a constant that nobody could have known."""
    high = float(trial_.application.slots)
    low = min(high, trial_.alone.used_core_s / deadline_s)
    best = trial_.alone
    for _ in range(7):
        middle = (low + high) / 2
        outcome = closed_loop.fixed(trial_.draw, middle, deadline_s=deadline_s)
        if outcome.finish_s <= deadline_s:
            best, high = outcome, middle
        else:
            low = middle
    return best


def _off(profile: Profile | None, how: str) -> Profile | None:
    factor = {"half": 0.5, "double": 2.0, "first": None}.get(how, 1.0)
    return None if factor is None or profile is None else _scaled(profile, lambda key: factor)


def _off_in_parts(profile: Profile | None, rng: Random) -> Profile | None:
    """Every third stage off by ×0.5–2."""
    if profile is None:
        return None
    factors: dict[str, float] = {}
    return _scaled(
        profile,
        lambda key: factors.setdefault(key, 2 ** rng.uniform(-1, 1) if rng.random() < 1 / 3 else 1.0),
    )


def _scaled(profile: Profile, factor: Callable[[str], float]) -> Profile:
    plans = tuple(
        replace(
            plan,
            stages=tuple(
                replace(
                    stage,
                    core_s=stage.core_s * factor(stage.key),
                    longest_core_s=stage.longest_core_s * factor(stage.key),
                )
                for stage in plan.stages
            ),
            startup_core_s=plan.startup_core_s * factor("start-up"),
        )
        for plan in profile.plans
    )
    return replace(profile, plans=plans)
