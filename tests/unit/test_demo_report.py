"""What the exit code of the demo rests on: every promise can be broken, and an absent figure keeps none."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from demo import report

ROUNDS = [
    {"round": 1, "value": 0.8, "answered": 6},
    {"round": 2, "value": 0.91, "answered": 5},
    {"round": 3, "value": 0.92, "answered": 6},
]
RESULTS: dict[str, dict[str, Any]] = {
    "features": {
        "deadline_s": 150.0,
        "finish_s": 142.0,
        "met": True,
        "mode": "reserve",
        "profile": "warm",
        "granted_core_s": 80.0,
        "used_core_s": 70.0,
        "series": [
            {"t_s": 1.0, "guaranteed_cores": 0.5, "ceiling_cores": None, "used_cores": None, "progress": None},
            {"t_s": 2.0, "guaranteed_cores": 0.6, "ceiling_cores": 0.6, "used_cores": 0.5, "progress": 0.4},
        ],
    },
    "train": {
        "target": 0.9,
        "metric": "accuracy",
        "reached": True,
        "accuracy": 0.92,
        "rounds": 3,
        "stopped_early": True,
        "stopped_reason": "held",
        "rounds_table": ROUNDS,
        "sites_table": [{"site": f"site-{number}", "answered": 3 if number < 6 else 0} for number in range(7)],
    },
    "objective_holds": {"objective_ms": 50.0, "p95_ms": 12.0, "met": True},
    "replay_held_out": {"requests": 1000, "errors": 0, "p95_ms": 20.0, "accuracy": 0.9, "series": []},
}


class Recorded:
    """The answers of Airflow's API, as recorded from a run."""

    def __init__(self, results: dict[str, dict[str, Any]], state: str = "success") -> None:
        self.results = results
        self.state = state

    def result(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        return self.results.get(task_id, {})

    def summary(self, dag_id: str, run_id: str, task_id: str) -> dict[str, Any]:
        return {}

    def run_state(self, dag_id: str, run_id: str) -> str:
        return self.state

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        return [{"task_id": name, "state": "success", "duration": 1.0} for name in self.results]


def collected(results: dict[str, dict[str, Any]], state: str = "success") -> dict[str, Any]:
    return report.collect(Recorded(results, state), "dag", "run", took_s=300.0)  # type: ignore[arg-type]


def test_a_good_run_keeps_every_promise() -> None:
    outcome = collected(RESULTS)
    assert report.kept(outcome)
    assert (outcome["federated"]["sites"], outcome["federated"]["sites_trained"]) == (7, 6)
    assert "on 6 of 7 sites" in report.promises(outcome)["quality"][1]


@pytest.mark.parametrize(
    ("task", "change", "promise"),
    [
        ("features", {"met": False}, "deadline"),
        ("features", {"met": None}, "deadline"),
        ("train", {"reached": False}, "quality"),
        ("objective_holds", {"met": False}, "objective"),
        ("replay_held_out", {"errors": 1}, "objective"),
        ("replay_held_out", {"p95_ms": 50.1}, "objective"),
        ("replay_held_out", {"p95_ms": None}, "objective"),
    ],
)
def test_each_promise_can_be_broken(task: str, change: dict[str, Any], promise: str) -> None:
    results = copy.deepcopy(RESULTS)
    results[task].update(change)
    outcome = collected(results)
    assert [name for name, (met, _) in report.promises(outcome).items() if not met] == [promise]
    assert not report.kept(outcome)


def test_a_failed_run_breaks_a_promise_whatever_its_tasks_say() -> None:
    assert not report.kept(collected(RESULTS, state="failed"))


@pytest.mark.parametrize("task", sorted(RESULTS))
def test_a_task_that_delivered_nothing_keeps_nothing(task: str, tmp_path: Path) -> None:
    outcome = collected({name: values for name, values in RESULTS.items() if name != task})
    assert not report.kept(outcome)
    report.write(outcome, tmp_path)  # and a report is written all the same


def test_the_report_holds_what_it_promises(tmp_path: Path) -> None:
    report.write(collected(RESULTS), tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["spark"].keys() >= {"deadline_s", "finish_s", "met"}
    assert written["federated"].keys() >= {"target", "reached", "accuracy", "rounds", "stopped_early"}
    assert written["serving"].keys() >= {"objective_ms", "p95_ms", "requests", "errors", "met"}
    assert written["dag_state"] == "success"
    assert (tmp_path / "report.html").read_text().count("kept") >= 4
