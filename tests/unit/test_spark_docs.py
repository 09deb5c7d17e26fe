"""What docs/spark.md must name: all that a user can give and all that comes back."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator
from airflow_mlscale.provider_info import get_provider_info
from airflow_mlscale.runtime.journal import Journal
from airflow_mlscale.spark import summary
from airflow_mlscale.spark.model import Promise
from airflow_mlscale.spark.settings import DeadlineSettings

PAGE = (Path(__file__).parents[2] / "docs" / "spark.md").read_text()


def listed(heading: str) -> set[str]:
    """What the first columns of the tables below a heading name."""
    section = PAGE.partition(f"\n{heading}\n")[2].partition("\n#")[0]
    cells = re.findall(r"^\| ([^|]+) \|", section, re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def arguments() -> set[str]:
    own = inspect.signature(DeadlineSparkSubmitOperator.__init__).parameters.values()
    return {one.name for one in own if one.kind is one.KEYWORD_ONLY}


def form() -> set[str]:
    (spark,) = (one for one in get_provider_info()["connection-types"] if one["connection-type"] == "mlscale_spark")
    return set(spark["conn-fields"])


def told() -> set[str]:
    return set(
        summary.tell(
            application="job",
            promise=Promise(started_at=0.0, deadline_at=9.0),
            settings=DeadlineSettings(),
            warm=False,
            cpu=None,
            journal=Journal(),
            control=None,
            ended_at=None,
        )
    )


@pytest.mark.parametrize(
    ("heading", "names"),
    [("## Arguments", arguments()), ("## The connection", form()), ("## What you see", told())],
)
def test_the_page_names_everything(heading: str, names: set[str]) -> None:
    assert names - listed(heading) == set()
