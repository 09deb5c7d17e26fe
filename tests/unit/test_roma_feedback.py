"""The truth about answers: comparing, counting by version, and speaking of answers by their request's id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import feedback, ports
from airflow_mlscale.roma.adapters import sqlite_quality
from tests.fakes import roma_served


@pytest.mark.parametrize(
    ("prediction", "label", "judged", "correct", "error"),
    [
        (0.7, 1, 1, 1, 0.3),
        ([0.7], True, 1, 1, 0.3),
        (0.4, 1, 1, 0, 0.6),
        (12.5, 10.0, 0, 0, 2.5),  # a number, neither right nor wrong
        (3, 3, 1, 1, 0.0),
        ([0.1, 0.8, 0.1], 1, 1, 1, None),
        ([0.1, 0.8, 0.1], 2, 1, 0, None),
        ("cat", "cat", 1, 1, None),
        ("cat", "dog", 1, 0, None),
    ],
)
def test_an_answer_is_compared_with_the_truth(
    prediction: object, label: object, judged: int, correct: int, error: float | None
) -> None:
    tally = feedback.compare(prediction, label)
    assert (tally.records, tally.judged, tally.correct, tally.mae) == (1, judged, correct, pytest.approx(error))


@pytest.mark.parametrize(
    ("prediction", "label"),
    [
        ("cat", 1),
        ([0.1, 0.9], 2),
        ([0.1, 0.9], 0.5),
        (float("nan"), 1),
        ([], 0),
        ({"a": 1}, 1),
        ([[1], [2]], 0),
        (10**400, 1),
        (1.7e308, -1.7e308),
    ],
)
def test_what_cannot_be_compared_is_refused(prediction: object, label: object) -> None:
    with pytest.raises(errors.InvalidInputError, match="label"):
        feedback.compare(prediction, label)


@pytest.fixture(params=["memory", "sqlite"])
def quality(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ports.QualityPort]:
    if request.param == "memory":
        yield feedback.Tallies()
        return
    store = sqlite_quality.SqliteQuality(tmp_path / "quality.sqlite")
    yield store
    store.close()


def test_counts_add_up_by_version_over_a_window(quality: ports.QualityPort) -> None:
    good, bad = feedback.compare(1, 1), feedback.compare(0, 1)
    quality.add("m", 1000.0, {"1": good})
    quality.add("m", 5000.0, {"1": good})
    quality.add("m", 5001.0, {"1": bad})
    quality.add("m", 5001.0, {"2": bad})
    quality.add("other", 5001.0, {"1": bad})
    found = quality.since("m", 4000.0)
    assert feedback.as_json(found) == {
        "1": {"records": 2, "accuracy": 0.5, "mae": 0.5},
        "2": {"records": 1, "accuracy": 0.0, "mae": 1.0},
    }
    assert quality.since("m", 0.0)["1"].records == 3
    quality.forget("m")
    assert quality.since("m", 0.0) == {}
    assert quality.since("other", 0.0)["1"].records == 1


def test_counts_are_there_for_the_next_process(tmp_path: Path) -> None:
    first = sqlite_quality.SqliteQuality(tmp_path / "quality.sqlite")
    first.add("m", 5000.0, {"1": feedback.compare(1, 1)})  # never closed, as in a crash
    assert sqlite_quality.SqliteQuality(tmp_path / "quality.sqlite").since("m", 0)["1"].records == 1


def test_what_cannot_be_kept_is_kept_in_no_part(tmp_path: Path) -> None:
    quality = sqlite_quality.SqliteQuality(tmp_path / "quality.sqlite")
    quality._database.execute("PRAGMA max_page_count=4")  # as a full disk
    many = {str(number): feedback.compare(1, 1) for number in range(1000)}
    with pytest.raises(errors.TransientError, match="cannot be kept"):
        quality.add("m", 5000.0, many)
    assert quality.since("m", 0) == {}
    quality.add("m", 5000.0, {"1": feedback.compare(1, 1)})
    assert quality.since("m", 0)["1"].records == 1


async def test_versions_that_nobody_can_have_deployed_are_refused() -> None:
    async with roma_served.serving() as served:
        records = [{"prediction": 1, "label": 1, "version": str(number)} for number in range(65)]
        answer = await served.http.post("/v2/models/m/feedback", json={"records": records})
        assert (answer.status_code, "64 versions" in answer.text) == (400, True)
        assert (await served.http.get("/v2/models/m/feedback")).json()["versions"] == {}


def test_old_answers_make_room() -> None:
    recent = feedback.Recent(keep=2, max_bytes=10)
    for number in range(3):
        recent.remember("m", str(number), "1", b"{}")
    recent.remember("m", "large", "1", b" " * 11)
    assert [recent.find("m", name) is not None for name in ("0", "1", "2", "large")] == [False, True, True, False]


async def test_feedback_by_the_id_that_the_answer_carries() -> None:
    async with roma_served.serving() as served:
        async with served.answering(b'{"outputs": [{"name": "y", "shape": [1], "data": [0.9]}]}'):
            answer = await served.http.post("/v2/models/m/infer", content=b"{}")
        records = {"records": [{"id": answer.headers["x-request-id"], "label": 1}]}
        assert (await served.http.post("/v2/models/m/feedback", json=records)).json()["counted"] == 1
        exposed = (await served.http.get("/metrics")).text
        assert 'mlscale_roma_quality_accuracy{model="m",version="1"} 1.0' in exposed


async def test_feedback_by_request_id_and_by_value() -> None:
    async with roma_served.serving() as served:
        answer = {"model_version": "1", "id": "b", "outputs": [{"name": "y", "shape": [2, 1], "data": [0.9, 0.2]}]}
        async with served.answering(json.dumps(answer).encode()):
            await served.http.post("/v2/models/m/infer", content=b"{}", headers={"X-Request-Id": "a"})
        async with served.answering(b'{"predictions": [[0.1, 0.9]]}'):
            await served.http.post("/v1/models/m:predict", content=b"{}", headers={"X-Request-Id": "t"})
        records = [
            {"id": "a", "label": [1, 1]},
            {"id": "b", "label": [1, 0]},
            {"id": "t", "label": 1},
            {"id": "nobody", "label": 1},
            {"prediction": 0.9, "label": 0, "version": "7"},
        ]
        told = await served.http.post("/v2/models/m/feedback", json={"records": records})
        assert told.json() == {"counted": 6, "unknown_ids": ["nobody"]}
        found = (await served.http.get("/v2/models/m/feedback")).json()["versions"]
        assert found["1"] == {"records": 5, "accuracy": 0.8, "mae": pytest.approx((0.1 + 0.8 + 0.1 + 0.2) / 4)}
        assert found["7"] == {"records": 1, "accuracy": 0.0, "mae": 0.9}
        status = (await served.http.get("/v2/mlscale/models/m")).json()
        assert status["quality"] == found


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"records": []},
        {"records": [{"label": 1}]},
        {"records": [{"label": 1, "prediction": 1, "id": "a"}]},
        {"records": [{"label": 1, "id": 7}]},
        {"records": [{"label": 1, "prediction": 1, "version": "../x"}]},
        {"records": [{"label": 1, "prediction": 1, "more": 1}]},
        {"records": [{"label": 1, "prediction": 1}, {"label": "a", "prediction": 1}]},
    ],
)
async def test_bad_feedback_counts_nothing(body: object) -> None:
    async with roma_served.serving() as served:
        assert (await served.http.post("/v2/models/m/feedback", json=body)).status_code == 400
        assert (await served.http.get("/v2/models/m/feedback")).json()["versions"] == {}
