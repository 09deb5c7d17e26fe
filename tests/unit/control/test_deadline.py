"""The paper's stage deadlines."""

from __future__ import annotations

import pytest

from airflow_mlscale.control import deadline


def test_the_stage_deadline_of_the_paper() -> None:
    # w = 0.33·2 + 0.67·(60/20 − 1) = 2; (0.95·100 − 5)/(2 + 1) = 30
    found = deadline.stage_deadline_s(
        deadline_s=100.0, elapsed_s=5.0, stages_left=2, duration_left_s=60.0, stage_duration_s=20.0
    )
    assert found == pytest.approx(30.0)
    # the last stage has all that is left: w = 0
    found = deadline.stage_deadline_s(
        deadline_s=100.0, elapsed_s=45.0, stages_left=0, duration_left_s=20.0, stage_duration_s=20.0
    )
    assert found == pytest.approx(50.0)
    # a stage that the profile gives no time counts by its number alone: w = 0.33·3
    found = deadline.stage_deadline_s(
        deadline_s=100.0, elapsed_s=0.0, stages_left=3, duration_left_s=60.0, stage_duration_s=0.0
    )
    assert found == pytest.approx(95 / 1.99)
