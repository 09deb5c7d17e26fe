"""What operators and sensors conclude from a status."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import watch


def status(**changes: Any) -> dict[str, Any]:
    return {
        "name": "m",
        "version": "2",
        "state": "ready",
        "reason": "",
        "settled": True,
        "objective": {"milliseconds": 50, "percentile": 95},
        "candidate": None,
        "failure": None,
        "requests": 500,
        "errors": 0,
        "percentile_ms": 40.0,
        "verdict": "on_target",
        "cores": {"guaranteed": 0.5},
        "worker": {"load_s": 2.5},
        **changes,
    }


def test_a_version_that_serves_is_deployed() -> None:
    look = watch.deployed(status(), "2")
    assert look.done
    assert look.summary["load_s"] == 2.5


def test_a_version_that_loads_is_waited_for() -> None:
    loading = status(candidate={"version": "3", "state": "warming", "reason": ""})
    assert watch.pending_version(loading) == "3"
    assert not watch.deployed(loading, "3").done
    assert not watch.deployed(status(state="restarting"), "2").done


def test_a_version_that_failed_says_why_and_what_serves() -> None:
    failed = status(failure={"version": "3", "reason": "no variables"})
    with pytest.raises(errors.RunFailedError, match=r"version 3 .* no variables; version 2 goes on serving"):
        watch.deployed(failed, "3")


def test_a_version_that_another_one_replaced_is_an_error() -> None:
    with pytest.raises(errors.RunFailedError, match="replaced by version 2"):
        watch.deployed(status(), "1")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"min_requests": 0}, "min_requests"),
        ({"min_requests": "a"}, "min_requests"),
        ({"window_s": "a"}, "window_s"),
        ({"window_s": 1801}, "window_s"),
        ({"window_s": float("nan")}, "window_s"),
        ({"held_for_s": "a"}, "held_for"),
        ({"held_for_s": float("inf")}, "held_for"),
        ({"version": "a/b"}, "version"),
        ({"version": ""}, "version"),
    ],
)
def test_a_condition_that_cannot_be_is_refused(arguments: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.InvalidInputError) as refused:
        watch.ObjectiveCondition(**arguments)
    assert refused.value.field == field


CONDITION = watch.ObjectiveCondition(min_requests=100, held_for_s=10)


def look(changes: dict[str, Any], *, since: float | None, now: float) -> tuple[bool, float | None]:
    one, held = watch.objective(status(**changes), CONDITION, held_since=since, now=now)
    return one.done, held


def test_the_objective_must_hold_for_its_time() -> None:
    assert look({}, since=None, now=100) == (False, 100)
    assert look({}, since=100, now=109) == (False, 100)
    assert look({}, since=100, now=110) == (True, 100)


@pytest.mark.parametrize(
    "changes",
    [{"percentile_ms": 50.1}, {"requests": 99}, {"state": "restarting"}, {"requests": 0, "percentile_ms": None}],
)
def test_a_break_starts_the_time_again(changes: dict[str, Any]) -> None:
    assert look(changes, since=100, now=200) == (False, None)


@pytest.mark.parametrize("state", ["failed", "unloaded"])
def test_waiting_for_a_model_that_cannot_serve_fails_early(state: str) -> None:
    with pytest.raises(errors.RunFailedError, match="deploy it again"):
        look({"state": state}, since=None, now=0)


def test_only_the_version_asked_for_counts() -> None:
    condition = watch.ObjectiveCondition(version="3")
    one, _ = watch.objective(status(), condition, held_since=None, now=0)
    assert not one.done
    assert "serves version 2, not 3" in one.told


def test_the_summary_names_the_percentile() -> None:
    one, _ = watch.objective(status(), watch.ObjectiveCondition(), held_since=None, now=0)
    assert one.summary["p95_ms"] == 40.0
    assert one.summary["met"] is True
    assert "p99_ms" in watch.summary(status(objective={"milliseconds": 50, "percentile": 99}))


@pytest.mark.parametrize("wrong", [{"min_requests": 0}, {"window_s": 0}, {"held_for_s": -1}, {"window_s": 1e6}])
def test_conditions_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidInputError):
        watch.ObjectiveCondition(**wrong)


TRIAL = {
    "version": "3",
    "fraction": 0.1,
    "state": "fine",
    "reason": "0.0 % of 60 missed 50 ms",
    "requests": 60,
    "errors": 1,
    "percentile_ms": 45.0,
}
WARM = {"version": "3", "state": "ready", "reason": "", "checksum": "abc"}


def test_a_canary_is_deployed_once_it_takes_its_part() -> None:
    starting = watch.deployed(status(candidate=WARM, canary={**TRIAL, "state": "starting"}), "3")
    assert not starting.done
    quality = {"2": {"accuracy": 0.9, "mae": 0.1}, "3": {"accuracy": 0.8, "mae": None}}
    look = watch.deployed(status(candidate=WARM, canary=TRIAL, checksum="old", quality=quality), "3")
    assert look.done
    assert "takes 10 % of the requests beside version 2: fine" in look.told
    summary = look.summary
    assert (summary["version"], summary["stable_version"], summary["canary"]) == ("3", "2", "fine")
    assert (summary["requests"], summary["errors"], summary["p95_ms"], summary["checksum"]) == (60, 1, 45.0, "abc")
    assert summary["accuracy"] == 0.8
    assert "mae" not in summary  # of the stable version alone
    assert watch.summary(status(quality=quality))["mae"] == 0.1


def test_the_objective_of_a_canary_is_measured_on_it_alone() -> None:
    condition = watch.ObjectiveCondition(min_requests=50, version="3")
    slow = status(candidate=WARM, canary={**TRIAL, "percentile_ms": 51.0})
    assert "p95 51.0 ms is above 50 ms" in watch.objective(slow, condition, held_since=None, now=0)[0].told
    look, _ = watch.objective(status(candidate=WARM, canary=TRIAL), condition, held_since=None, now=0)
    assert (look.done, look.summary["version"], look.summary["requests"]) == (True, "3", 60)


def test_waiting_for_a_version_that_was_left_fails() -> None:
    left = status(failure={"version": "3", "reason": "the canary is worse: 9 % failed"})
    with pytest.raises(errors.RunFailedError, match="9 % failed"):
        watch.objective(left, watch.ObjectiveCondition(version="3"), held_since=None, now=0)
    with pytest.raises(errors.RunFailedError, match="9 % failed"):
        watch.deployed(left, "3")
