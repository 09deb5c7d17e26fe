"""What a deadline may look like."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pendulum
import pytest

from airflow_mlscale import errors
from airflow_mlscale.runtime import deadlines

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    "deadline",
    [
        timedelta(seconds=150),
        pendulum.duration(minutes=2, seconds=30),
        "150",
        " 150.0 ",
        "PT2M30S",
        "2026-03-01T12:02:30Z",
        "2026-03-01T13:02:30+01:00",
        datetime(2026, 3, 1, 13, 2, 30, tzinfo=timezone(timedelta(hours=1))),
        pendulum.datetime(2026, 3, 1, 12, 2, 30),
        150,
    ],
)
def test_all_these_mean_the_same(deadline: object) -> None:
    assert deadlines.resolve(deadline, started_at=START) == START + timedelta(seconds=150)


@pytest.mark.parametrize(
    "deadline",
    [
        "soon",
        "",
        "10:30",
        "2026-03-02",
        "nan",
        "inf",
        "-5",
        "0",
        "1e300",
        "P99999999999D",
        "2020-01-01/2020-01-02",
        "2020-01-01T00:00Z/P1D",
        "P1D/2020-01-01",
        timedelta(0),
        timedelta.max,
        10**400,
        datetime(2026, 3, 1, 13, 0),
        None,
        True,
        [150],
        float("nan"),
    ],
)
def test_these_mean_nothing(deadline: object) -> None:
    with pytest.raises(errors.InvalidInputError) as caught:
        deadlines.resolve(deadline, started_at=START)
    assert caught.value.field == "deadline"


@pytest.mark.parametrize(
    "deadline", [150, None, 2.5, ["PT1M"], timedelta(seconds=-1), timedelta.max, datetime(2030, 1, 1)]
)
def test_what_can_never_be_a_deadline_is_refused_before_rendering(deadline: object) -> None:
    with pytest.raises(errors.InvalidInputError):
        deadlines.check(deadline)


def test_a_template_is_left_to_rendering() -> None:
    deadlines.check("{{ params.deadline }}")


def test_a_past_deadline_says_how_far() -> None:
    with pytest.raises(errors.InvalidInputError, match="lies 60 s in the past"):
        deadlines.check_ahead("x", START, now=START + timedelta(seconds=60))
