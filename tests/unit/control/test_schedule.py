"""A graph of stages on so many cores, with its arithmetic shown."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.control.schedule import Node, Phase, cores_within, duration_s, phases


def node(*parts: tuple[float, float], after: tuple[int, ...] = (), gap_s: float = 0.0) -> Node:
    return Node(phases=tuple(Phase(work, parallelism) for work, parallelism in parts), after=after, gap_s=gap_s)


def test_full_waves_use_every_slot_and_the_last_one_what_it_has() -> None:
    assert phases(10.0, tasks=5, slots=2) == (Phase(8.0, 5.0), Phase(2.0, 1.0))
    assert phases(12.0, tasks=6, slots=2) == (Phase(12.0, 6.0),)
    assert phases(3.0, tasks=1, slots=4) == (Phase(3.0, 1.0),)
    assert phases(0.0, tasks=5, slots=2) == ()


def test_a_long_task_runs_alone_for_the_rest_of_its_length() -> None:
    # mean 2.5; 4 − 2.5 alone; the other 8.5 in two waves
    assert phases(10.0, tasks=4, slots=2, longest_core_s=4.0) == (Phase(8.5, 4.0), Phase(1.5, 1.0))
    assert sum(part.work_core_s for part in phases(10.0, tasks=4, slots=2, longest_core_s=99.0)) == 10.0


def test_a_chain_takes_the_sum() -> None:
    chain = [node((10, 4)), node((6, 1), after=(0,), gap_s=2.0)]
    assert duration_s(chain, 2.0) == pytest.approx(10 / 2 + 2 + 6 / 1)


def test_parallel_stages_share_the_cores_in_their_order() -> None:
    fan = [node((4, 2)), node((6, 2))]
    assert duration_s(fan, 2.0) == pytest.approx(5.0)  # (4 + 6)/2
    assert duration_s(fan, 3.0) == pytest.approx(2 + 4 / 2)  # 2 and 1 cores for 2 s, then 2 for the other
    assert duration_s(fan, 4.0) == pytest.approx(3.0)


def test_two_serial_branches_run_side_by_side() -> None:
    diamond = [node((1, 1)), node((10, 1), after=(0,)), node((10, 1), after=(0,)), node((1, 1), after=(1, 2))]
    assert duration_s(diamond, 2.0) == pytest.approx(12.0)
    assert duration_s(diamond, 1.0) == pytest.approx(22.0)
    assert cores_within(diamond, 12.1) == pytest.approx(2.0, rel=0.02)
    assert cores_within(diamond, 11.9) == inf  # the critical path


def test_nothing_left_takes_its_gaps() -> None:
    assert duration_s([], 1.0) == 0.0
    assert duration_s([node(gap_s=3.0)], 0.0) == 3.0
    assert duration_s([node((1, 1))], 0.0) == inf
    assert cores_within([], 10.0) == 0.0
    assert cores_within([node((1, 1))], 0.0) == inf


@pytest.mark.parametrize("work", [1e-10, 2e-9, 1e-8, 1e-6])
def test_next_to_nothing_ends_with_next_to_no_cores(work: float) -> None:
    left = [node((work, 1.0), gap_s=2.0)]
    assert cores_within(left, 100.0) <= 1e-7  # work ÷ time may be less than counts as cores at all
    assert duration_s(left, 1e-10) == inf


def test_a_serial_stage_makes_the_others_hurry() -> None:
    # 10 s of the 30 go to the serial stage whatever the share: 40/20
    assert cores_within([node((40, 8)), node((10, 1), after=(0,))], 30.0) == pytest.approx(2.0, rel=0.01)


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    nodes: list[Node] = []
    for place in range(draw(st.integers(1, 10))):
        after = draw(st.sets(st.integers(0, place - 1), max_size=2)) if place else set()
        work, tasks = draw(st.floats(0, 100)), draw(st.integers(1, 30))
        parts = phases(work, tasks=tasks, slots=draw(st.integers(1, 8)), longest_core_s=draw(st.floats(0, 20)))
        nodes.append(Node(phases=parts, after=tuple(sorted(after)), gap_s=draw(st.floats(0, 5))))
    return nodes


@given(nodes=graphs(), cores=st.floats(0.1, 64))
def test_the_duration_lies_within_grahams_bounds(nodes: list[Node], cores: float) -> None:
    work = sum(each.work_core_s for each in nodes)
    found, path = duration_s(nodes, cores), duration_s(nodes, inf)
    assert found >= max(path, work / cores) * (1 - 1e-6)
    serial = sum(part.work_core_s / min(cores, part.parallelism) for each in nodes for part in each.phases)
    assert found <= serial + sum(each.gap_s for each in nodes) + 1e-6


@given(nodes=graphs(), time_s=st.floats(0.1, 1000))
def test_the_least_cores_are_enough_and_less_is_not(nodes: list[Node], time_s: float) -> None:
    cores = cores_within(nodes, time_s)
    if cores == inf:
        assert duration_s(nodes, inf) > time_s * (1 - 1e-6)
    elif cores > 1e-6:
        assert duration_s(nodes, cores) <= time_s * 1.003
        assert duration_s(nodes, cores * 0.98) > time_s * 0.99
