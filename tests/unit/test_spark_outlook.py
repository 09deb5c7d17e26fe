"""What becomes of a promise, before the start and while it runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_mlscale.control import schedule
from airflow_mlscale.spark import estimate, outlook
from airflow_mlscale.spark.model import Outlook, Plan, Profile, StageProfile

PLAN = Plan(
    stages=(
        StageProfile(key="read#0", core_s=40.0, tasks=20),
        StageProfile(key="write#0", core_s=20.0, tasks=20, gap_s=3.0, after=("read#0",)),
    ),
    lead_s=6.0,
    tail_s=1.0,
    spread=0.1,
)


def left(core_s: float, uncertainty: float) -> estimate.Left:
    nodes = (schedule.Node(phases=(schedule.Phase(core_s, 10.0),)),)
    return estimate.Left(
        nodes=nodes, done_core_s=0.0, start_s=2.0, tail_s=1.0, longest_core_s=1.0, uncertainty=uncertainty
    )


def test_the_interval_is_that_of_the_work() -> None:
    found = outlook.predict(left(20.0, 0.1), cores=2.0, confidence=2.0)
    # 3 s at the two ends and 20/2, with 20 % more or less work
    assert (found.low_s, found.left_s, found.high_s) == pytest.approx((11.0, 13.0, 15.0))


@pytest.mark.parametrize(
    ("time_s", "expected"), [(15.1, Outlook.ON_TRACK), (12.0, Outlook.AT_RISK), (10.9, Outlook.WILL_MISS)]
)
def test_the_verdict_is_where_the_deadline_lies(time_s: float, expected: Outlook) -> None:
    found = outlook.predict(left(20.0, 0.1), cores=2.0, confidence=2.0)
    assert outlook.verdict(found, time_s=time_s) is expected


def test_a_verdict_is_told_when_it_has_held() -> None:
    told = outlook.tell(outlook.Told(), Outlook.ON_TRACK, over=False)
    assert told.outlook is Outlook.ON_TRACK  # the first one at once
    heard = []
    for found in [Outlook.AT_RISK, Outlook.AT_RISK, Outlook.ON_TRACK, *[Outlook.AT_RISK] * 3]:
        told = outlook.tell(told, found, over=False)
        heard.append(told.outlook)
    assert heard == [Outlook.ON_TRACK] * 5 + [Outlook.AT_RISK]


def test_a_deadline_that_is_over_is_missed_at_once() -> None:
    assert outlook.tell(outlook.Told(Outlook.ON_TRACK), None, over=True).outlook is Outlook.WILL_MISS


def test_before_the_start_the_whole_plan_counts() -> None:
    found = outlook.before_start(Profile(key="k", plans=(PLAN,)), cores=2.0, confidence=1.0)
    assert found is not None
    # lead 6, 40/2, gap 3, 20/2, tail 1; the work 10 % more or less, and a little as tasks differ
    assert (found.low_s, found.left_s, found.high_s) == pytest.approx((37.0, 40.0, 43.0), abs=0.2)
    assert outlook.before_start(None, cores=2.0, confidence=1.0) is None


def test_of_several_courses_the_heaviest_is_expected() -> None:
    light = replace(PLAN, stages=PLAN.stages[:1])
    found = outlook.before_start(Profile(key="k", plans=(light, PLAN)), cores=2.0, confidence=1.0)
    assert found is not None
    assert found.left_s == pytest.approx(40.0)
