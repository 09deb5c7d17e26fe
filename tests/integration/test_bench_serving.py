"""The serving benchmarks end to end, small: real models, real daemons, rows, tables and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from airflow_mlscale.cpu import detect
from benchmarks.serving import __main__ as serving
from benchmarks.serving import overhead

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(900)]


def test_a_tiny_session_measures_draws_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not detect.local().enforces:
        pytest.skip("CPU shares cannot be enforced here")
    monkeypatch.setenv("MLSCALE_HOME", "")  # the command sets it: put it back afterwards
    path, docs = tmp_path / "serving.json", tmp_path / "docs"
    arguments = ["--smoke", "--results", str(path), "--docs", str(docs), "--home", str(tmp_path / "home")]
    before = {group.name for group in detect.local().groups()}
    assert serving.main(arguments) == 0

    found = json.loads(path.read_text())
    rows = {row["system"]: row for row in found["rows"]}
    assert set(rows) == {"static", "ours_reserve"}
    for row in rows.values():
        assert row["error"] is None
        assert row["requests"] == sum(model["requests"] for model in row["models"].values()) > 0
        answered = [model for model in row["models"].values() if model["p50_ms"] is not None]
        assert all(0 < model["p50_ms"] <= model["p95_ms"] <= model["p99_ms"] for model in answered)
        assert 0 < row["gateway_core_s"] < row["used_core_s"]
        assert 0 < row["granted_core_s"] <= row["cap_core_s"] <= row["length_s"] * found["machine"]["cores"] + 0.1
    assert rows["static"]["requests"] == rows["ours_reserve"]["requests"]
    static = rows["static"]
    assert static["granted_core_s"] == pytest.approx(static["length_s"] * found["machine"]["cores"], rel=0.01)
    assert (docs / "img" / "serving.png").exists()
    assert {group.name for group in detect.local().groups()} <= before

    assert serving.main([*arguments, "--resume"]) == 0
    assert json.loads(path.read_text())["rows"] == found["rows"]


def test_the_overhead_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSCALE_HOME", "")
    path, docs = tmp_path / "overhead.json", tmp_path / "docs"
    arguments = ["--smoke", "--results", str(path), "--docs", str(docs), "--home", str(tmp_path / "home")]
    assert overhead.main(arguments) == 0
    found = json.loads(path.read_text())
    latency = found["latency"]
    assert 0 < latency["in_process_p50_ms"] < latency["json_p50_ms"]
    assert [row["clients"] for row in found["rows"]] == [1, 16]
    assert all(row["requests_per_s"] > 0 and row["bad"] == 0 for row in found["rows"])
    assert (docs / "img" / "overhead.png").exists()
