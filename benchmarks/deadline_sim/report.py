"""What came out: a table for people, JSON for other programs, a picture for the documentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from rich.console import Console
from rich.table import Table

from airflow_mlscale.control import smoothing
from benchmarks.deadline_sim import cases

SIMULATED = "Simulated: applications that exist only as numbers, under the product's own policy code. Not Spark."
_MARKS = ("<!-- deadline-sim: begin -->", "<!-- deadline-sim: end -->")


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
    """Mean over the runs of mean granted cores ÷ (work ÷ deadline)."""
    peak_ratio: float
    """Mean of the highest guarantee ÷ slots."""
    false_alarms: int
    """Met, although `will_miss` was said at the start."""


def summaries(rows: Sequence[cases.Row]) -> list[Summary]:
    """One for each condition, in the order of `cases.cells`."""
    groups: dict[tuple[str, str, float], list[cases.Row]] = {}
    for row in rows:
        groups.setdefault(_group(row), []).append(row)
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
        p95_error_percent=100 * (smoothing.percentile(errors, 95) or 0.0),
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
    for name in ("slack", "runs", "missed %", "error % median", "p95", "latest %", "granted ÷ needed", "peak ÷ slots"):
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
    systems = [name for name in cases.SYSTEMS if name in {row.system for row in missed}]
    by_cause = Table("cause", "applications", *systems, title="Missed %, by shape and by mishap")
    for name in sorted({row.shape for row in rows}) + sorted({name for row in rows for name in row.mishaps}):
        mine = [row for row in rows if name in (row.shape, *row.mishaps)]
        by_cause.add_row(name, str(len({row.seed for row in mine})), *(_missed(mine, system) for system in systems))
    console.print(by_cause)
    for row in missed[:most]:
        console.print(
            f"{row.finish_s / row.deadline_s:.4f}  --trace {row.seed} --only {row.system}/{row.profile}/{row.slack:g}"
            f"  {row.shape}, {row.slots} slots, deadline {row.deadline_s:.1f} s, {', '.join(row.mishaps)}",
            highlight=False,
            soft_wrap=True,
        )


def _missed(rows: Sequence[cases.Row], system: str) -> str:
    mine = [row for row in rows if row.system == system]
    return f"{100 * sum(not row.met for row in mine) / len(mine):.2f}" if mine else ""


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


MOST_MISSED_PERCENT = 0.1
"""Asked for of warm profiles at the least slack."""


def targets(rows: Sequence[cases.Row]) -> list[str]:
    """What is asked for, and whether the rows show it."""
    asked = [each for each in summaries(rows) if each.profile == "warm" and each.slack == min(cases.SLACKS)]
    ours = [each for each in asked if each.system.startswith("ours")]
    found = [
        f"{_verdict(each.missed_percent <= MOST_MISSED_PERCENT)}: at most {MOST_MISSED_PERCENT:g} % missed"
        f" by {each.system}: {each.misses} of {each.runs}, {each.missed_percent:.2f} %"
        for each in ours
    ]
    paper = next((each for each in asked if each.system == "paper"), None)
    reserve = next((each for each in ours if each.system == "ours_reserve"), None)
    if paper and reserve:
        better = (
            reserve.median_error_percent < paper.median_error_percent and reserve.missed_percent <= paper.missed_percent
        )
        found.append(
            f"{_verdict(better)}: a smaller error than the published policy's, and no more misses: median "
            f"{reserve.median_error_percent:.1f} % against {paper.median_error_percent:.1f} %, misses "
            f"{reserve.missed_percent:.1f} % against {paper.missed_percent:.1f} %"
        )
    return found


def _verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


def tell(path: Path, rows: Sequence[cases.Row], about: dict[str, Any]) -> None:
    """Put the table and the targets into a page, between its two marks."""
    head = "| system | profile | slack | runs | missed % | error % median | p95 | granted ÷ needed | peak ÷ slots |"
    lines = [
        f"| {each.system} | {each.profile} | {each.slack:g} | {each.runs} | {each.missed_percent:.2f}"
        f" | {each.median_error_percent:.2f} | {each.p95_error_percent:.2f}"
        f" | {each.granted_ratio:.2f} | {each.peak_ratio:.2f} |"
        for each in summaries(rows)
    ]
    table = "\n".join([head, "|---|---|" + "--:|" * 7, *lines])
    before, _, rest = path.read_text().partition(_MARKS[0])
    _, mark, after = rest.partition(_MARKS[1])
    if not mark:
        raise ValueError(f"{path} lacks {_MARKS[0]} or {_MARKS[1]}")
    first, last = about["seeds"]
    made = f"Seeds {first} to {last - 1}, law {about['law']}."
    found = "\n".join(f"- {target}" for target in targets(rows))
    path.write_text(f"{before}{_MARKS[0]}\n{SIMULATED} {made}\n\n{table}\n\n{found}\n{_MARKS[1]}{after}")


def draw(path: Path, rows: Sequence[cases.Row]) -> None:
    """Finish ÷ deadline of all runs, by system and slack."""
    import matplotlib.figure

    shown = [(system, profile) for system in cases.SYSTEMS for profile in (cases.ANY_PROFILE, "warm", "partly")]
    groups = [pair for pair in shown if any((row.system, row.profile) == pair for row in rows)]
    slacks = sorted({row.slack for row in rows})
    if not groups:
        return
    figure = matplotlib.figure.Figure(figsize=(11, 1.6 + 0.42 * len(groups)), layout="constrained")
    panels = figure.subplots(1, len(slacks), sharey=True, squeeze=False)[0]
    for axes, slack in zip(panels, slacks, strict=True):
        mine = [[row.finish_s / row.deadline_s for row in rows if _group(row) == (*pair, slack)] for pair in groups]
        labels = [" ".join(pair).replace("_", " ").removesuffix(f" {cases.ANY_PROFILE}") for pair in groups]
        axes.boxplot(mine[::-1], orientation="horizontal", tick_labels=labels[::-1], whis=(1, 99), sym=".", widths=0.6)
        axes.axvline(1.0, color="tab:red", linewidth=1)
        axes.set_xlim(0.3, 1.6)
        axes.set_title(f"deadline = {slack:g} × uncontrolled", fontsize=10)
        axes.set_xlabel("finish ÷ deadline")
    count = len({row.seed for row in rows})
    figure.suptitle(f"Simulated: {count} random applications (boxes: quartiles; whiskers: 1 % and 99 %)", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _group(row: cases.Row) -> tuple[str, str, float]:
    return row.system, row.profile, row.slack
