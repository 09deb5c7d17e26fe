"""Under which conditions systems are compared, and one row per run and deadline."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from airflow_mlscale.federated import model, simulation
from airflow_mlscale.federated.settings import Budget, RunSettings
from benchmarks.federated import data, law, learning
from benchmarks.federated.systems import PACED_ROUNDS, SYSTEMS, System

HELD_OUT_SEEDS = 100
"""Seeds from here on were never looked at while the policy was tuned."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is asked of a federation."""

    data: str
    kind: str
    """``slack``, ``tight`` or ``tightest``; ``infeasible`` for a target or deadline out of reach."""
    target: float
    deadline_s: float

    @property
    def name(self) -> str:
        return f"{self.data}/{self.kind}"

    @property
    def infeasible(self) -> bool:
        return self.kind.startswith("infeasible")


LEARNING: Mapping[str, Mapping[str, Any]] = {"digits": {"rate": 0.1}, "flights": {"rate": 0.03}}
CASES = (
    Case(data="digits", kind="slack", target=0.95, deadline_s=2400),
    Case(data="digits", kind="tight", target=0.95, deadline_s=900),
    Case(data="digits", kind="tightest", target=0.95, deadline_s=500),
    Case(data="digits", kind="infeasible_target", target=0.995, deadline_s=2400),
    Case(data="digits", kind="infeasible_deadline", target=0.95, deadline_s=180),
    Case(data="flights", kind="slack", target=0.49, deadline_s=2400),
    Case(data="flights", kind="tight", target=0.49, deadline_s=600),
    Case(data="flights", kind="tightest", target=0.49, deadline_s=300),
    Case(data="flights", kind="infeasible_target", target=0.65, deadline_s=2400),
)
"""Simulated, all of 20 or 16 sites; deadlines are seconds of simulated time."""
REAL = Case(data="digits", kind="real", target=0.95, deadline_s=240)
"""On NVFlare processes, six sites at a tenth of the simulated times."""
MAX_ROUNDS = 1000
BATCH_SIZE = 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run, judged at one deadline."""

    system: str
    data: str
    kind: str
    seed: int
    target: float
    deadline_s: float
    reached: bool
    met_deadline: bool
    rounds: int
    wall_s: float
    node_s: float
    compute_s: float
    gigabytes: float
    quality: float
    """The best value by then."""
    status: str
    static: bool
    law: str = ""
    """Of the policies' code, see `results.law`."""
    simulated: bool = True


def chosen(patterns: Sequence[str]) -> list[tuple[str, Case]]:
    """Systems and cases that match a pattern such as ``ours_*/digits/slack``; all but needless ones without."""
    pairs = [(system, case) for case in CASES for system in SYSTEMS if not _needless(system, case)]
    return [
        (system, case)
        for system, case in pairs
        if not patterns or any(fnmatchcase(f"{system}/{case.name}", each + "*") for each in patterns)
    ]


def _needless(system: str, case: Case) -> bool:
    """What cannot be reached is only of interest for who says so."""
    return case.infeasible and not system.startswith("ours")


def rows(seed: int, wanted: Sequence[tuple[str, Case]]) -> list[Row]:
    """All rows of one seed; a system that does not look at its deadline runs once for all of them."""
    found: list[Row] = []
    for name, system in SYSTEMS.items():
        mine = [case for each, case in wanted if each == name]
        for group in _groups(system, mine):
            longest = max(group, key=lambda case: case.deadline_s)
            outcome = run(seed, system, longest)
            found += [_row(name, system, case, seed, outcome) for case in group]
    return found


def _groups(system: System, wanted: Iterable[Case]) -> list[list[Case]]:
    if system.looks_at_limits:
        return [[case] for case in wanted]
    groups: dict[tuple[str, float], list[Case]] = {}
    for case in wanted:
        groups.setdefault((case.data, case.target), []).append(case)
    return list(groups.values())


@functools.lru_cache(maxsize=4)
def _federation(name: str, seed: int) -> data.Federation:
    return data.DATA[name](seed)


def run(seed: int, system: System, case: Case) -> simulation.Simulated:
    """One simulated run."""
    learner = learning.Learner(_federation(case.data, seed), seed, **LEARNING[case.data])
    settings = RunSettings(
        **{
            "run_id": "benchmark", "model": "data:none", "client_data": "data:none", "evaluation_data": "data:none",
            "target": model.Quality("accuracy", case.target), "deadline_at": case.deadline_s, "seed": seed,
            "max_rounds": MAX_ROUNDS, "batch_size": BATCH_SIZE, "server_optimiser": system.optimiser,
            "budget": _budget(system, learner), **system.settings,
        }
    )  # fmt: skip
    return simulation.simulate(settings, simulation.drawn(learner.names(), seed), learner, learner)


def _budget(system: System, learner: learning.Learner) -> Budget:
    if not system.paced_by_bytes:
        return Budget()
    one_way = sum(array.nbytes for array in learner.initial_weights()) / 1e9
    return Budget(gigabytes=2 * one_way * system.settings["cohort"] * PACED_ROUNDS)


def _row(name: str, system: System, case: Case, seed: int, outcome: simulation.Simulated) -> Row:
    ends = [time_s for time_s, _, _ in outcome.history]
    within = sum(end <= case.deadline_s for end in ends)
    rounds = outcome.state.rounds
    met = outcome.reached and outcome.wall_s <= case.deadline_s
    cut = min(len(ends), within if met else within + 1)  # the round that the deadline finds open is paid too
    wall_s, node_s, compute_s = outcome.history[cut - 1] if cut else (0.0, 0.0, 0.0)
    return Row(
        system=name, data=case.data, kind=case.kind, seed=seed, target=case.target, deadline_s=case.deadline_s,
        reached=outcome.reached, met_deadline=met, rounds=min(within, len(rounds)),
        wall_s=round(min(wall_s, case.deadline_s), 1), node_s=round(node_s, 1), compute_s=round(compute_s, 1),
        gigabytes=round(sum(each.gigabytes for each in rounds[:cut]), 6),
        quality=max((each.value for each in rounds[:within]), default=0.0),
        status=str(outcome.state.status), static=system.static, law=law.name(),
    )  # fmt: skip
