"""The simulated kernel and the closed loop of ``benchmarks/serving_sim``."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.serving_sim import cases, closed_loop, host, report, workload


def group(weight: float, executions: int, quota: float = inf) -> host.Group:
    made = host.Group(weight=weight, quota=quota)
    for token in range(executions):
        made.start(token, 1.0)
    return made


def test_cores_are_divided_by_weight_and_what_is_left_over_is_used() -> None:
    heavy, light, small = group(3, 4), group(1, 4), group(3, 1, quota=0.25)
    host.divide([heavy, light, small], 4.25)
    assert pytest.approx(3.0) == heavy.rate * 4
    assert pytest.approx(1.0) == light.rate * 4
    assert small.rate == 0.25


def test_a_quota_holds_once_the_bucket_is_empty_and_a_write_fills_it() -> None:
    one = group(1, 2)
    one.limit(0.5)
    assert pytest.approx(0.05) == one.bucket  # half a core for a period of 100 ms
    host.divide([one], 4.0)
    assert one.rate == 1.0
    assert pytest.approx(0.05 / 1.5) == one.next_s()  # two cores in use, half a one coming in
    one.advance(one.next_s())
    host.divide([one], 4.0)
    assert pytest.approx(0.25) == one.rate
    one.limit(0.5)  # not a write
    assert one.bucket == pytest.approx(0.0, abs=1e-9)


@given(
    st.lists(
        st.tuples(st.floats(0.01, 8), st.integers(1, 6), st.floats(0.05, 8) | st.just(inf)), min_size=1, max_size=8
    ),
    st.floats(0.5, 16),
)
def test_nobody_gets_more_than_it_can_use_and_nothing_is_wasted(
    drawn: list[tuple[float, int, float]], cores: float
) -> None:
    groups = [group(*each) for each in drawn]
    host.divide(groups, cores)
    rates = [one.rate * one.executions for one in groups]
    assert all(rate <= one.most + 1e-9 for rate, one in zip(rates, groups, strict=True))
    assert pytest.approx(min(cores, sum(one.most for one in groups))) == sum(rates)


def test_arrivals_have_the_mean_that_was_asked_for() -> None:
    found = workload.profiles(3, count=4, cores=4.0, load=0.5)
    assert pytest.approx(2.0) == sum(one.mean_per_s * one.alone_s for one in found)
    for shape in workload.SHAPES:
        times = workload.arrivals(3, found, length_s=200.0, shape=shape)
        assert times == sorted(times)
        assert pytest.approx(200 * sum(one.mean_per_s for one in found), rel=0.1) == len(times)


@pytest.mark.parametrize("system", closed_loop.systems())
def test_every_request_comes_out_once_and_no_more_is_used_than_there_is(system: str) -> None:
    found = workload.profiles(1, count=3, cores=2.0, load=1.2)
    outcomes = closed_loop.simulate(system, found, cores=2.0, length_s=5.0, shape="steps", seed=1, warm_up_s=2.0)
    arrivals = workload.arrivals(1, found, length_s=5.0, shape="steps")
    assert sum(tally.requests for tally in outcomes.tallies.values()) == sum(t >= 2.0 for t, _ in arrivals)
    for tally in outcomes.tallies.values():
        assert len(tally.latencies_s) + tally.shed == tally.requests
        assert tally.shed <= tally.violations <= tally.requests
    assert 0 < outcomes.used_core_s <= 2.0 * outcomes.length_s + 1e-6
    assert outcomes.granted_core_s <= 2.0 * outcomes.length_s + 1e-6


def test_the_same_seed_brings_the_same_run() -> None:
    found = workload.profiles(5, count=2, cores=1.0, load=0.5)
    runs = [
        closed_loop.simulate("ours_reserve", found, cores=1.0, length_s=5.0, shape="diurnal", seed=5, warm_up_s=1.0)
        for _ in range(2)
    ]
    assert [{name: tally.latencies_s for name, tally in run.tallies.items()} for run in runs] == 2 * [
        {name: tally.latencies_s for name, tally in runs[0].tallies.items()}
    ]
    assert runs[0].granted_core_s == runs[1].granted_core_s


def row(system: str, violations: float, granted: float, load: float = 0.5) -> cases.Row:
    return cases.Row(
        system=system, host="8x10", shape="steps", load=load, seed=0, requests=100, violations_pct=violations,
        shed_pct=0.0, goodput_per_s=1.0, models_on_target=1, models=1, p50_ratio=0.1, p95_ratio=0.5, p99_ratio=0.9,
        granted_core_s=granted, cap_core_s=granted, used_core_s=1.0,
    )  # fmt: skip


def test_what_came_out_is_written_where_people_and_programs_look(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- serving-sim: begin -->\nold\n<!-- serving-sim: end -->\nafter\n")
    rows = [row("ours_reserve", 2.0, 70.0, load) for load in (0.5, 0.9)] + [row("static", 10.0, 100.0)]
    report.write(tmp_path, rows, {"seeds": [0, 1], "length_s": 40.0, "law": "abc"})
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "| 8x10 | steps | 0.5 | static | 10.00 |" in text
    assert "- met: 8x10 steps 0.5: ours_reserve against static" in text
    assert "Seed 0, 40 s of which 10 warm up, law abc." in text
    assert len(json.loads((tmp_path / "benchmarks/results/serving-sim.json").read_text())["rows"]) == 3
    assert (tmp_path / "docs/img/serving-sim.png").read_bytes().startswith(b"\x89PNG")


def test_a_target_that_is_missed_is_said_to_be() -> None:
    said = report.targets([row("ours_reserve", 2.0, 70.0), row("static", 10.0, 100.0), row("ct", 4.0, 100.0)])
    assert said[0].startswith("met:")  # 80 % fewer, 30 % cheaper
    assert said[1].startswith("NOT met:")  # 50 % fewer
