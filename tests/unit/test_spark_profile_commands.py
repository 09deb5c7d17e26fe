"""``mlscale spark profile``, as it is called."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from airflow_mlscale import cli
from airflow_mlscale.spark.adapters.profile_store import ProfileFiles
from airflow_mlscale.spark.model import Plan, Profile, StageProfile


@pytest.fixture
def folder(tmp_path: Path) -> str:
    scan = StageProfile(key="count at [job].py:3#0", core_s=40.0, tasks=8, kind="scan", input_bytes=3 << 20)
    fold = StageProfile(key="count at [job].py:3#1", core_s=10.0, tasks=2, gap_s=1.5, after=(scan.key,), elasticity=0.5)
    twice = StageProfile(key=scan.key, core_s=80.0, tasks=16)
    store = ProfileFiles(str(tmp_path))
    both = (
        Plan(stages=(scan, fold), startup_core_s=4.0, lead_s=6.0, tail_s=0.5, runs=3, spread=0.07),
        Plan(stages=(twice,)),
    )
    store.save(Profile(key="daily.features", plans=both))
    return str(tmp_path)


def call(*arguments: str) -> int:
    return cli.main(["spark", "profile", *arguments])


def test_list_shows_every_profile_and_which_cannot_be_read(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path(folder) / "broken-12345678.json").write_text("{")
    assert call("list", "--store", folder) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "daily.features" in line)
    # 2 courses of 3 + 1 runs; the heavier one costs 80 core-s and has no gaps
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["daily.features", "2", "4", "80.0", "0.0"]
    assert "broken-12345678.json" in shown
    assert "cannot be read" in shown
    assert sorted(path.name for path in Path(folder).iterdir())[0] == "broken-12345678.json"  # it was not moved


def test_list_of_an_empty_store_says_where_it_looked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("list", "--store", str(tmp_path / "none")) == 0
    assert f"no profile in {tmp_path / 'none'} yet" in capsys.readouterr().out


def test_show_tells_courses_and_stages(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("show", "daily.features", "--store", folder) == 0
    shown = capsys.readouterr().out
    signature = ProfileFiles(folder).read("daily.features").plans[0].signature
    assert (
        f"daily.features, course 1 of 2: {signature}, 3 runs, 54.0 core-s ± 7 % (4.0 before the first stage), "
        "driver gaps 8.0 s (6.0 first, 0.5 last), 3 MiB read"
    ) in shown
    row = next(line for line in shown.splitlines() if "2. count at [job].py:3#1" in line)
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells[1:] == ["-", "2", "10.0", "-", "1.5", "0 B", "size^0.5", "1"]


def test_diff_compares_two_courses(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("diff", "daily.features", "--store", folder) == 0
    rows = {
        cells[0]: cells[1:]
        for line in capsys.readouterr().out.splitlines()
        if len(cells := [cell.strip() for cell in line.split("│")[1:-1]]) == 4
    }
    assert rows["count at [job].py:3#0"] == ["40.0", "80.0", "+100 %"]
    assert rows["count at [job].py:3#1"] == ["10.0", "-", "only here"]
    assert rows["all core-s"] == ["54.0", "80.0", "+48 %"]  # 80 / 54 = 1.48


def test_diff_of_two_applications_and_of_named_courses(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    other = Profile(key="other", plans=(Plan(stages=(StageProfile(key="z#0", core_s=27.0, tasks=1),)),))
    ProfileFiles(folder).save(other)
    assert call("diff", "daily.features", "other", "--store", folder) == 0
    assert "-50 %" in capsys.readouterr().out  # 27 of 54
    assert call("diff", "daily.features", "--plans", "2", "2", "--store", folder) == 0
    assert "+0 %" in capsys.readouterr().out


def test_forget_removes_a_profile_even_if_it_cannot_be_read(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = Path(folder).glob("daily*.json")
    path.write_text("not JSON")
    assert call("forget", "daily.features", "--yes", "--store", folder) == 0
    assert list(Path(folder).iterdir()) == []
    assert "its next run is a first one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "daily.feature"], "KEY='daily.feature': there is no such profile in .*did you mean daily.features?"),
        (["show", "zzz"], "KEY='zzz': there is no such profile"),
        (["forget", "zzz", "--yes"], "KEY='zzz': there is no such profile"),
        (["forget", "daily.features"], "--yes=False: nobody can be asked here"),
        (["diff", "daily.features", "--plans", "1", "3"], "--plans=3: daily.features has 2 courses"),
        (["diff", "daily.features", "--plans", "0", "1"], "--plans=0"),
    ],
)
def test_errors_name_what_is_wrong(
    folder: str,
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y"))
    assert call(*arguments, "--store", folder) == 2
    assert re.search(said.replace("?", r"\?"), capsys.readouterr().err)
    assert len(list(Path(folder).glob("daily*.json"))) == 1


def test_show_leaves_a_profile_that_cannot_be_read_where_it_is(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = Path(folder).glob("daily*.json")
    path.write_text('{"version": 99}')
    assert call("show", "daily.features", "--store", folder) == 2
    assert f"{path} cannot be read (version 99 is none of" in capsys.readouterr().err
    assert path.read_text() == '{"version": 99}'


def test_a_profile_of_another_application_is_set_aside(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    store = ProfileFiles(folder)
    (path,) = Path(folder).glob("daily*.json")
    store.save(Profile(key="other", plans=()))
    (foreign,) = Path(folder).glob("other*.json")
    foreign.write_text(path.read_text())
    assert store.load("other") is None
    assert "it is the profile of 'daily.features', not of 'other'" in caplog.text
    assert len(list(Path(folder).glob("other*.json.corrupt-*"))) == 1
