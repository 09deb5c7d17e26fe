"""The deadline benchmark beside its runs: what is run in which order, what rows say, what a resumed session keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu.ports import UNMANAGED, CpuShare
from airflow_mlscale.runtime.journal import Record
from airflow_mlscale.spark.model import Plan, Profile, StageProfile
from benchmarks.deadline import __main__ as command
from benchmarks.deadline import report, rivals, session, trial
from benchmarks.deadline.results import Key, Results
from tests.fakes.cpu import FakeCpu

PLAN = Plan(stages=(StageProfile(key="a#0", core_s=40.0, tasks=40),), startup_core_s=4.0, lead_s=4.0, tail_s=1.0)
PROFILE = Profile(key="aggregate", plans=(PLAN,))


def outcome(finish_s: float, **values: object) -> trial.Outcome:
    given = {
        "granted_core_s": 60.0,
        "cap_core_s": 60.0,
        "used_core_s": 60.0,
        "peak_cores": 1.0,
        "mean_cores": 1.0,
        "driver_granted_core_s": 5.0,
        "driver_used_core_s": 5.0,
        "rest_cores": 0.1,
        "stolen_cores": 0.0,
        "learned": PROFILE,
        **values,
    }
    return trial.Outcome(finish_s=finish_s, **given)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Uncontrolled runs of 39, 40 and 50 s: the deadline at 1.5× is 60 s."""
    found = Results(path=tmp_path / "deadline.json")
    for finish_s in (50.0, 39.0, 40.0):
        found.add_baseline("aggregate", outcome(finish_s))
    return found


def test_the_race_covers_everything_once_seed_by_seed_and_shuffled_alike_every_time() -> None:
    scope = session.Scope(apps=("aggregate", "kmeans"), seeds=2)
    runs = list(session.race(scope))
    assert runs == list(session.race(scope))
    assert [run.seed for run in runs] == [1] * (len(runs) // 2) + [2] * (len(runs) // 2)
    keys = [key for run in runs for key in run.keys]
    assert len(keys) == len(set(keys)) == 2 * 10 * 3 * 2  # applications · rivals · deadlines · seeds
    assert len(runs) == 2 * (8 * 3 + 2) * 2  # two rivals do not know the deadline: one run counts for all
    assert len({run.app for run in runs[:10]}) == 2


def test_quick_covers_the_reference_rivals_in_about_a_quarter_of_an_hour() -> None:
    runs = list(session.race(session.QUICK))
    seconds = sum(45 * max(run.factors) if run.rival.knows_deadline else 45 for run in runs)
    seconds += 45 * session.QUICK.baselines * len(session.QUICK.apps)
    assert 600 <= seconds <= 960
    assert {"fixed", "paper", "ours_reserve"} <= {run.rival.name for run in runs}


def test_a_resumed_session_keeps_its_rows_deadlines_and_profiles_and_repeats_nothing(results: Results) -> None:
    key = Key("ours_reserve", "aggregate", 1, 1.5)
    results.add([key], outcome(59.0))
    results.save()
    again = Results.load(results.path)
    assert again.rows == results.rows
    assert again.deadline_s("aggregate", 1.5) == 60.0
    assert again.profile("aggregate") == PROFILE
    scope = session.Scope(apps=("aggregate",), rivals=("ours_reserve", "paper"), factors=(1.5,), seeds=2)
    resumed = session.Session(scope, again, home=results.path.parent)
    assert not resumed.complete()
    assert resumed.left() == 3  # of 2 rivals · 2 seeds
    assert resumed.left_s() == 3 * (1.5 * 40 + session.AROUND_S)


def test_a_failed_run_is_a_row_a_miss_and_not_repeated(results: Results) -> None:
    key = Key("paper", "aggregate", 1, 1.5)
    results.add([key], None, error="ended with 1")
    results.add([replace(key, seed=2)], outcome(57.0))
    results.save()
    (failed, good) = json.loads(results.path.read_text())["rows"]
    assert (failed["finish_s"], failed["met"], failed["error"]) == (None, False, "ended with 1")
    assert (good["finish_s"], good["met"], good["error"]) == (57.0, True, None)
    assert results.has(key)
    found = report.figures(results.rows)
    assert found is not None
    assert (found.runs, found.failed, found.misses) == (2, 1, 1)
    assert found.median_percent == pytest.approx(5.0)  # 3 s of 60 s, of the run that ended


def test_one_run_that_knows_no_deadline_is_judged_by_each(results: Results) -> None:
    results.add([Key("none", "aggregate", 1, factor) for factor in (1.2, 1.5)], outcome(50.0))
    assert [(row["deadline_s"], row["met"]) for row in results.rows] == [(48.0, False), (60.0, True)]


def test_runs_before_the_race_count_as_no_control_once_and_fix_the_deadlines(results: Results) -> None:
    assert not results.raced("aggregate")
    for _ in range(2):  # a resumed session counts them again
        results.count_baselines("aggregate", (1.2,))
    assert [(row["system"], row["seed"], row["finish_s"], row["met"]) for row in results.rows] == [
        ("none", 1000, 50.0, False),  # of 48 s
        ("none", 1001, 39.0, True),
        ("none", 1002, 40.0, True),
    ]
    assert results.raced("aggregate")


def test_figures_show_their_arithmetic(results: Results) -> None:
    for seed, finish_s in enumerate((58.8, 59.4, 63.0), start=1):  # 2 %, 1 % and 5 % off
        results.add([Key("ours_reserve", "aggregate", seed, 1.5)], outcome(finish_s, mean_cores=1.1, used_core_s=66.0))
    found = report.figures(results.rows)
    assert found is not None
    assert found.misses == 1
    assert found.median_percent == pytest.approx(2.0)
    assert found.p95_percent == pytest.approx(5.0)
    assert found.granted_ratio == pytest.approx(1.1)  # 60 core-s in 60 s need 1 core
    # 1.1 cores and the driver's 5 core-s in 58.8, 59.4 and 63 s, where 65 core-s in 60 s need 1.083
    assert found.with_driver_ratio == pytest.approx(1.0919, abs=0.0001)
    assert found.used_ratio == pytest.approx(1.1)


def test_grants_are_told_with_and_without_the_driver(results: Results) -> None:
    results.add([Key("ours_reserve", "aggregate", 1, 1.5)], outcome(60.0, driver_granted_core_s=20.0))
    results.add([Key("fixed", "aggregate", 1, 1.5)], outcome(60.0, driver_granted_core_s=0.0))
    told = [str(target) for target in report.targets(results.rows)]
    # (60 + 20) core-s in 60 s of (60 + 5) core-s
    both = "1.00 of the executors, 1.23 with the driver's grant and use"
    assert f"met: mean granted cores ÷ (work ÷ deadline) at most 1.1: {both}" in told
    column = report.HEADS.index("with driver")
    assert {line[0]: line[column] for line in report.lines(results.rows)} == {"fixed": "-", "ours_reserve": "1.23"}


def test_targets_say_by_how_much_they_are_missed(results: Results) -> None:
    results.add([Key("ours_reserve", "aggregate", 1, 2.0)], outcome(82.0, peak_cores=1.2))
    results.add([Key("none", "aggregate", 1, 2.0)], outcome(40.0, peak_cores=2.0))
    results.add([Key("paper", "aggregate", 1, 2.0)], outcome(72.0))
    told = [str(target) for target in report.targets(results.rows)]
    assert "NOT MET: no miss in reserve: 1 of 1 runs, the worst by 2.5 %" in told
    assert "NOT MET: median error of reserve at most 2 %: 2.50 %" in told
    assert "met: peak grant at 2× at most 0.75 of the uncontrolled run's: 1.20 of 2.00 cores" in told
    assert "no data: no miss at 1.5× with a profile × 2" in told
    assert told[-1].startswith("NOT MET: a smaller error than the published policy's, and no more misses: median 2.5 %")


def test_the_page_is_written_between_its_marks_and_nowhere_else(results: Results) -> None:
    results.add([Key("ours_reserve", "aggregate", 1, 1.5)], outcome(59.4))
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    text = report.between_marks(page, report.markdown(results))
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "| ours_reserve | 1 | 0 % | 1.0 % | 1.0 % |" in text
    assert report.between_marks("no marks", "text") == "no marks"


def test_the_best_constant_quota_is_what_the_profile_needs_in_the_time() -> None:
    # 4 + 40 core-s, of 27 s less 1 s at the end and 2 s in which the driver alone starts: 44 ÷ 24
    assert rivals.constant_cores(PLAN, 27.0, slots=2) == pytest.approx(44 / 24, abs=0.01)
    assert rivals.constant_cores(PLAN, 10.0, slots=2) == 2.0


def test_a_distorted_profile_is_wrong_in_all_its_work() -> None:
    (plan,) = rivals.distorted(PROFILE, 0.5).plans
    assert (plan.core_s, plan.lead_s) == (22.0, 4.0)


def test_tied_hands_keep_the_rule_whatever_the_controller_decides() -> None:
    quota = CpuShare.strict(0.8)
    cpu = FakeCpu()
    hands = rivals.Hands(cpu, quota)
    for group in ("job", "job-driver"):
        hands.open(group)
    assert hands.apply("job", CpuShare.strict(2.0)) == quota
    assert hands.apply("job-driver", CpuShare.strict(1.0)) == UNMANAGED
    free = rivals.Hands(cpu)
    assert free.apply("job", CpuShare.strict(1.5)) == CpuShare.strict(1.5)


def test_a_grant_holds_until_the_next_decision() -> None:
    records = [
        Record(at=at, subject="job", seen={}, decided={"ceiling_cores": cores}, reason="")
        for at, cores in ((10.0, 0.5), (14.0, None))
    ]
    assert trial.integral(records, "ceiling_cores", until=20.0, instead_of_none=2) == 0.5 * 4 + 2 * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--apps", "sort"], "apps='sort': choose from aggregate"),
        (["--rivals", "ours"], "rivals='ours': choose from none"),
        (["--factors", "0.1"], "factors=0.1: must be between"),
        (["--seeds", "-1"], "seeds=-1: must be between"),
        (["--resume"], "not a file of results"),
    ],
)
def test_bad_input_is_told_before_earlier_results_are_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = tmp_path / "deadline.json"
    path.write_text("{}")
    assert command.main(["--results", str(path), "--home", str(tmp_path / "home"), *arguments]) == 2
    assert message in " ".join(capsys.readouterr().out.split())
    assert [file.name for file in tmp_path.iterdir()] == ["deadline.json"]


def test_profiles_with_a_first_run_are_refused_where_a_constant_quota_needs_one() -> None:
    with pytest.raises(errors.InvalidInputError, match="warm profile"):
        rivals.hands(rivals.RIVALS["fixed"], FakeCpu(), None, deadline_s=60.0, slots=2)
