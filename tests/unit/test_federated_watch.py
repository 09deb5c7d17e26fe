"""Judging from outside whether a run lives, has ended, or needs its next segment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_mlscale.federated import model, watch
from airflow_mlscale.federated.model import Status

BEGAN = watch.Watch(segment=2, began_s=100.0)
BEATEN = replace(BEGAN, beat="1", beat_seen_s=110.0)


def look(seen: watch.Watch, *, now_s: float, state=None, beat=None, job_over=False) -> watch.Progress:
    return watch.look(seen, state=state, beat=beat, job_over=job_over, now_s=now_s)[0].progress


def state(status: Status, segment: int = 2) -> model.RunState:
    return model.RunState(run_id="run", status=status, segment=segment)


@pytest.mark.parametrize("status", [Status.REACHED, Status.LIMIT, Status.ABORTED, Status.FAILED])
def test_an_end_is_an_end_however_the_job_looks(status):
    assert look(BEATEN, now_s=999, state=state(status), job_over=True) == watch.Progress.ENDED


def test_the_end_of_an_earlier_segment_is_not_ours():
    assert look(BEGAN, now_s=101, state=state(Status.ABORTED, segment=1)) == watch.Progress.LIVES


def test_an_interrupted_segment_is_lost():
    assert look(BEATEN, now_s=111, state=state(Status.INTERRUPTED)) == watch.Progress.LOST


def test_a_heartbeat_that_changes_keeps_a_run_alive():
    found, seen = watch.look(BEATEN, state=None, beat=(2, "2"), job_over=False, now_s=200)
    assert found.progress == watch.Progress.LIVES
    assert (seen.beat, seen.beat_seen_s) == ("2", 200)


def test_a_heartbeat_that_stands_still_means_a_lost_segment():
    assert look(BEATEN, now_s=129, beat=(2, "1")) == watch.Progress.LIVES
    assert look(BEATEN, now_s=131, beat=(2, "1")) == watch.Progress.LOST  # 110 + 20


def test_the_engines_word_counts_once_the_heartbeat_is_in_doubt():
    assert look(BEATEN, now_s=114, job_over=True) == watch.Progress.LIVES
    assert look(BEATEN, now_s=116, job_over=True) == watch.Progress.LOST  # 110 + 5


def test_the_heartbeat_of_an_earlier_segment_is_not_ours():
    found, seen = watch.look(BEGAN, state=None, beat=(1, "9"), job_over=False, now_s=101)
    assert found.progress == watch.Progress.LIVES
    assert seen.beat is None


def test_a_job_that_never_begins_is_lost():
    assert look(BEGAN, now_s=279) == watch.Progress.LIVES
    assert look(BEGAN, now_s=281) == watch.Progress.LOST  # 100 + 180
    assert look(BEGAN, now_s=105, job_over=True) == watch.Progress.LOST
