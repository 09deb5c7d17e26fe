"""The deadline benchmark end to end, small: a real cluster, two rivals, rows and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_mlscale.cpu import detect
from benchmarks.deadline import __main__ as command

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(600)]  # a busy machine starts its JVMs slowly


def test_a_tiny_session_measures_draws_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not detect.local().enforces:
        pytest.skip("CPU shares cannot be enforced here")
    monkeypatch.setenv("MLSCALE_HOME", "")  # the command sets it: put it back afterwards
    path, docs = tmp_path / "deadline.json", tmp_path / "docs"
    arguments = ["--results", str(path), "--docs", str(docs), "--home", str(tmp_path / "home")]
    scope = ["--apps", "aggregate", "--rivals", "ours_reserve,fixed", "--factors", "1.5", "--seeds", "1"]
    assert command.main([*arguments, *scope, "--baselines", "1", "--scale", "0.02"]) == 0

    results = json.loads(path.read_text())
    rows = {row["system"]: row for row in results["rows"]}
    assert set(rows) == {"ours_reserve", "fixed", "none"}
    (alone,) = results["baselines"]["aggregate"]
    assert rows.pop("none")["finish_s"] == alone["finish_s"]
    for row in rows.values():
        assert row["error"] is None
        assert row["deadline_s"] == pytest.approx(1.5 * alone["finish_s"], abs=0.02)
        assert row["work_core_s"] == alone["used_core_s"]
        assert 0 < row["used_core_s"] <= 1.1 * row["cap_core_s"]
        assert row["mean_cores"] <= row["peak_cores"] <= 2
        assert row["met"] == (row["finish_s"] <= row["deadline_s"])
    assert rows["fixed"]["granted_core_s"] == rows["fixed"]["cap_core_s"]
    assert rows["ours_reserve"]["driver_used_core_s"] > 0
    assert {file.name for file in (docs / "img").iterdir()} == {"deadline.png", "burn-down.png"}
    assert not [group for group in detect.local().groups() if group.name.startswith("spark-aggregate-")]

    assert command.main([*arguments, *scope, "--baselines", "1", "--resume"]) == 0
    assert len(json.loads(path.read_text())["rows"]) == 3
