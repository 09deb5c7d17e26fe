"""What OpenLineage hears of a run."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from openlineage.client.generated.base import RunFacet
from openlineage.client.serde import Serde

from airflow_mlscale import __version__
from airflow_mlscale.operators import lineage
from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator
from airflow_mlscale.spark.model import Promise

PROMISE = Promise(started_at=1000.0, deadline_at=1600.0)
SUMMARY = {
    "outlook": "at_risk",
    "predicted_finish_s": 590.0,
    "met": True,
    "finish_s": 580.0,
    "used_core_s": 800.0,
    "granted_core_s": 900.0,
    "mode": "reserve",
    "policy": "remaining_work",
    "application_id": "app-1",
}


def test_the_facet_has_the_promise_and_what_became_of_it() -> None:
    (facet,) = lineage.deadline_facets(timedelta(minutes=10), PROMISE, SUMMARY).values()
    assert json.loads(Serde.to_json(facet)) == {
        "_producer": f"https://pypi.org/project/airflow-provider-mlscale/{__version__}",
        "_schemaURL": RunFacet._get_schema(),  # a page that exists
        "deadline": "0:10:00",
        "startedAt": "1970-01-01T00:16:40+00:00",
        "deadlineAt": "1970-01-01T00:26:40+00:00",
        "deadlineSeconds": 600.0,
        "outlook": "at_risk",
        "predictedFinishSeconds": 590.0,
        "met": True,
        "finishSeconds": 580.0,
        "usedCoreSeconds": 800.0,
        "grantedCoreSeconds": 900.0,
        "mode": "reserve",
        "policy": "remaining_work",
        "applicationId": "app-1",
    }


@pytest.mark.parametrize(
    ("deadline", "known"),
    [
        ("PT10M", {"deadlineSeconds": 600.0}),
        (timedelta(minutes=10), {"deadlineSeconds": 600.0}),
        (datetime(2026, 3, 1, 12, 0, tzinfo=UTC), {"deadlineAt": "2026-03-01T12:00:00+00:00"}),
        ("2026-03-01T13:00:00+01:00", {"deadlineAt": "2026-03-01T12:00:00+00:00"}),
        ("dag", {}),
        ("soon", {}),  # the task is going to refuse it
    ],
)
def test_at_the_start_only_the_deadline_is_known(deadline: object, known: dict[str, object]) -> None:
    (facet,) = lineage.deadline_facets(deadline, None, None).values()
    told = json.loads(Serde.to_json(facet))
    assert {name: value for name, value in told.items() if not name.startswith("_")} == {
        "deadline": str(deadline),
        **known,
    }


def test_without_the_openlineage_provider_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.openlineage.extractors", None)  # its import fails
    operator = DeadlineSparkSubmitOperator(task_id="t", application="/job.py", deadline="PT10M")
    assert operator.get_openlineage_facets_on_start() is None
    assert operator.get_openlineage_facets_on_complete(None) is None


def test_without_openlineages_client_there_are_no_facets() -> None:
    code = (
        "import sys; sys.modules['openlineage'] = None\n"
        "from airflow_mlscale.operators import lineage; print(lineage.deadline_facets('PT1H', None, None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "{}"
