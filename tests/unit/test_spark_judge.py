"""What is said before the submission of a deadline that cannot be kept."""

from __future__ import annotations

import time

import pytest

from airflow_mlscale import errors
from airflow_mlscale.spark import run as runs
from airflow_mlscale.spark.model import Plan, Profile, Promise, StageProfile
from airflow_mlscale.spark.settings import DeadlineSettings

KNOWN = Profile(key="k", plans=(Plan(stages=(StageProfile(key="s#0", core_s=200.0, tasks=40),)),))


def judged(profile: Profile | None, *, left_s: float) -> str:
    now = time.time()
    promise = Promise(started_at=now - 100, deadline_at=now + left_s)
    with pytest.raises(errors.DeadlineInfeasibleError) as caught:
        runs.judge(profile, "k", promise=promise, settings=DeadlineSettings(), slots=2.0)
    return str(caught.value)


def test_a_deadline_that_has_passed_is_called_so() -> None:
    said = judged(None, left_s=-3.0)
    assert said == "the deadline passed 3 s ago; allow more time, or set on_infeasible='best_effort'"
    assert judged(KNOWN, left_s=-3.0).startswith("the deadline passed 3 s ago, and the job needs about 1")


def test_a_deadline_that_is_too_near_is_told_with_both_numbers() -> None:
    said = judged(KNOWN, left_s=40.0)
    assert said.startswith("the job needs about 1")
    assert " s at its full share but 40 s are left (" in said
    assert "at 2 cores; see" in said
