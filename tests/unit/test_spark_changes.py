"""When an outlook counts as changed."""

from __future__ import annotations

import json
from math import inf

from airflow_mlscale.spark import changes
from airflow_mlscale.spark.changes import HOLD_S, Change, News, Watch
from airflow_mlscale.spark.model import Outlook
from tests.fakes.spark_records import record


def told(*steps: tuple[float, str | None]) -> list[tuple[float, str]]:
    watch = Watch()
    found = []
    for t_s, outlook in steps:
        if change := watch.change(record(t_s, outlook=outlook)):
            found.append((t_s, str(change.outlook)))
    return found


def test_an_outlook_counts_once_it_has_held() -> None:
    assert HOLD_S == 5.0
    assert told((0, "at_risk"), (4.9, "at_risk"), (5, "at_risk"), (6, "at_risk")) == [(5, "at_risk")]


def test_one_that_passes_does_not_count() -> None:
    assert told((0, "on_track"), (5, "on_track"), (6, "at_risk"), (8, "on_track"), (12, "at_risk")) == [(5, "on_track")]
    assert told((0, "at_risk"), (3, None), (6, "at_risk"), (11, "at_risk")) == [(11, "at_risk")]


def test_a_deadline_that_is_over_counts_at_once() -> None:
    assert told((99, "on_track"), (101, "will_miss")) == [(101, "will_miss")]


def test_a_change_tells_times() -> None:
    watch = Watch(hold_s=0)
    watch.change(record(10, outlook="on_track"))
    assert watch.change(record(20, outlook="at_risk", finish_s=95)) == Change(
        outlook=Outlook.AT_RISK,
        previous=Outlook.ON_TRACK,
        finish_at=1095.0,
        finish_low_at=1085.0,
        finish_high_at=1105.0,
        deadline_at=1100.0,
    )


def test_a_finish_that_never_comes_has_no_time() -> None:
    watch = Watch(hold_s=0)
    change = watch.change(record(10, outlook="will_miss", finish_s=inf))
    assert change is not None
    assert (change.finish_at, change.finish_low_at, change.finish_high_at) == (None, None, None)


STEPS = [(0, "on_track"), (5, "on_track"), (10, "at_risk"), (15, "at_risk"), (20, "on_track"), (25, "on_track")]


def test_that_all_begins_well_is_no_news() -> None:
    assert [str(change.outlook) for change in News(record(t, outlook=o) for t, o in STEPS).found] == [
        "at_risk",
        "on_track",
    ]
    late = News([record(0, outlook="will_miss"), record(5, outlook="will_miss")])
    assert [change.previous for change in late.found] == [None]


def test_who_goes_on_for_another_passes_on_only_what_comes_after() -> None:
    records = [record(t, outlook=o) for t, o in STEPS]
    passed_on: list[Change] = []
    news = News(records[:4], passed_on.append)
    assert len(news.found) == 1
    news(records[3])  # at_risk still
    assert passed_on == []
    for one in records[4:]:
        news(one)
    assert [(str(change.previous), str(change.outlook)) for change in passed_on] == [("at_risk", "on_track")]
    assert news.found == News(records).found


def test_a_change_travels_as_plain_values() -> None:
    for change in News(record(t, outlook=o, finish_s=90) for t, o in STEPS).found:
        assert changes.from_row(json.loads(json.dumps(changes.to_row(change)))) == change
