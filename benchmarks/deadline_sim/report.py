"""What came out: a table for people, JSON for other programs, a picture for the documentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.deadline_sim import cases

SIMULATED = "Simulated: applications that exist only as numbers, under the product's own policy code. Not Spark."


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of all runs under one condition."""

    system: str
    profile: str
    slack: float
    runs: int
    misses: int
    missed_percent: float
    median_error_percent: float
    p95_error_percent: float
    worst_overrun_percent: float
    """How late the latest was; 0 when none was."""
    granted_ratio: float
    """Mean of granted ÷ work."""
    peak_ratio: float
    """Mean of the highest guarantee ÷ slots."""
    false_alarms: int
    """Met, although `will_miss` was said at the start."""


def summaries(rows: Sequence[cases.Row]) -> list[Summary]:
    """One for each condition, in the order of `cases.cells`."""
    groups: dict[tuple[str, str, float], list[cases.Row]] = {}
    for row in rows:
        groups.setdefault((row.system, row.profile, row.slack), []).append(row)
    return [_summary(groups[cell.system, cell.profile, cell.slack]) for cell in cases.cells() if _key(cell) in groups]


def _key(cell: cases.Cell) -> tuple[str, str, float]:
    return cell.system, cell.profile, cell.slack


def _summary(rows: Sequence[cases.Row]) -> Summary:
    errors = [row.error for row in rows]
    misses = [row for row in rows if not row.met]
    return Summary(
        system=rows[0].system,
        profile=rows[0].profile,
        slack=rows[0].slack,
        runs=len(rows),
        misses=len(misses),
        missed_percent=100 * len(misses) / len(rows),
        median_error_percent=100 * median(errors),
        p95_error_percent=100 * (quantiles(errors, n=20)[-1] if len(errors) > 1 else errors[0]),
        worst_overrun_percent=100 * max(0.0, *(row.finish_s / row.deadline_s - 1 for row in rows), 0.0),
        granted_ratio=mean(row.granted_ratio for row in rows),
        peak_ratio=mean(row.peak_cores / row.slots for row in rows),
        false_alarms=sum(row.met and row.outlook == "will_miss" for row in rows),
    )


def show(console: Console, rows: Sequence[cases.Row]) -> None:
    """The table."""
    table = Table(caption=SIMULATED)
    for name in ("system", "profile"):
        table.add_column(name)
    for name in ("slack", "runs", "missed %", "error % median", "p95", "latest %", "granted ÷ work", "peak ÷ slots"):
        table.add_column(name, justify="right")
    last = ""
    for each in summaries(rows):
        if last and each.system != last:
            table.add_section()
        last = each.system
        table.add_row(
            each.system,
            each.profile,
            f"{each.slack:g}",
            str(each.runs),
            f"{each.missed_percent:.2f}",
            f"{each.median_error_percent:.2f}",
            f"{each.p95_error_percent:.2f}",
            f"{each.worst_overrun_percent:.2f}",
            f"{each.granted_ratio:.2f}",
            f"{each.peak_ratio:.2f}",
        )
    console.print(table)


def show_misses(console: Console, rows: Sequence[cases.Row], *, most: int) -> None:
    """Misses by shape and by mishap, and the worst ones with their seeds, for whoever looks for the cause."""
    missed = sorted((row for row in rows if not row.met and row.system not in ("none",)), key=_overrun, reverse=True)
    if not missed:
        return
    by_cause = Table(title="Missed, by shape and by mishap")
    for name in ("cause", "missed", "runs", "%"):
        by_cause.add_column(name, justify="left" if name == "cause" else "right")
    for name in sorted({row.shape for row in rows}) + sorted({name for row in rows for name in row.mishaps}):
        mine = [row for row in rows if name in (row.shape, *row.mishaps)]
        count = sum(not row.met for row in mine)
        by_cause.add_row(name, str(count), str(len(mine)), f"{100 * count / len(mine):.2f}")
    console.print(by_cause)
    for row in missed[:most]:
        console.print(
            f"{row.finish_s / row.deadline_s:.4f}  --trace {row.seed} --only {row.system}/{row.profile}/{row.slack:g}"
            f"  {row.shape}, {row.slots} slots, deadline {row.deadline_s:.1f} s, {', '.join(row.mishaps)}",
            highlight=False,
            soft_wrap=True,
        )


def _overrun(row: cases.Row) -> float:
    return row.finish_s / row.deadline_s


def write(path: Path, rows: Sequence[cases.Row], about: dict[str, Any]) -> None:
    """The summaries and every missed run; written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    missed = [asdict(row) for row in rows if not row.met]
    body = {"about": SIMULATED, **about, "summaries": [asdict(each) for each in summaries(rows)], "missed": missed}
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(body, indent=1) + "\n")
    fresh.replace(path)


def draw(path: Path, rows: Sequence[cases.Row]) -> None:
    """Finish ÷ deadline of every run, by system."""
    import matplotlib.figure

    shown = [(system, profile) for system in cases.SYSTEMS for profile in ("any", "warm", "partly")]
    groups = {
        f"{system}\n{profile}" if profile != "any" else system: values
        for system, profile in shown
        if (values := [row.finish_s / row.deadline_s for row in rows if (row.system, row.profile) == (system, profile)])
    }
    if not groups:
        return
    figure = matplotlib.figure.Figure(figsize=(10, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.boxplot(list(groups.values()), tick_labels=list(groups), whis=(1, 99), showfliers=True, sym=",")
    axes.axhline(1.0, color="tab:red", linewidth=1)
    axes.set_ylabel("finish ÷ deadline")
    axes.set_ylim(0.4, min(2.0, max(1.1, *(max(values) for values in groups.values()))))
    axes.set_title(
        f"{len({row.seed for row in rows})} random applications, deadlines at 1.2, 1.5 and 2 times (simulated)"
    )
    axes.tick_params(axis="x", labelsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
