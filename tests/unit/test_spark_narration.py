"""What the log tells, and how often."""

from __future__ import annotations

import logging

import pytest

from airflow_mlscale.spark import narration
from airflow_mlscale.spark.model import (
    Observation,
    Plan,
    Profile,
    Progress,
    Promise,
    Stage,
    StageProfile,
    StageStatus,
    Tally,
)
from tests.fakes.spark_records import record

PROMISE = Promise(started_at=1000.0, deadline_at=1100.0)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=narration.__name__)
    return caplog


def stage(number: int, name: str, status: StageStatus, complete: int = 0) -> Stage:
    return Stage(stage_id=number, name=name, status=status, tasks=4, complete=complete)


SEEN = Observation(
    now=1060.0,
    progress=Progress(
        at=1060.0,
        application_id="app",
        stages=(
            stage(0, "count at /far/away/in/a/folder/job.py:12", StageStatus.COMPLETE, 4),
            stage(1, "count at /far/away/in/a/folder/job.py:12", StageStatus.SKIPPED),
            stage(2, "collect at job.py:20", StageStatus.ACTIVE, 1),
            stage(3, "collect at job.py:30", StageStatus.PENDING),
        ),
    ),
    used_core_s=30.0,
    elapsed_s=60.0,
    by_stage={0: Tally(core_s=21.26), 2: Tally(core_s=4.5)},
)
PROFILE = Profile(
    key="job",
    plans=(
        Plan(stages=(StageProfile(key="count at /far/away/in/a/folder/job.py:12#0", core_s=20.0, tasks=4),)),
        Plan(stages=(StageProfile(key="count at /far/away/in/a/folder/job.py:12#0", core_s=99.0, tasks=4),)),
    ),
)


def test_a_line_tells_progress_prediction_and_cores() -> None:
    seen = record(29, progress=0.344, finish_s=95, outlook="at_risk", guaranteed=0.65, ceiling=0.65)
    assert narration.line(seen, PROMISE) == (
        "34 % done, 71 s left of 100 s, can finish at 95 (85 to 105) s, at_risk, 0.65 cores guaranteed, "
        "ceiling 0.65: as the test says"
    )
    assert (
        narration.line(record(29), PROMISE)
        == "3 stages done, 71 s left of 100 s, 1.0 cores guaranteed, no ceiling: as the test says"
    )


def test_a_line_says_that_the_deadline_is_over() -> None:
    assert narration.line(record(112), PROMISE).startswith("3 stages done, 12 s over the deadline, ")


def test_the_log_has_a_line_every_ten_seconds_however_often_the_share_moves(lines: pytest.LogCaptureFixture) -> None:
    narrator = narration.Narrator(PROMISE)
    for t in range(60):
        narrator(record(t, guaranteed=1.0 + 0.1 * (t % 2)))
    assert len(lines.records) == 6  # at 0, 10, …, 50 s


def test_a_real_change_of_the_share_is_told_sooner_but_not_at_once(lines: pytest.LogCaptureFixture) -> None:
    narrator = narration.Narrator(PROMISE)
    for t in range(10):
        narrator(record(t, guaranteed=1.0 if t < 3 else 1.5))
    # at 0 s, and at 5 s: the change at 3 s is only told when five seconds have passed
    assert [line.message.split(" cores guaranteed")[0][-3:] for line in lines.records] == ["1.0", "1.5"]


def test_a_long_run_has_fewer_lines(lines: pytest.LogCaptureFixture) -> None:
    promise = Promise(started_at=1000.0, deadline_at=1000.0 + 20_000)
    narrator = narration.Narrator(promise)
    for t in range(0, 20_000, 10):
        narrator(record(t, deadline_s=20_000))
    assert len(lines.records) == 200  # one in 100 s


def test_a_new_outlook_is_told_once_and_as_a_warning_unless_it_is_good(lines: pytest.LogCaptureFixture) -> None:
    narrator = narration.Narrator(PROMISE)
    for t in range(40):
        narrator(record(t, outlook="on_track" if t < 10 or t > 20 else "at_risk"))
    told = [(line.levelname, line.message) for line in lines.records if line.message.startswith("outlook")]
    assert told == [("WARNING", "outlook: at_risk, before: on_track"), ("INFO", "outlook: on_track, before: at_risk")]


def test_the_table_has_a_row_for_each_stage_that_ran() -> None:
    rows = narration.table(list(SEEN.progress.stages[:1] + SEEN.progress.stages[2:3]), SEEN, PROFILE)
    assert rows == [
        "stage                                              tasks   core-s profiled  state",
        "0 count at job.py:12                                 4/4     21.3     20.0  complete",
        "2 collect at job.py:20                               1/4      4.5        -  active",
    ]


def test_the_largest_rows_are_kept_of_a_large_table() -> None:
    stages = [stage(number, "s", StageStatus.COMPLETE, 4) for number in range(narration.ROWS + 5)]
    rows = narration.table(stages, Observation(now=0, progress=None, used_core_s=0, elapsed_s=0), None)
    assert len(rows) == 1 + narration.ROWS + 1
    assert rows[-1] == "and 5 stages that cost less"


def test_a_table_comes_every_half_minute_and_names_a_stage_that_is_over_once(lines: pytest.LogCaptureFixture) -> None:
    narrator = narration.Narrator(PROMISE, PROFILE, lambda: SEEN)
    for t in range(65):
        narrator(record(t))
    shown = [line.message.split(" at ")[0] for line in lines.records if "job.py" in line.message]
    assert shown == ["0 count", "2 collect", "2 collect"]  # at 30 and 60 s
    assert "and 1 stages told before" in [line.message for line in lines.records]
    lines.clear()
    narrator.finish()
    assert [line.message[:7] for line in lines.records] == ["stage  ", "0 count", "2 colle"]


def test_nothing_is_told_of_a_run_that_never_answered(lines: pytest.LogCaptureFixture) -> None:
    narration.Narrator(PROMISE, None, lambda: None).finish()
    assert lines.records == []
