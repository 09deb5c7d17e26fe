"""The decision journal: what is written is read back, and thinning keeps its bounds."""

from __future__ import annotations

import json
from itertools import pairwise
from math import inf, nan
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_mlscale.runtime import journal
from tests.fakes import disk

values = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=40)
parts = st.dictionaries(st.text(max_size=10), values, max_size=4)
records = st.builds(
    journal.Record,
    at=st.floats(0, 4e9),
    subject=st.text(max_size=20),
    seen=parts,
    decided=parts,
    reason=st.text(max_size=60),
    changed=st.booleans(),
)


def record(number: int, **seen: journal.Value) -> journal.Record:
    return journal.Record(at=float(number), subject="app", seen=seen, decided={"cores": 1.5}, reason="on course")


@given(written=st.lists(records, max_size=20))
@settings(max_examples=50, deadline=None)
def test_round_trip(written: list[journal.Record], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("journal") / "deep" / "journal.jsonl"
    book = journal.Journal(path)
    for each in written:
        book.append(each)
    book.close()
    assert journal.read(path) == written
    assert journal.Journal(path).records() == written  # a controller that restarts goes on from there


def test_only_the_latest_are_kept_in_memory(tmp_path: Path) -> None:
    book = journal.Journal(tmp_path / "journal", keep=3)
    for number in range(10):
        book.append(record(number))
    assert [each.at for each in book.records()] == [7.0, 8.0, 9.0]
    assert book.last() == record(9)
    assert len(journal.read(tmp_path / "journal")) == 10


def test_an_empty_journal() -> None:
    book = journal.Journal()
    assert (book.records(), book.last()) == ([], None)
    book.close()


def test_a_line_cut_short_by_a_crash_loses_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = journal.Journal(path)
    first.append(record(1))
    first.append(record(2))
    first.close()
    path.write_bytes(path.read_bytes()[:-20])
    second = journal.Journal(path)
    assert second.records() == [record(1)]
    second.append(record(3))
    second.close()
    assert journal.read(path) == [record(1), record(3)]


def test_a_missing_file_is_empty(tmp_path: Path) -> None:
    assert journal.read(tmp_path / "nothing") == []


def test_listeners_are_told(caplog: pytest.LogCaptureFixture) -> None:
    book, heard = journal.Journal(), []

    def fail(each: journal.Record) -> None:
        raise OSError("deaf")

    book.listen(fail)
    book.listen(heard.append)
    book.append(record(1))
    assert heard == [record(1)]  # whatever the other one does
    assert "a listener of the decision journal failed" in caplog.text


@given(count=st.integers(0, 3000), points=st.integers(1, 700))
@settings(max_examples=60, deadline=None)
def test_thinning_is_even_and_keeps_the_last(count: int, points: int) -> None:
    kept = journal.thin([record(number) for number in range(count)], points=points, size_bytes=10**9)
    assert len(kept) == min(count, points)
    times = [int(str(row["at"]).split(".")[0]) for row in kept]
    assert times[-1:] == [count - 1][:count]
    gaps = [after - before for before, after in pairwise(times)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@given(written=st.lists(records, max_size=200), copies=st.integers(1, 10))
@settings(max_examples=30, deadline=None)
def test_thinning_keeps_within_its_bounds(written: list[journal.Record], copies: int) -> None:
    kept = journal.thin(written * copies)
    assert len(kept) <= 500
    assert len(json.dumps(kept)) <= 60_000


def test_long_records_are_thinned_by_size() -> None:
    # 1000 records of ≈ 1.1 kB: not 500 of them but as many as 60 kB hold
    kept = journal.thin([record(number, note="x" * 1000) for number in range(1000)])
    assert 40 < len(kept) < 60
    assert kept[-1]["at"] == 999.0


def test_what_json_does_not_know_becomes_none() -> None:
    (row,) = journal.thin([record(1, lateness=inf, rate=nan, cores=1.0)])
    assert row["seen"] == {"lateness": None, "rate": None, "cores": 1.0}
    json.loads(json.dumps(row), parse_constant=pytest.fail)


def test_a_full_disk_ends_the_file_and_not_the_control(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book = journal.Journal(tmp_path / "journal.jsonl")
    book.append(record(1))
    with disk.nearly_full():
        book.append(record(2, large="x" * disk.ROOM_BYTES))
        book.append(record(3))
    book.close()
    assert [each.at for each in book.records()] == [1.0, 2.0, 3.0]
    assert [each.at for each in journal.read(tmp_path / "journal.jsonl")] == [1.0]
    (told,) = caplog.records
    assert "journal.jsonl ends here: [Errno 27] File too large" in told.getMessage()


def test_only_the_end_of_a_long_journal_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    first = journal.Journal(path)
    for number in range(200):
        first.append(record(number))
    first.close()
    assert len(journal.read(path)) == 200
    again = journal.Journal(path, keep=10)
    again.append(record(200))
    assert [int(one.at) for one in again.records()] == list(range(191, 201))
    again.close()
    size = path.stat().st_size
    tail = [int(one.at) for one in journal.read(path, last_bytes=size // 4)]
    assert tail == list(range(tail[0], 201))
    assert 0 < len(tail) < 60
