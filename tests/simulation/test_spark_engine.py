"""The simulated Spark of the benchmark keeps the rules of the real one."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from airflow_mlscale.spark.model import Progress, StageStatus
from benchmarks.deadline_sim import applications, closed_loop, draws, engine

NEVER = draws.Chance(
    run_sd=0,
    stage_sd=0,
    task_sd=0,
    gap_sd=0,
    edge_sd=0,
    scale_range=(1, 1),
    straggler=0,
    failure=0,
    fetch_failure=0,
    lost_executor=0,
    replan=0,
    derating=(1, 1),
)
"""Runs without any chance."""

BARE = applications.Application(
    shape="by hand",
    stages=(
        applications.Stage(name="a", works=(2.0, 2.0), job=0),
        applications.Stage(name="b", works=(3.0,), job=0),
        applications.Stage(name="c", works=(1.0,) * 4, job=1, parents=(0, 1)),
    ),
    jobs=(applications.Job(), applications.Job(after=(0,), gap_s=1.5)),
    executors=1,
    cores_each=2,
    lead_s=8.0,
    startup_core_s=1.0,
    warm_up=0.0,
    tail_s=0.5,
    slow_cost=0.0,
    speculation=False,
)


def ended(draw: draws.Draw, cores: float, *, look_every_s: float = 1.0) -> tuple[engine.Run, list[Progress]]:
    """The run at constant cores, and what was seen of it."""
    run, seen = engine.Run(draw), []
    while run.finished_at is None:
        assert run.elapsed_s < 10_000
        run.advance(run.now + look_every_s, cores)
        seen += [progress] if (progress := run.progress()) else []
    return run, seen


def drawn(chance: draws.Chance, *, application: applications.Application = BARE, seed: int = 1) -> draws.Draw:
    return draws.draw(application, Random(seed), chance)


def test_stages_share_slots_first_come_first_served() -> None:
    run, _ = ended(drawn(NEVER), 2.0)
    # lead 8; a's two tasks 2 s side by side; b's alone 3 s; gap 1.5; c in two waves of 1 s; tail 0.5
    assert run.elapsed_s == pytest.approx(8 + 2 + 3 + 1.5 + 2 + 0.5)
    assert run.used_core_s == pytest.approx(1 + 4 + 3 + 4)


def test_half_the_cores_stretch_tasks_but_neither_gaps_nor_what_runs_alone() -> None:
    run, _ = ended(drawn(NEVER), 1.0)
    assert run.elapsed_s == pytest.approx(8 + 4 + 3 + 1.5 + 4 + 0.5)


def test_work_costs_more_when_it_is_slow() -> None:
    run, _ = ended(drawn(NEVER, application=replace(BARE, slow_cost=0.1)), 1.0)
    # One core for two tasks: a and c cost 5 % more; b, which has a core for itself, nothing; nor the start.
    assert run.used_core_s == pytest.approx(1 + 4 * 1.05 + 3 + 4 * 1.05)


def test_a_job_lists_its_stages_when_it_is_submitted() -> None:
    _, seen = ended(drawn(NEVER), 2.0)
    counts = [len(progress.stages) for progress in seen]
    assert counts == sorted(counts)
    assert set(counts) == {0, 2, 3}


def test_metrics_advance_only_when_tasks_end() -> None:
    run = engine.Run(drawn(NEVER))
    run.advance(engine.START + 9.9, 2.0)
    first = run.progress()
    assert first is not None
    assert (first.stages[0].active, first.stages[0].complete, first.stages[0].run_time_s) == (2, 0, 0.0)
    assert run.used_core_s == pytest.approx(1 + 2 * 1.9)
    run.advance(engine.START + 10.1, 2.0)
    second = run.progress()
    assert second is not None
    assert (second.stages[0].status, second.stages[0].complete) == (StageStatus.COMPLETE, 2)
    assert second.stages[0].run_time_s == pytest.approx(4)
    assert second.stages[0].longest_s == pytest.approx(2)


def test_a_failed_attempt_is_repeated() -> None:
    draw = replace(drawn(NEVER), failures={(1, 0): 0.5})
    run, _ = ended(draw, 2.0)
    assert run.used_core_s == pytest.approx(12 + 0.5 * 3)
    assert run.elapsed_s == pytest.approx(17 + 0.5 * 3)


def test_a_fetch_failure_brings_back_the_parent_for_what_is_missing() -> None:
    failure = draws.FetchFailure(complete=0, parent=0, missing=(1,))
    draw = replace(drawn(NEVER), fetch_failures={2: failure})
    run, seen = ended(draw, 2.0, look_every_s=0.25)
    shown = [tuple((s.status, s.complete) for s in progress.stages) for progress in seen if len(progress.stages) == 3]
    again = [(parent, child) for parent, _, child in shown if child[0] is StageStatus.FAILED]
    assert again
    assert {parent for parent, _ in again} == {(StageStatus.ACTIVE, 1)}
    assert shown[-1][2] == (StageStatus.COMPLETE, 4)
    # One of c's first two tasks is complete, the other is lost with the attempt; a's second task is made again.
    assert run.used_core_s == pytest.approx(12 + 2 + 1, abs=1.01)


def test_a_lost_executor_comes_back_and_its_tasks_are_run_again() -> None:
    two = replace(BARE, executors=2, cores_each=1)
    draw = replace(drawn(NEVER, application=two), lost=draws.Lost(at_fraction=0.1, back_after_s=2.0))
    run, seen = ended(draw, 2.0, look_every_s=0.25)
    slots = [progress.slots for progress in seen if progress.stages]
    assert (max(slots), min(slots), slots[-1]) == (2, 1, 2)
    assert run.used_core_s > 13


def test_a_speculative_copy_ends_a_straggler() -> None:
    wide = applications.Stage(name="wide", works=(1.0,) * 8, job=0)
    application = replace(BARE, stages=(wide,), jobs=(applications.Job(),), speculation=True)
    calm = drawn(NEVER, application=application)
    slow = replace(application, stages=(replace(wide, works=(*wide.works[:-1], 30.0)),))
    run, _ = ended(replace(calm, application=slow), 2.0)
    without, _ = ended(replace(calm, application=replace(slow, speculation=False)), 2.0)
    assert without.elapsed_s > 38
    assert run.elapsed_s < 18


def test_the_same_draw_has_the_same_run() -> None:
    application = applications.random_application("layers", Random(5))
    draw = draws.draw(application, Random(6))
    assert closed_loop.uncontrolled(draw) == closed_loop.uncontrolled(draw)


@pytest.mark.parametrize("shape", applications.SHAPES)
@pytest.mark.parametrize("seed", range(6))
def test_no_run_is_shorter_than_its_work_or_loses_any(shape: str, seed: int) -> None:
    application = applications.random_application(shape, Random(seed), length_s=(20, 40))
    rough = replace(draws.OTHER_PLAN, failure=0.02, fetch_failure=0.1, lost_executor=0.5, straggler=0.02)
    draw = draws.draw(application, Random(seed), rough)
    run, seen = ended(draw, float(application.slots))
    assert 2 <= len([stage for stage in draw.application.stages if not stage.skipped]) <= 60
    work = draw.application.work_core_s if not draw.application.speculation else 0.0
    assert run.used_core_s >= work
    assert run.elapsed_s >= work / application.slots
    done = [stage for stage in seen[-1].stages if stage.status is not StageStatus.SKIPPED]
    assert {stage.status for stage in done} == {StageStatus.COMPLETE}
    assert all(stage.complete == stage.tasks for stage in done)


def test_a_profile_learned_from_a_run_tells_its_work_and_its_graph() -> None:
    outcome = closed_loop.uncontrolled(drawn(NEVER, application=replace(BARE, tail_s=2.5)))
    assert outcome.plan is not None
    by_key = {stage.key: stage for stage in outcome.plan.stages}
    assert outcome.plan.core_s == pytest.approx(12, rel=0.02)
    assert by_key["c#0"].after == ("b#0",)
    assert by_key["c#0"].gap_s == pytest.approx(1.5)
    assert outcome.plan.tail_s == pytest.approx(2.5)
