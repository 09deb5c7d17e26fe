"""Random Spark applications, hundreds or in the long run a thousand, against deadlines with 20 % slack.

Profiles are learned from one to three other simulated runs of the same application; every fourth application
then follows another plan here and there, with a profile that is off by up to ×2 in every third stage.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from airflow_mlscale.spark.model import Outlook
from benchmarks.deadline_sim import cases

pytestmark = pytest.mark.timeout(900)  # the first test of a size computes its runs: a thousand take a minute

SLACK = 1.2
LENGTH_S = (30.0, 90.0)
MOST_MISSES = {"ours_reserve": 0.035, "ours_work_conserving_greedy": 0.01}
"""The aim is 0.001. Reached with these short applications: 15 of 504 reservations (7 of 384 with warm profiles, 8 of
120 with ones that are wrong in parts), 2 of 504 beside a neighbour; longer ones are in docs/benchmarks.md."""


def conditions(seed: int) -> list[cases.Cell]:
    """A reservation for one half of the seeds, idle cycles that a neighbour takes away half-way for the other."""
    profile = "partly" if seed // 16 % 4 == 3 else "warm"
    system = "ours_reserve" if seed // 8 % 2 else "ours_work_conserving_greedy"
    return [cases.Cell(system, profile, SLACK)]


def rows_of(seed: int) -> list[cases.Row]:
    return cases.rows(seed, conditions(seed), length_s=LENGTH_S)


@pytest.fixture(scope="module", params=[256, pytest.param(1_008, marks=pytest.mark.long)])
def rows(request: pytest.FixtureRequest) -> list[cases.Row]:
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        return [row for found in pool.map(rows_of, range(request.param), chunksize=16) for row in found]


def of(system: str, rows: Sequence[cases.Row]) -> list[cases.Row]:
    return [row for row in rows if row.system == system]


def worst(missed: Sequence[cases.Row]) -> str:
    late = sorted(missed, key=lambda row: row.deadline_s / row.finish_s)
    return "\n".join(
        f"{row.finish_s / row.deadline_s:.3f} {row.system}/{row.profile} seed {row.seed} {row.shape} {row.mishaps}"
        for row in late[:12]
    )


def test_applications_of_all_shapes_and_mishaps_are_tried(rows: list[cases.Row]) -> None:
    assert len({row.shape for row in rows}) == 8
    mishaps = {name for row in rows for name in row.mishaps}
    assert mishaps == {"failed_task", "fetch_failure", "lost_executor", "replan", "straggler"}


@pytest.mark.parametrize("system", MOST_MISSES)
def test_deadlines_with_a_fifth_of_slack_are_met(system: str, rows: list[cases.Row]) -> None:
    tried = of(system, rows)
    missed = [row for row in tried if not row.met]
    assert len(missed) <= MOST_MISSES[system] * len(tried), worst(missed)


def test_who_misses_is_hardly_late(rows: list[cases.Row]) -> None:
    late = [row for row in rows if row.finish_s > 1.05 * row.deadline_s]
    assert len(late) <= 0.005 * len(rows), worst(late)


def test_runs_without_any_mishap_are_in_time_or_late_by_a_hair(rows: list[cases.Row]) -> None:
    calm = [row for row in rows if row.profile == "warm" and not row.mishaps]
    assert len(calm) > 0.05 * len(rows)
    assert [row.seed for row in calm if row.finish_s > 1.015 * row.deadline_s] == []


def test_a_reservation_is_smaller_than_the_whole_host_all_the_time(rows: list[cases.Row]) -> None:
    saved = [1 - row.granted_core_s / (row.slots * row.uncontrolled_s) for row in of("ours_reserve", rows)]
    assert sum(saved) / len(saved) > 0.05


def test_nothing_feasible_is_called_lost_before_it_starts(rows: list[cases.Row]) -> None:
    warm = [row for row in rows if row.profile == "warm"]
    assert [row.seed for row in warm if row.outlook == Outlook.WILL_MISS] == []
