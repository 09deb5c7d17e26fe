"""What a run cost, from its shares and from its journal."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from airflow_mlscale.runtime.journal import Record
from airflow_mlscale.spark import summary, totals


def test_guarantees_and_ceilings_are_integrated_over_the_time_they_are_held() -> None:
    found = totals.begin(100.0).holding(totals.Held(guaranteed_cores=2.0, ceiling_cores=3.0)).until(110.0)
    found = found.holding(totals.Held(guaranteed_cores=0.5, ceiling_cores=1.0)).until(130.0)
    assert found.granted_core_s == pytest.approx(30.0)  # 2.0·10 + 0.5·20
    assert found.cap_core_s == pytest.approx(50.0)  # 3·10 + 1·20
    assert found.peak_cores == 2.0
    assert found.mean_cores == pytest.approx(1.0)  # 30 core-s in 30 s


def test_a_clock_that_went_back_adds_nothing() -> None:
    found = totals.begin(100.0).holding(totals.Held(guaranteed_cores=2.0)).until(90.0)
    assert found.granted_core_s == 0.0


def record(at: float, guaranteed: float, ceiling: float | None) -> Record:
    decided = {"guaranteed_cores": guaranteed, "ceiling_cores": ceiling, "driver_cores": 0.25}
    return Record(at=at, subject="job", seen={"slots": 4.0}, decided=decided, reason="")


def test_a_journal_gives_back_the_totals_of_a_controller_that_died() -> None:
    found = totals.replayed([record(0.0, 1.0, None), record(10.0, 0.75, 1.5), record(20.0, 0.0, 1.5)], until=100.0)
    assert found is not None
    assert found.granted_core_s == pytest.approx(22.5)  # 1.25·10 + 1.0·10; after the last record nobody held anything
    assert found.cap_core_s == pytest.approx(55.0)  # four slots·10, then 1.5·10
    assert found.peak_cores == 1.25


def test_the_series_of_a_summary_adds_up_to_its_totals() -> None:
    decided = [record(0.0, 1.0, None), record(10.0, 0.75, 1.5), record(20.0, 0.0, 1.5)]
    records = [
        replace(each, seen={**each.seen, "t_s": each.at, "used_core_s": 0.0, "progress": None}) for each in decided
    ]
    points = summary.series(records)
    granted = sum(
        (point["guaranteed_cores"] + point["driver_cores"]) * (after["t_s"] - point["t_s"])
        for point, after in pairwise(points)
    )
    found = totals.replayed(records, until=20.0)
    assert found is not None
    assert granted == pytest.approx(found.granted_core_s) == pytest.approx(22.5)


def test_an_empty_journal_gives_nothing_back() -> None:
    assert totals.replayed([], until=1.0) is None
