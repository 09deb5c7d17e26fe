"""The published law, with its arithmetic."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_mlscale.spark import paper
from airflow_mlscale.spark.model import (
    Decision,
    Observation,
    Plan,
    Profile,
    Progress,
    Promise,
    Stage,
    StageProfile,
    StageStatus,
)
from airflow_mlscale.spark.settings import DeadlineSettings

PLAN = Plan(
    stages=(
        StageProfile(key="read#0", core_s=40.0, tasks=20),
        StageProfile(key="write#0", core_s=20.0, tasks=20, after=("read#0",)),
    )
)


def policy(deadline_s: float = 100.0, plan: Plan | None = PLAN) -> paper.PaperPolicy:
    profile = Profile(key="k", plans=(plan,)) if plan else None
    settings = DeadlineSettings(policy="paper")
    return paper.PaperPolicy(
        promise=Promise(started_at=0.0, deadline_at=deadline_s), profile=profile, settings=settings, host_cores=2.0
    )


def seen(now: float, *stages: Stage) -> Observation:
    progress = Progress(at=now, application_id="a", stages=stages, slots=2)
    return Observation(now=now, progress=progress, used_core_s=0.0, elapsed_s=now)


def read(complete: int, **values: Any) -> Stage:
    numbers = {"stage_id": 0, "name": "read", "status": StageStatus.ACTIVE, "tasks": 20, "submitted_at": 5.0, **values}
    return Stage(complete=complete, **numbers)


def test_a_stage_begins_with_its_feed_forward() -> None:
    law = policy()
    decision, state = law(seen(5.0, read(0)), law.start(), 1.0)
    # w = 0.33·1 + 0.67·(30/20 − 1) = 0.665; D_s = (95 − 5)/1.665 = 54.05
    (control,) = state.stages.values()
    assert control.time_s == pytest.approx(90 / 1.665)
    # feed-forward ceil(40/54.05) = 1; SP = 1/54.05, e the same; c = 50·e + 1 + (50/12)·e, rounded up to 0.05
    error = 1.665 / 90
    assert decision.guaranteed_cores == 2.0
    assert 50 * error + 1 + 50 / 12 * error == pytest.approx(2.002, abs=0.001)
    assert (decision.ceiling_cores, control.set_point) == (decision.guaranteed_cores, pytest.approx(error))


def test_progress_ahead_of_the_set_point_takes_cores_away() -> None:
    law = policy()
    _, state = law(seen(5.0, read(0)), law.start(), 1.0)
    decision, _ = law(seen(6.0, read(4)), state, 1.0)  # 20 % done, 3.7 % expected
    assert decision.guaranteed_cores == 0.2


def test_the_set_point_is_kept_between_stages_only_for_running_ones() -> None:
    law = policy()
    _, state = law(seen(5.0, read(0)), law.start(), 1.0)
    decision, state = law(seen(60.0, read(20, status=StageStatus.COMPLETE, completed_at=59.0)), state, 1.0)
    assert state.stages == {}
    assert (decision.guaranteed_cores, decision.ceiling_cores) == (0.2, 2.0)


@pytest.mark.parametrize("plan", [None, Plan(stages=(StageProfile(key="other#0", core_s=1.0, tasks=1),))])
def test_what_no_profile_knows_gets_everything(plan: Plan | None) -> None:
    law = policy(plan=plan)
    decision: Decision = law(seen(5.0, read(0)), law.start(), 1.0)[0]
    assert decision.guaranteed_cores == 2.0


def test_a_deadline_that_is_over_asks_for_everything() -> None:
    law = policy(deadline_s=5.0)
    decision, _ = law(seen(6.0, read(0)), law.start(), 1.0)
    assert decision.guaranteed_cores == 2.0
