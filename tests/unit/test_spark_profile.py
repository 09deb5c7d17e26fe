"""What a run teaches, and how it is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from airflow_mlscale import errors
from airflow_mlscale.spark import ledger as ledgers
from airflow_mlscale.spark import policy
from airflow_mlscale.spark import profile as profiles
from airflow_mlscale.spark import run as runs
from airflow_mlscale.spark.adapters import rest
from airflow_mlscale.spark.adapters.profile_store import ProfileFiles
from airflow_mlscale.spark.model import (
    Observation,
    Plan,
    Profile,
    Progress,
    Promise,
    Stage,
    StageProfile,
    StageStatus,
    Tally,
    keyed,
)
from airflow_mlscale.spark.settings import DeadlineSettings
from tests.fakes import disk

MIB = 1 << 20


def stage(stage_id: int, name: str = "s", status: str = "COMPLETE", **values: float) -> Stage:
    numbers = {"tasks": 4, "complete": 4, **values}
    return Stage(stage_id=stage_id, name=name, status=StageStatus(status), **numbers)  # type: ignore[arg-type]


def progress(*stages: Stage, at: float = 0.0) -> Progress:
    return Progress(at=at, application_id="a", stages=stages)


def plan(*costs: float, input_bytes: int = 0) -> Plan:
    stages = tuple(
        StageProfile(key=f"s#{n}", core_s=cost, tasks=4, input_bytes=input_bytes) for n, cost in enumerate(costs)
    )
    return Plan(stages=stages)


def booked(ledger: ledgers.Ledger) -> dict[int, float]:
    return {stage_id: tally.core_s for stage_id, tally in ledger.by_stage.items()}


def test_core_seconds_go_to_the_stages_that_ran() -> None:
    nothing = ledgers.book(ledgers.Ledger(), 3.0, None, None, dt_s=1.0)
    assert nothing.startup_core_s == 3.0
    first = progress(stage(0, status="ACTIVE", active=3, complete=0), stage(1, status="ACTIVE", active=1, complete=0))
    ledger = ledgers.book(nothing, 2.0, None, first, dt_s=1.0)
    assert booked(ledger) == {0: 1.5, 1: 0.5}
    over = progress(stage(0, completed_at=9.0), stage(1, completed_at=9.0))
    ledger = ledgers.book(ledger, 0.4, over, over, dt_s=1.0)  # clean-up belongs to the last stage
    assert booked(ledger) == {0: 1.5, 1: pytest.approx(0.9)}


def test_a_stage_too_short_to_be_seen_running_is_booked_by_its_run_time() -> None:
    before = progress(stage(0, run_time_s=1.0))
    after = progress(stage(0, run_time_s=1.0), stage(1, run_time_s=0.3))
    ledger = ledgers.book(ledgers.Ledger(), 0.5, before, after, dt_s=1.0)
    assert booked(ledger) == {0: 0.0, 1: 0.5}


def test_a_last_stage_that_nobody_saw_end_keeps_its_cost() -> None:
    over = replace(stage(0, "real", run_time_s=9.0), submitted_at=1.0, completed_at=2.0)
    last = replace(stage(1, "last", status="ACTIVE", complete=0, active=1), submitted_at=2.0)
    ledger = ledgers.Ledger(0.0, {0: Tally(core_s=7.0), 1: Tally(core_s=13.0, task_s=13.0)})
    real, found = profiles.observed(ledger, progress(over, last), submitted_at=0.0, ended_at=3.0).stages
    assert (real.core_s, found.core_s, found.busy) == (7.0, 13.0, 1.0)


def test_what_no_run_time_bears_out_is_not_the_stages_own() -> None:
    seen = progress(stage(0, "real", run_time_s=9.0), stage(1, "trivial", run_time_s=0.1))
    seen = replace(seen, stages=tuple(replace(each, submitted_at=1.0, completed_at=2.0) for each in seen.stages))
    ledger = ledgers.Ledger(0.0, {0: Tally(core_s=7.0), 1: Tally(core_s=13.0)})
    real, trivial = profiles.observed(ledger, seen, submitted_at=0.0, ended_at=3.0).stages
    assert trivial.core_s < 2.0
    assert real.core_s + trivial.core_s == pytest.approx(20.0)


def test_a_course_that_is_no_longer_taken_is_forgotten() -> None:
    old, new = plan(400.0), replace(plan(40.0), stages=(StageProfile(key="moved#0", core_s=40.0, tasks=4),))
    learned = profiles.learn(None, "k", old, rate=0.4)
    for _ in range(profiles.FORGOTTEN_AFTER - 1):
        learned = profiles.learn(learned, "k", new, rate=0.4)
    assert len(learned.plans) == 2
    assert [each.core_s for each in profiles.learn(learned, "k", new, rate=0.4).plans] == [40.0]
    taken = profiles.learn(learned, "k", old, rate=0.4)
    assert [each.others_since for each in taken.plans] == [0, 1]


def test_first_tasks_that_cost_more_are_learned() -> None:
    ledger, before = ledgers.Ledger(), None
    # one task at a time: the first takes 4 s, the others 1 s each
    for complete, seconds in ((0, 4.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 0.0)):
        run_time_s = 0.0 if not complete else 3.0 + complete
        times = {"completed_at": 7.0} if complete == 4 else {"active": 1}
        status = "COMPLETE" if complete == 4 else "ACTIVE"
        now = progress(stage(0, status=status, complete=complete, run_time_s=run_time_s, **times))
        ledger = ledgers.book(ledger, seconds, before, now, dt_s=seconds)
        before = now
    known = StageProfile(key="s#0", core_s=7.0, tasks=4, curve=ledgers.curve(ledger.by_stage[0]))
    assert [known.part_done(n, 4) for n in range(5)] == [0.0, *(pytest.approx(n / 7, abs=1e-3) for n in (4, 5, 6, 7))]
    assert known.part_done(1, 8) == pytest.approx(2 / 7, abs=1e-3)


def test_without_a_curve_all_tasks_cost_the_same() -> None:
    assert StageProfile(key="s#0", core_s=7.0, tasks=4).part_done(1, 4) == 0.25
    assert ledgers.curve(Tally(core_s=3.0, marks=(1.0, 2.0))) == ()  # nobody saw its end


def test_a_stage_submitted_anew_begins_anew() -> None:
    first = progress(stage(0, status="ACTIVE", active=1, complete=2, submitted_at=1.0))
    second = progress(stage(0, status="ACTIVE", active=1, complete=0, submitted_at=50.0))
    ledger = ledgers.book(ledgers.Ledger(), 9.0, None, first, dt_s=9.0)
    ledger = ledgers.book(ledger, 1.0, first, second, dt_s=1.0)
    assert ledger.by_stage[0] == Tally(core_s=1.0, task_s=1.0)


def test_gaps_are_times_without_any_stage() -> None:
    seen = progress(
        stage(0, "a", submitted_at=105.0, completed_at=110.0),
        stage(1, "b", submitted_at=106.0, completed_at=112.0),
        stage(2, "c", submitted_at=115.0, completed_at=118.0),
        stage(3, "d", status="PENDING"),
    )
    learned = profiles.observed(ledgers.Ledger(2.0, {0: Tally(core_s=1.0)}), seen, submitted_at=100.0, ended_at=119.5)
    assert [(known.key, known.gap_s) for known in learned.stages] == [("a#0", 0.0), ("b#0", 0.0), ("c#0", 3.0)]
    assert (learned.lead_s, learned.tail_s, learned.startup_core_s) == (5.0, 1.5, 2.0)


def test_a_stage_running_in_the_last_reading_ended_soon_after_it() -> None:
    seen = progress(stage(0, "a", status="ACTIVE", submitted_at=105.0), at=108.0)
    learned = profiles.observed(ledgers.Ledger(), seen, submitted_at=100.0, ended_at=110.0)
    assert (learned.lead_s, learned.tail_s) == (5.0, 1.5)  # 110 − 108 − 0.5 until the next reading


def test_without_a_meter_the_run_time_is_learned() -> None:
    seen = progress(stage(0, "a", run_time_s=7.0, submitted_at=1.0, completed_at=2.0))
    assert profiles.observed(ledgers.Ledger(), seen, submitted_at=0.0, ended_at=3.0).core_s == 7.0


def test_skipped_stages_keep_their_number() -> None:
    found = keyed([stage(0), stage(1, status="SKIPPED"), stage(2)])
    assert list(found) == ["s#0", "s#2"]


def test_runs_of_the_same_course_are_averaged() -> None:
    first = profiles.learn(None, "k", plan(10.0, 20.0), rate=0.4)
    second = profiles.learn(first, "k", plan(20.0, 20.0), rate=0.4)
    (merged,) = second.plans
    assert [known.core_s for known in merged.stages] == [pytest.approx(14.0), 20.0]  # 0.6·10 + 0.4·20
    assert merged.runs == 2


def test_twice_the_input_is_twice_the_expected_work() -> None:
    first = profiles.learn(None, "k", plan(10.0, input_bytes=4 * MIB), rate=0.5)
    (merged,) = profiles.learn(first, "k", plan(22.0, input_bytes=8 * MIB), rate=0.5).plans
    assert merged.stages[0].core_s == pytest.approx(21.0)  # 0.5·(10·2) + 0.5·22


def test_tiny_inputs_say_nothing_about_the_work() -> None:
    assert profiles.size_ratio(10, 1000) == 1.0


def test_a_missing_short_stage_is_the_same_course_and_fades() -> None:
    first = profiles.learn(None, "k", plan(10.0, 0.5), rate=0.4)
    (merged,) = profiles.learn(first, "k", plan(10.0), rate=0.4).plans
    assert [known.core_s for known in merged.stages] == [10.0, pytest.approx(0.3)]


def test_another_course_is_another_plan_and_comes_first() -> None:
    other = Plan(stages=(StageProfile(key="x#0", core_s=1.0, tasks=1),))
    profile = profiles.learn(profiles.learn(None, "k", plan(10.0), rate=0.4), "k", other, rate=0.4)
    assert profile.plans == (other, replace(plan(10.0), others_since=1))


def test_only_so_many_courses_are_kept() -> None:
    profile = None
    for n in range(profiles.PLANS_KEPT + 3):
        course = Plan(stages=(StageProfile(key=f"x{n}#0", core_s=1.0, tasks=1),))
        profile = profiles.learn(profile, "k", course, rate=0.4)
    assert profile is not None
    assert len(profile.plans) == profiles.PLANS_KEPT


@pytest.mark.parametrize("folder", ["plain", "memory://profiles-of-a-test"])
def test_a_profile_survives_its_file(tmp_path: Path, folder: str) -> None:
    store = ProfileFiles(folder if "://" in folder else str(tmp_path / folder))
    assert store.load("dag.task") is None
    profile = Profile(key="dag.task", plans=(plan(1.0, 2.0),))
    store.save(profile)
    store.save(replace(profile, plans=(plan(3.0),)))
    assert store.load("dag.task") == replace(profile, plans=(plan(3.0),))


def test_saving_leaves_nothing_but_the_profile(tmp_path: Path) -> None:
    store = ProfileFiles(str(tmp_path))
    store.save(Profile(key="a/b", plans=()))
    store.save(Profile(key="a b", plans=()))
    assert len(list(tmp_path.iterdir())) == 2  # keys that look alike do not share a file


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"version": 1}', '{"version": 99, "key": "k", "plans": []}', "\x00"],
)
def test_a_corrupt_profile_is_set_aside_with_a_warning(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = ProfileFiles(str(tmp_path))
    store.save(Profile(key="k", plans=()))
    (path,) = tmp_path.iterdir()
    path.write_text(text)
    assert store.load("k") is None
    assert "set aside" in caplog.text
    (aside,) = tmp_path.iterdir()
    assert aside.read_text() == text
    store.save(Profile(key="k", plans=(plan(1.0),)))
    assert store.load("k") == Profile(key="k", plans=(plan(1.0),))


IMPOSSIBLE = [
    *(
        (level, name, value)
        for level, names in (
            ("stage", ("core_s", "gap_s", "longest_core_s", "elasticity")),
            ("plan", ("startup_core_s", "lead_s", "tail_s", "spread", "surprise")),
        )
        for name in names
        for value in (-5.0, float("nan"), float("inf"), 1e300, "8", [], True)
    ),
    *(("stage", name, value) for name in ("tasks", "input_bytes", "records") for value in (-1, 1.5, "8", None)),
    *(("plan", "runs", value) for value in (-1, 1.5, "8", None)),
    ("stage", "core_s", None),
    ("stage", "curve", [0.5, "x", 1.0]),
    *(("stage", "busy", value) for value in (0.0, 1.5, -1.0, None, "1")),
    ("stage", "curve", [0.8, 0.5, 1.0]),
    ("stage", "elasticity", 1e9),  # 5 ** 1e9 overflows
    ("stage", "key", 7),
    ("stage", "kind", None),
    *(("stage", "after", value) for value in ("s#0", [0], None, {"s#0": 1})),
    *(("plan", "stages", value) for value in ([], "s#0", None, [None], ["s#0"], {"s#0": 1})),
    ("plan", "unheard_of", 1),
]


@pytest.mark.parametrize(("level", "name", "value"), IMPOSSIBLE)
def test_impossible_values_are_corrupt_too(level: str, name: str, value: object) -> None:
    document = json.loads(json.dumps(profiles.to_json(Profile(key="k", plans=(plan(1.0),)))))
    found = document["plans"][0] if level == "plan" else document["plans"][0]["stages"][0]
    found[name] = value
    with pytest.raises(ValueError, match=r"impossible|not a profile|no stages"):
        profiles.from_json(document)


def test_what_has_been_learned_can_be_read_again() -> None:
    profile = profiles.learn(profiles.learn(None, "k", plan(10.0, 0.0), rate=0.4), "k", plan(99.0, 0.1), rate=0.4)
    assert profiles.from_json(profiles.to_json(profile)) == profile
    assert profiles.from_json(json.loads(json.dumps(profiles.to_json(profile)))) == profile


def test_a_store_that_cannot_be_written_is_worth_another_try(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.TransientError, match="cannot write the profile"):
        ProfileFiles(str(tmp_path / "file" / "folder")).save(Profile(key="k", plans=()))


class Failing(MemoryFileSystem):
    """A file system of another library, whose errors are its own."""

    protocol = "failing"
    store = {}  # noqa: RUF012 (as its base class has it)
    pseudo_dirs = [""]  # noqa: RUF012
    broken: frozenset[str] = frozenset()

    def cat_file(self, path: str, **values: object) -> bytes:
        return self.unless_broken("cat_file", path, **values)

    def pipe_file(self, path: str, value: bytes, **values: object) -> None:
        self.unless_broken("pipe_file", path, value, **values)

    def rm_file(self, path: str) -> None:
        self.unless_broken("rm_file", path)

    def glob(self, path: str, **values: object) -> list[str]:
        return self.unless_broken("glob", path, **values)

    def unless_broken(self, name: str, *arguments: object, **values: object) -> object:
        if name in self.broken:
            raise RuntimeError("no credentials")
        return getattr(super(), name)(*arguments, **values)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> ProfileFiles:
    fsspec.register_implementation("failing", Failing, clobber=True)
    monkeypatch.setattr(Failing, "store", {})
    store = ProfileFiles("failing://profiles")
    store.save(Profile(key="k", plans=(plan(1.0),)))
    monkeypatch.setattr(Failing, "broken", frozenset({"cat_file", "pipe_file", "rm_file", "glob"}))
    return store


def test_a_store_of_a_foreign_library_fails_with_our_errors(
    foreign: ProfileFiles, caplog: pytest.LogCaptureFixture
) -> None:
    assert foreign.load("k") is None
    assert "RuntimeError: no credentials; going without" in caplog.text
    for call in (foreign.entries, lambda: foreign.read("k"), lambda: foreign.forget("k"), lambda: foreign.latest("k")):
        with pytest.raises(errors.TransientError, match="no credentials"):
            call()
    with pytest.raises(errors.TransientError, match="cannot write"):
        foreign.save(Profile(key="k", plans=()))


def test_a_store_that_cannot_be_opened_is_worth_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(MemoryFileSystem):
        protocol = "closed"
        cachable = False

        def __init__(self, **values: object) -> None:
            raise RuntimeError("no way to the metadata server")

    fsspec.register_implementation("closed", Closed, clobber=True)
    with pytest.raises(errors.TransientError, match="cannot open the profile store closed://x: RuntimeError"):
        ProfileFiles("closed://x")


@pytest.mark.parametrize("broken", [{"cat_file"}, {"pipe_file"}])
def test_a_job_that_has_succeeded_does_not_fail_for_its_profile(
    foreign: ProfileFiles, broken: set[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Failing, "broken", frozenset(broken))
    runs.learn(foreign, "k", plan(2.0), rate=0.4)
    assert "nothing was learned" in caplog.text
    monkeypatch.setattr(Failing, "broken", frozenset())
    assert foreign.load("k") == Profile(key="k", plans=(plan(1.0),))  # not overwritten by one that knows nothing


def test_runs_that_overlap_are_both_learned_from(tmp_path: Path) -> None:
    for cost in (10.0, 20.0):  # both began before the first of them had ended
        runs.learn(ProfileFiles(str(tmp_path)), "k", plan(cost), rate=0.4)
    found = ProfileFiles(str(tmp_path)).read("k").plans[0]
    assert (found.runs, found.core_s) == (2, pytest.approx(14.0))


def test_a_full_disk_keeps_the_profile_of_before_and_no_part_of_the_new_one(tmp_path: Path) -> None:
    store, key = ProfileFiles(str(tmp_path)), "k"
    store.save(Profile(key=key, plans=(plan(1.0),)))
    large = Plan(stages=(StageProfile(key="s" * disk.ROOM_BYTES, core_s=1.0, tasks=1),))
    with disk.nearly_full(), pytest.raises(errors.TransientError, match="File too large"):
        store.save(Profile(key=key, plans=(large,)))
    assert store.load(key) == Profile(key=key, plans=(plan(1.0),))
    assert len(list(tmp_path.iterdir())) == 1


def row(stage_id: int, attempt: int = 0, **values: object) -> dict[str, object]:
    numbers = {"numTasks": 4, "numActiveTasks": 0, "numCompleteTasks": 0, "executorRunTime": 0, "inputBytes": 0}
    return {"stageId": stage_id, "attemptId": attempt, "name": "s", "status": "ACTIVE", **numbers, **values}


def test_rows_of_the_rest_api_become_stages_by_id() -> None:
    submitted = "2026-11-22T10:48:02.377GMT"
    rows = [
        row(1, executorRunTime=1500),
        row(0, 1, numCompleteTasks=2, submissionTime=submitted),
        row(0, status="FAILED"),
    ]
    first, second = rest.stages_of(rows)
    assert (first.stage_id, first.complete, first.status) == (0, 2, StageStatus.ACTIVE)  # as the last attempt says
    assert first.submitted_at == pytest.approx(1795344482.377)
    assert second.run_time_s == 1.5


def test_a_task_counted_twice_is_one_task() -> None:
    (found,) = rest.stages_of([row(0, numActiveTasks=3, numCompleteTasks=2)])
    assert (found.active, found.complete) == (2, 2)


def test_copies_of_a_task_are_one_task() -> None:
    (found,) = rest.stages_of([row(0, numCompleteTasks=4, numCompletedIndices=3, numActiveTasks=2)])
    assert (found.active, found.complete) == (1, 3)  # a speculative copy ended after its original


def test_a_second_attempt_redoes_only_what_is_missing() -> None:
    over = {"status": "COMPLETE", "numCompletedIndices": 4, "completionTime": "2026-11-22T10:48:09.000GMT"}
    lost = [row(0, **over), row(0, 1, numTasks=1, numActiveTasks=1)]  # an executor died with one output
    (found,) = rest.stages_of(lost)
    assert (found.tasks, found.complete, found.active, found.running) == (4, 3, 1, True)
    assert found.completed_at is None


def test_a_failed_attempt_waits_for_the_next() -> None:
    (found,) = rest.stages_of(
        [row(0, status="FAILED", numCompletedIndices=3, completionTime="2026-11-22T10:48:09.000GMT")]
    )
    assert (found.status, found.complete, found.completed_at) == (StageStatus.PENDING, 3, None)


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ({"inputBytes": 9}, "scan"),
        ({"shuffleReadBytes": 9, "shuffleWriteBytes": 9}, "exchange"),
        ({"shuffleReadBytes": 9}, "result"),
        ({"shuffleWriteBytes": 9}, "generate"),
    ],
)
def test_a_stage_is_of_the_kind_of_its_data(numbers: dict[str, int], kind: str) -> None:
    (found,) = rest.stages_of([row(0, numCompletedIndices=1, **numbers)])
    assert found.kind == kind
    assert rest.stages_of([row(0, **numbers)])[0].kind == ""  # nothing is known before a task has ended


def timed(stage_id: int, name: str, begin: float, end: float) -> Stage:
    return stage(stage_id, name, submitted_at=begin, completed_at=end)


def test_the_graph_is_learned_from_who_waited_for_whom() -> None:
    seen = progress(timed(0, "a", 0, 5), timed(1, "b", 0, 9), timed(2, "c", 5.003, 7), timed(3, "d", 9.001, 12))
    learned = profiles.observed(ledgers.Ledger(0.0, {0: Tally(core_s=1.0)}), seen, submitted_at=0.0, ended_at=12.0)
    assert [known.after for known in learned.stages] == [(), (), ("a#0",), ("b#0",)]


def test_the_longest_task_is_learned_as_its_part_of_the_work() -> None:
    seen = progress(stage(0, "a", run_time_s=8.0, longest_s=4.0, submitted_at=0.0, completed_at=5.0))
    learned = profiles.observed(ledgers.Ledger(0.0, {0: Tally(core_s=6.0)}), seen, submitted_at=0.0, ended_at=5.0)
    assert learned.stages[0].longest_core_s == 3.0  # 6 · 4/8


def test_work_that_does_not_grow_with_the_input_is_learned_not_to() -> None:
    first = profiles.learn(None, "k", plan(10.0, input_bytes=4 * MIB), rate=0.5)
    (merged,) = profiles.learn(first, "k", plan(10.0, input_bytes=8 * MIB), rate=0.5).plans
    assert merged.stages[0].elasticity == 0.5  # 1 of before, 0 now
    assert merged.spread == pytest.approx(0.5)  # 10 instead of 20


def test_a_profile_of_the_first_version_is_a_chain() -> None:
    rows = [{"key": f"s#{n}", "core_s": 1.0, "tasks": 4, "gap_s": 0.0, "input_bytes": 0} for n in range(3)]
    one = {"stages": rows, "startup_core_s": 0.0, "lead_s": 0.0, "tail_s": 0.0, "runs": 1}
    found = profiles.from_json({"version": 1, "key": "k", "plans": [one]})
    assert [known.after for known in found.plans[0].stages] == [(), ("s#0",), ("s#1",)]


def test_a_course_of_stages_that_cost_nothing_can_be_planned_and_learned() -> None:
    nothing = Plan(stages=(StageProfile(key="s#0", core_s=1e-300, tasks=0),), startup_core_s=8.0)
    profile = profiles.learn(Profile(key="k", plans=(nothing,)), "k", plan(5.0), rate=0.4)
    assert profiles.from_json(profiles.to_json(profile)) == profile
    promise = Promise(started_at=0.0, deadline_at=100.0)
    decide = policy.make(
        DeadlineSettings(), promise=promise, profile=Profile(key="k", plans=(nothing,)), host_cores=2.0
    )
    decision, _ = decide(Observation(now=0.0, progress=None, used_core_s=0.0, elapsed_s=0.0), decide.start(), 1.0)
    assert decision.finish_at is not None
    assert decision.finish_at < 100.0
