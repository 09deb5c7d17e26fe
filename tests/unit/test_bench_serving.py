"""What ``benchmarks/serving`` makes of its measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale import errors
from benchmarks.serving import meter, models, report, results, session, systems, trial, workload
from benchmarks.serving.results import Key

SERVED = [
    models.Served(model=models.MODELS[name], objective_ms=100.0, rate_per_s=rate)
    for name, rate in (("efficientnet", 20.0), ("flight_delay", 50.0))
]


def event(at: float, group: str, guaranteed: float | None, ceiling: float | None = None) -> dict[str, Any]:
    return {"at": at, "group": group, "guaranteed": guaranteed, "ceiling": ceiling}


def test_shares_are_integrated_over_the_window_and_cut_to_the_host() -> None:
    found = [
        event(0.0, "roma.x.gateway", 0.25),
        event(1.0, "roma.x.a", 0.5, 0.75),
        event(12.0, "roma.x.a", 3.0, 3.0),
        event(14.0, "roma.x.a", None),
    ]
    seen = meter.withheld(found, begin=10.0, end=20.0, host_cores=2.0)
    assert pytest.approx(2 * 0.75 + 2 * 2.0 + 6 * 0.25) == seen.granted_core_s
    assert (
        pytest.approx(2 * 1.0 + 2 * 2.0 + 6 * 0.25) == seen.cap_core_s
    )  # the gateway has no ceiling: what it is granted


def test_a_group_without_a_ceiling_may_take_the_host() -> None:
    seen = meter.withheld([event(0.0, "a", 0.1)], begin=5.0, end=6.0, host_cores=2.0)
    assert pytest.approx(0.1) == seen.granted_core_s
    assert pytest.approx(2.0) == seen.cap_core_s


def test_cpu_of_children_that_have_ended_is_counted() -> None:
    burn = "import time\nwhile time.process_time() < 0.33: pass"  # told in whole hundredths, twice rounded down
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print('x', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        spent = meter.spent(parent.pid, parent.pid)
        parent.communicate(b"\n")
    assert spent.system_s >= 0.3
    assert spent.gateway_s < spent.system_s


def test_late_shed_failed_and_unanswered_requests_are_violations() -> None:
    #        lead  late  good  shed  lost  no answer, of the second model
    told = {
        "targets": [0, 0, 0, 0, 0, 1],
        "at_s": [0.5, 1.0, 2.0, 3.0, 4.0, 5.0],
        "status": [200, 200, 200, 503, 0, -1],
        "late_s": [0.0, 0.001, 0.001, 0.001, 0.002, None],
        "latency_s": [9.0, 0.101, 0.099, 0.001, 0.5, None],
    }
    seen = trial.judged(told, SERVED, lead_s=1.0, length_s=10.0)
    assert seen["requests"] == 5
    assert seen["violations_pct"] == 80.0
    assert (seen["late_pct"], seen["shed_pct"], seen["failed_pct"]) == (20.0, 20.0, 40.0)
    assert seen["goodput_per_s"] == 0.1
    assert seen["sent_late_ms"] == 10_000.0  # one never was sent
    assert seen["models"]["efficientnet"]["p50_ms"] == 99.0
    assert seen["models"]["flight_delay"]["p50_ms"] is None


@pytest.mark.parametrize("shape", workload.SHAPES)
def test_arrivals_have_the_rates_that_were_asked_for(shape: str) -> None:
    found = workload.arrivals(SERVED, shape=shape, load=0.5, seed=3, lead_s=10.0, length_s=400.0)
    assert found == sorted(found)
    measured = [index for at, index in found if at >= 10.0]
    for index, one in enumerate(SERVED):
        assert measured.count(index) == pytest.approx(0.5 * one.rate_per_s * 400, rel=0.1)


def test_a_neighbour_beyond_its_rate_leaves_the_others_as_they_were() -> None:
    def ask(times: float) -> list[tuple[float, int]]:
        return workload.arrivals(SERVED, shape="steady", load=0.5, seed=3, lead_s=5, length_s=100, times=times)

    calm, noisy = ask(1.0), ask(3.0)
    assert [at for at, index in calm if index == 1] == [at for at, index in noisy if index == 1]
    neighbours = [len([at for at, index in each if index == 0]) for each in (calm, noisy)]
    assert neighbours[1] == pytest.approx(3 * neighbours[0], rel=0.15)


@pytest.mark.parametrize(("load", "cores"), [(0.5, [0.25, 1.0]), (1.0, [0.34, 1.36])])
def test_promises_are_for_the_agreed_rates_and_fit_the_host(load: float, cores: list[float]) -> None:
    served = [replace(one, rate_per_s=10.0) for one in SERVED[:2]]
    alone_s = {served[0].model.name: 0.04, served[1].model.name: 0.16}  # 0.4 and 1.6 cores at load 1
    promises = session.promised(served, alone_s, load=load, host_cores=2.0)
    assert [one.min_cores for one in promises] == pytest.approx(cores)


def test_the_same_arrivals_come_to_all_systems_one_after_the_other() -> None:
    scope = replace(session.FULL, seeds=2, shapes=("steps",), neighbours=("sharing",))
    keys = list(session.race(scope))
    assert len(keys) == len(set(keys)) == 2 * (len(systems.SYSTEMS) * 3 + 2)
    size = len(systems.SYSTEMS)
    assert {(key.shape, key.load, key.seed) for key in keys[:size]} == {("steps", 0.5, 1)}
    assert [key.system for key in keys[:size]] != [key.system for key in keys[size : 2 * size]]


@pytest.mark.parametrize(
    ("field", "value"), [("systems", ("nobody",)), ("loads", (0.0,)), ("length", 0.0), ("shapes", ("round",))]
)
def test_a_scope_that_cannot_be_is_refused(field: str, value: Any) -> None:
    with pytest.raises(errors.InvalidInputError, match=field):
        replace(session.QUICK, **{field: value})


def row(system: str, violations: float, granted: float, load: float = 0.5, **others: Any) -> dict[str, Any]:
    shown = {name: {"violations_pct": violations, "p95_ms": 50.0, "objective_ms": 100.0} for name in models.MODELS}
    measured = {"requests": 100, "goodput_per_s": 100.0 - violations, "used_core_s": 10.0, "cap_core_s": granted}
    key = {"system": system, "shape": "steps", "load": load, "seed": 1, "neighbour_times": 1.0}
    costs = {"violations_pct": violations, "granted_core_s": granted, "error": None, "models": shown}
    return {**key, **measured, **costs, **others}


def verdicts(rows: list[dict[str, Any]], says: str) -> list[bool | None]:
    return [target.met for target in report.targets(rows) if target.says.startswith(says)]


@pytest.mark.parametrize(
    ("ours", "static", "met"),
    [
        ((1.0, 15.0), (4.0, 20.0), True),  # 75 % and 25 % fewer
        ((1.1, 15.0), (4.0, 20.0), False),
        ((1.0, 15.5), (4.0, 20.0), False),
        ((0.0, 15.0), (0.0, 20.0), True),  # nothing to save
        ((0.2, 15.0), (0.0, 20.0), False),
    ],
)
def test_a_rival_is_beaten_in_violations_and_in_cores_or_not(
    ours: tuple[float, float], static: tuple[float, float], met: bool
) -> None:
    rows = [row("ours_reserve", *ours), row("static", *static)]
    assert verdicts(rows, "ours_reserve against static: 75") == [met]
    assert verdicts(rows, "ours_work_conserving against static") == [None]


def test_more_cpu_than_a_rival_is_no_victory() -> None:
    rows = [row("ours_reserve", 0.0, 5.0, used_core_s=10.5), row("static", 9.0, 20.0)]
    assert verdicts(rows, "ours_reserve against static: 75") == [False]


def test_overload_is_judged_by_the_best_rival_and_by_what_fitted() -> None:
    rows = [row("ours_reserve", 10.0, 5.0, 0.9), row("ours_reserve", 26.0, 5.0, 1.2), row("static", 20.0, 5.0, 1.2)]
    assert verdicts(rows, "ours_reserve: goodput") == [False]  # 74 < 0.95 · 80
    assert verdicts(rows, "ours_reserve: no collapse") == [True]  # 74 ≥ 0.8 · 90


def test_what_a_neighbour_raises_is_the_worst_of_the_others() -> None:
    beside = {"shape": "steady", "load": 0.75}
    calm, noisy = row("sharing", 1.0, 5.0, **beside), row("sharing", 1.5, 5.0, **beside, neighbour_times=3.0)
    noisy["models"][workload.NEIGHBOUR]["violations_pct"] = 60.0  # its own fault
    assert report.raised_points([calm, noisy], "sharing") == pytest.approx(0.5)
    assert verdicts([calm, noisy], "sharing: a neighbour") == [True]


def test_results_are_whole_after_each_row_and_a_failed_row_is_made_again(tmp_path: Path) -> None:
    found = results.Results(path=tmp_path / "serving.json")
    key = Key("static", "steps", 0.5, 1)
    found.add(key, None, "it did not start")
    found.save()
    again = results.Results.load(found.path)
    assert not again.has(key)
    again.rows[0]["error"] = None
    assert again.has(key)
    assert json.loads(found.path.read_text())["rows"][0]["error"] == "it did not start"


def test_a_session_that_goes_on_tells_all_that_was_asked_for() -> None:
    earlier = {"systems": ["static", "ray_serve"], "loads": [0.5], "seeds": 1}
    later = {"systems": ("static", "sharing"), "loads": (0.9,), "seeds": 2}
    assert session.joined({}, earlier) == earlier
    assert session.joined(earlier, later) == {
        "systems": ["static", "ray_serve", "sharing"],
        "loads": [0.5, 0.9],
        "seeds": 2,
    }


def test_objectives_are_a_multiple_of_the_service_time_with_a_floor() -> None:
    assert models.objective_ms(models.MODELS["pitch"], 0.030) == 240.0  # 8 · 30 ms
    assert models.objective_ms(models.MODELS["flight_delay"], 0.001) == 50.0
