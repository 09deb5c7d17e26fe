"""Start the stack, trigger the DAG, follow it, write the report, end the stack."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.table import Table

from airflow_mlscale import errors
from airflow_mlscale.embedded import stack
from airflow_mlscale.runtime import processes
from demo import report
from demo.airflow_api import AirflowApi

DAG = "flight_delay_retraining"
SITES = ("AA", "B6", "DL", "EV", "MQ", "UA")
"""Carriers with at least 20,000 training flights."""
MARKS = {
    "success": "[green]✔",
    "failed": "[red]✘",
    "upstream_failed": "[red]✘",
    "running": "[cyan]▶",
    "deferred": "[cyan]⏸",
}


def run(dags: Path, home: Path, report_dir: Path, *, keep: bool) -> int:
    """Run the demo; returns 0 if every promise was kept, 1 if one was broken, 2 if it could not run."""
    console = Console()
    started = time.monotonic()
    finished = False
    try:
        address = _start(dags, console, started)
        api = AirflowApi(address)
        run_id = api.trigger(DAG, {"work_dir": str(home / "flights")})
        console.print(f"triggered {DAG}, run {run_id}")
        _follow(api, run_id, console)
        outcome = report.collect(api, DAG, run_id, took_s=time.monotonic() - started)
        report.write(outcome, report_dir)
        _print_summary(outcome, report_dir, console)
        finished = True
        return 0 if report.kept(outcome) else 1
    except (errors.MlscaleError, httpx.HTTPError) as exc:
        console.print(f"[red]the demo could not run:[/red] {exc}")
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        if keep and finished:
            roma = processes.service("roma")
            served = roma.details.get("address") if roma else "(ended)"
            console.print(f"\nleft running: Airflow {address}  ROMA {served}", soft_wrap=True)
            mlscale = Path(sys.executable).parent / "mlscale"
            console.print(f"end it with: MLSCALE_HOME={processes.home()} {mlscale} down", soft_wrap=True)
        else:
            _end()
        _forget_old_runs(home / "flights")


def _end() -> None:
    """End the stack; impatience must not leave processes behind."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stack.down()


def _start(dags: Path, console: Console, started: float) -> str:
    stack.down()  # what an earlier, kept run left
    port = processes.free_port()
    settings = stack.StackSettings(
        sites=SITES,
        spark_port=processes.free_port(),
        roma_port=processes.free_port(),
        airflow_port=port,
        dags_folder=dags,
    )
    stack.up(settings, told=lambda text: console.print(f"[{time.monotonic() - started:5.0f} s] {text}"))
    return f"http://127.0.0.1:{port}"


def _follow(api: AirflowApi, run_id: str, console: Console) -> None:
    """Show the tasks until the DAG run ends: a live table on a terminal, a line per change elsewhere."""
    told: dict[str, tuple[str, float]] = {}
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            state = api.run_state(DAG, run_id)
            rows = [_row(api, run_id, task) for task in api.tasks(DAG, run_id)]
            if live is not None:
                live.update(_table(rows), refresh=True)
            else:
                _tell_changes(rows, told, console)
            if state in ("success", "failed"):
                return
            time.sleep(2)  # Airflow's REST API offers no event to wait for


def _tell_changes(rows: list[tuple[str, str, str, str]], told: dict[str, tuple[str, float]], console: Console) -> None:
    """A line for each task whose state changed, and the news of a running one every ten seconds."""
    now = time.monotonic()
    for name, state, took, news in rows:
        last, at = told.get(name, ("waiting", now))
        if state == last and not (state in ("running", "deferred") and now - at >= 10):
            continue
        told[name] = (state, now)
        line = f"{datetime.now():%H:%M:%S}  {name:18} {state:10} {took:>6}  {news}"
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _row(api: AirflowApi, run_id: str, task: dict[str, Any]) -> tuple[str, str, str, str]:
    state = task["state"] or "waiting"
    news = ""
    if state in ("running", "deferred", "success"):
        summary = api.summary(DAG, run_id, task["task_id"])
        news = _news(summary)
    took = f"{task['duration']:.0f} s" if task.get("duration") else ""
    return task["task_id"], state, took, news


def _news(summary: dict[str, Any]) -> str:
    """One line out of what a task published about itself."""
    if summary.get("engine") == "spark" and summary["series"]:
        now = summary["series"][-1]
        ceiling = "no ceiling" if now["ceiling_cores"] is None else f"ceiling {now['ceiling_cores']:.2f}"
        done = "" if now["progress"] is None else f"{100 * now['progress']:.0f} % done, "
        return (
            f"{done}{now['t_s']:.0f} of {summary['deadline_s']:.0f} s, "
            f"{now['guaranteed_cores']:.2f} cores guaranteed, {ceiling}, {summary['profile']} profile"
        )
    if "target" in summary and summary.get("accuracy") is None:
        return f"{summary['status']}, no round complete yet; target {summary['metric']} {summary['target']:g}"
    if "target" in summary:
        return (
            f"round {summary['rounds']}: best {summary['metric']} {summary['accuracy']:.4f}, "
            f"target {summary['target']:g} {summary['stopped_reason'] or ''}"
        )
    if "objective_ms" in summary:
        p95_ms = summary.get("p95_ms")
        measured = "" if p95_ms is None else f", p95 {p95_ms:.1f} ms over {summary['requests']} requests"
        return f"version {summary['version']} {summary['state']}, objective {summary['objective_ms']:g} ms{measured}"
    return ""


def _table(rows: list[tuple[str, str, str, str]]) -> Table:
    table = Table(box=None, padding=(0, 2))
    for title in ("task", "state", "time", ""):
        table.add_column(title)
    for name, state, took, news in rows:
        table.add_row(name, f"{MARKS.get(state, '[dim]·')} {state}", took, news)
    return table


def _print_summary(outcome: dict[str, Any], report_dir: Path, console: Console) -> None:
    console.print()
    for title, line in report.outlines(outcome).items():
        console.print(f"{title:26} {line}", highlight=False, soft_wrap=True, markup=False)
    console.print()
    for promise, (met, text) in report.promises(outcome).items():
        console.print(
            f"{'[green]kept  [/green]' if met else '[red]BROKEN[/red]'} {promise:10} {text}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"\n{outcome['took_s']:.0f} s in all; report: {report_dir / 'report.html'}", highlight=False, soft_wrap=True
    )


def _forget_old_runs(work_dir: Path, keep: int = 2) -> None:
    runs = sorted((path for path in work_dir.glob("*") if path.is_dir()), key=lambda path: path.stat().st_mtime)
    for old in runs[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
