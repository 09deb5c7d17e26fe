"""``mlscale roma top`` and ``status`` against the real gateway over fake workers."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from airflow_mlscale import cli
from airflow_mlscale.roma import top
from airflow_mlscale.roma.adapters import tokens
from tests.fakes import roma_served

HOST = {"cpu": "cgroup-v2", "cores": 8.0}


def status(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "version": "3",
        "state": "ready",
        "verdict": "on_target",
        "objective": {"milliseconds": 50.0, "percentile": 95.0},
        "percentile_ms": 31.4159,
        "errors": 2,
        "arrivals_per_s": 1234.5,
        "queue": {"requests": 7},
        "batches": {"1": 10, "4": 10},
        "cores": {"guaranteed": 1.25, "ceiling": None, "used": 0.98},
        "answered": {"cpu": 25, "emulated-gpu": 75},
        **changes,
    }


def rows(*models: dict[str, Any], width: int = 180) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=width)
    console.print(top.table(models, HOST, "http://here", width=width))
    return printed_rows(console)


def printed_rows(console: Console) -> list[list[str]]:
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    table = printed.rpartition("─")[2]
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines() if line.strip()]


def test_a_row_tells_all_of_a_model() -> None:
    # batches: (10·1 + 10·4) ÷ 20 = 2.5
    (row,) = rows(status("flights"))
    by = "emulated-gpu 75%, cpu 25%"
    assert row == ["flights", "3", "on target", "p95 31.4", "50", "1234", "2", "7", "2.5", "1.25", "0.98", by]


def test_a_narrow_terminal_has_what_matters_in_one_line() -> None:
    (row,) = rows(status("flights-of-2026"), width=80)
    assert row == ["flights-of-2026", "on target", "p95 31.4", "50", "1234", "2", "7", "1.25"]


def test_the_worst_come_first_and_names_are_no_markup() -> None:
    models = (
        status("b"),
        status("c", verdict="violating"),
        status("a", candidate={"version": "4"}, cores={"guaranteed": 1.0, "ceiling": 2.0, "used": 0.5}),
        {key: value for key, value in status("[red]x", state="failed").items() if key not in ("queue", "cores")},
    )
    found = rows(*models)
    assert [row[0] for row in found] == ["[red]x", "c", "a", "b"]
    assert (found[0][2], found[0][7], found[0][9]) == ("failed", "–", "–")
    assert (found[2][1], found[2][9]) == ("3 → 4", "1–2")


def test_gpus_are_shown_with_the_models_on_them() -> None:
    gpu = {
        "uuid": "GPU-a",
        "name": "L4",
        "device": "emulated-gpu",
        "state": "ready",
        "fault": None,
        "used_bytes": 1000 * 2**20,
        "reserved_bytes": 728 * 2**20,
        "budget_bytes": 6000 * 2**20,
        "utilisation": 0.25,
        "models": {"a": "ready", "b": "ready", "c": "loading"},
        "executions": {"a": 3, "b": 1, "c": 0},
    }
    lost = {**gpu, "state": "lost", "fault": "[XID] 79", "utilisation": None, "models": {}, "executions": {}}
    console = Console(file=io.StringIO(), width=180)
    console.print(top.gpu_table([gpu, lost]))
    assert printed_rows(console) == [
        ["L4 GPU-a", "emulated-gpu", "ready", "1000", "728", "6000", "25%", "a 75%, b 25%, c loading"],
        ["L4 GPU-a", "emulated-gpu", "lost: [XID] 79", "1000", "728", "6000", "–"],
    ]


async def test_gpus_come_after_the_models(capsys: pytest.CaptureFixture[str]) -> None:
    async with roma_served.serving(emulated_gpu=True) as served:
        await served.place()
        await served.http.post("/v2/models/m/infer", content=b"{}")
        url = f"http://127.0.0.1:{served.port}"
        assert await asyncio.to_thread(cli.main, ["roma", "top", "--url", url]) == 0
        printed = capsys.readouterr().out
        assert "GPU-a" in printed.partition(" m ")[2]
        assert "emulated" in printed


async def test_without_a_terminal_it_prints_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens_path, token_file = tmp_path / "tokens.json", tmp_path / "token"
    token_file.write_text(tokens.add(tokens_path, "a", frozenset({"read"})))
    async with roma_served.serving(tokens_path=tokens_path) as served:
        url = f"http://127.0.0.1:{served.port}"
        asked = ["roma", "top", "--url", url]
        assert await asyncio.to_thread(cli.main, [*asked, "--token-file", str(token_file)]) == 0
        assert " m " in capsys.readouterr().out
        assert await asyncio.to_thread(cli.main, asked) == 2
        assert "refuses it" in capsys.readouterr().err
        assert await asyncio.to_thread(cli.main, ["roma", "status", "--url", url, "--token-file", str(token_file)]) == 0
        assert '"name": "m"' in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--url", "localhost:8501"], ["--every", "0"]])
def test_wrong_options_are_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["roma", "top", *arguments]) == 2
    assert arguments[0].strip("-") in capsys.readouterr().err


async def test_in_a_terminal_it_goes_on_until_interrupted() -> None:
    async with roma_served.serving() as served:
        ours, theirs = pty.openpty()
        url = f"http://127.0.0.1:{served.port}"
        command = [sys.executable, "-m", "airflow_mlscale.cli", "roma", "top", "--url", url, "--every", "0.1"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        try:
            await asyncio.wait_for(asyncio.to_thread(_read_until, ours, "ROMA at", 3), 60)
            process.send_signal(signal.SIGINT)
            await asyncio.wait_for(asyncio.to_thread(_read_to_the_end, ours), 60)  # a full terminal would hold it up
            assert await asyncio.to_thread(process.wait, 30) == 130
        finally:
            process.kill()
            process.wait()
            os.close(ours)


def _read_until(terminal: int, text: str, times: int) -> None:
    seen = ""
    while seen.count(text) < times:
        seen += os.read(terminal, 4096).decode(errors="replace")


def _read_to_the_end(terminal: int) -> None:
    with suppress(OSError):  # EIO: nobody has the other side open any more
        while os.read(terminal, 4096):
            pass
