"""A served model that became worse rings once, until it has recovered."""

from __future__ import annotations

import json
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import TriggerRule
from airflow.serialization.decoders import smart_decode_trigger_kwargs
from airflow.serialization.encoders import encode_trigger
from airflow.serialization.serialized_objects import DagSerialization

from airflow_mlscale import errors
from airflow_mlscale.roma import degradation
from airflow_mlscale.triggers.roma import RomaDegradedTrigger

CONDITION = degradation.DegradedCondition(min_accuracy=0.9, max_mae=5, objective=True, min_records=100, looks=2)


def status(percentile_ms: float | None = 40.0, requests: int = 500, version: str = "1") -> dict[str, Any]:
    return {
        "name": "m",
        "version": version,
        "objective": {"milliseconds": 50, "percentile": 95},
        "percentile_ms": percentile_ms,
        "requests": requests,
    }


def quality(accuracy: float | None = 0.95, mae: float | None = 1.0, records: int = 500) -> dict[str, Any]:
    return {"accuracy": accuracy, "mae": mae, "records": records}


@pytest.mark.parametrize(
    ("seen", "told", "degraded", "reason"),
    [
        (status(), quality(), False, "accuracy 0.950"),
        (status(), quality(accuracy=0.89), True, "accuracy 0.890 of 500 answers, 0.9 is asked for"),
        (status(), quality(mae=5.1), True, "mean absolute error 5.1"),
        (status(51.0), quality(), True, "p95 51.0 ms of 500 requests, 50 ms are asked for"),
        (status(51.0), quality(accuracy=0.5), True, "accuracy 0.500 of 500 answers, 0.9 is asked for; p95 51.0 ms"),
        (status(51.0, requests=99), quality(), False, "accuracy"),
        (status(51.0, requests=99), quality(accuracy=0.1, records=99), None, ""),
        (status(None, requests=0), None, None, ""),
        (status(), quality(accuracy=None, mae=None), False, "p95"),
    ],
)
def test_what_counts_as_worse(
    seen: dict[str, Any], told: dict[str, Any] | None, degraded: bool | None, reason: str
) -> None:
    found = degradation.find(seen, told, CONDITION)
    assert found.degraded is degraded
    assert found.reason.startswith(reason)


def rings(findings: list[tuple[str, bool | None]], alarm: degradation.Alarm = degradation.Alarm()) -> str:
    told = ""
    for version, degraded in findings:
        rang, alarm = degradation.step(alarm, degradation.Finding(version=version, degraded=degraded), looks=2)
        alarm = degradation.alarm_from_json(alarm.as_json())  # as after a restart
        told += "!" if rang else "."
    return told


def test_it_rings_once_after_two_looks_and_again_only_after_recovery() -> None:
    bad, good, unknown = ("1", True), ("1", False), ("1", None)
    assert rings([bad, bad, bad, bad]) == ".!.."
    assert rings([bad, good, bad, good, bad]) == "....."  # never two in a row
    assert rings([bad, unknown, bad, unknown, bad]) == "..!.."
    assert rings([bad, bad, good, bad, bad]) == ".!..."  # one good look is no recovery
    assert rings([bad, bad, good, good, bad, bad]) == ".!...!"


def test_another_version_rings_for_itself() -> None:
    assert rings([("1", True), ("1", True), ("2", True), ("2", True)]) == ".!.!"


def test_what_it_remembers_may_be_missing_or_foreign() -> None:
    for document in (None, [], {"nonsense": 1}, "x"):
        assert degradation.alarm_from_json(document) == degradation.Alarm()


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "min_accuracy"),
        ({"min_accuracy": 1.1}, "min_accuracy"),
        ({"max_mae": -1}, "max_mae"),
        ({"objective": True, "min_records": 0}, "min_records"),
        ({"objective": True, "looks": 0}, "looks"),
        ({"objective": True, "window_s": 1}, "window_s"),
        ({"objective": True, "objective_window_s": 0}, "objective_window_s"),
    ],
)
def test_bad_conditions_are_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.InvalidInputError) as refused:
        RomaDegradedTrigger(model_name="m", condition=fields)
    assert refused.value.field == field


def test_the_trigger_is_the_same_for_airflow_whenever_the_dag_is_parsed() -> None:
    path, arguments = RomaDegradedTrigger(model_name="m", condition=CONDITION).serialize()
    again = RomaDegradedTrigger(**arguments)
    assert again.serialize() == (path, arguments)
    assert RomaDegradedTrigger.hash(path, arguments) == RomaDegradedTrigger.hash(*again.serialize())


def test_airflow_keeps_the_watcher_of_the_example_as_it_is() -> None:
    names = runpy.run_path(str(Path(__file__).parents[2] / "dags" / "flight_delay_rollout.py"))
    serialised = json.loads(json.dumps(DagSerialization.to_dict(names["flight_delay_degraded"]())))
    ((asset,),) = [serialised["dag"]["timetable"]["__var"]["asset_condition"]["objects"]]
    stored = asset["watchers"][0]["trigger"]
    assert stored == encode_trigger(names["DEGRADED"].watchers[0].trigger)
    arguments = {name: smart_decode_trigger_kwargs(value) for name, value in stored["kwargs"].items()}
    again = RomaDegradedTrigger(**arguments)
    assert again.condition == degradation.DegradedCondition(min_accuracy=0.85, objective=True, min_records=200)


def test_the_example_asks_a_person_between_canary_and_promotion() -> None:
    names = runpy.run_path(str(Path(__file__).parents[2] / "dags" / "flight_delay_rollout.py"))
    rollout = names["flight_delay_rollout"]()
    order = ["try_it", "objective_holds", "ask", "promote", "leave"]
    for before, after in pairwise(order):
        assert after in rollout.get_task(before).downstream_task_ids
    unproven = rollout.get_task("leave_unproven")
    assert unproven.upstream_task_ids == {"objective_holds", "ask"}
    assert unproven.trigger_rule == TriggerRule.ONE_FAILED
    assert rollout.get_task("leave").trigger_rule == TriggerRule.ALL_SKIPPED
