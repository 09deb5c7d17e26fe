"""What the rows say: figures for each system, the targets and by how much they are met, as table and Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from airflow_mlscale.control import smoothing
from benchmarks.deadline.results import BASELINE, Results, finished
from benchmarks.deadline.rivals import RIVALS

Row = Mapping[str, Any]

MEDIAN_PERCENT = 2.0
P95_PERCENT = 5.0
GRANTED_RATIO = 1.10
PEAK_PART = 0.75
"""What "well under" the uncontrolled peak is taken to mean."""

BEGIN, END = "<!-- deadline: begin -->", "<!-- deadline: end -->"
"""Marks on the page of results."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One system's runs."""

    runs: int
    failed: int
    misses: int
    """Runs that ended after the deadline, failed ones included."""
    median_percent: float
    """Of |finish − deadline| ÷ deadline, as is the percentile."""
    p95_percent: float
    granted_ratio: float
    """Mean over the runs of mean granted cores ÷ (work ÷ deadline); 1 is the least that can do."""
    with_driver_ratio: float | None
    """The same with the driver's grant and its use in that run; None where nobody guarantees anything to a driver."""
    peak_cores: float
    """Median over the runs of the highest grant."""
    mean_cores: float
    used_ratio: float
    """Mean over the runs of core-seconds used ÷ those of an uncontrolled run."""

    @property
    def miss_percent(self) -> float:
        return 100 * self.misses / self.runs


def error_percent(row: Row) -> float:
    return 100 * abs(float(row["finish_s"]) - float(row["deadline_s"])) / float(row["deadline_s"])


def granted_ratio(row: Row) -> float:
    return float(row["mean_cores"] / (row["work_core_s"] / row["deadline_s"]))


def with_driver_ratio(row: Row) -> float | None:
    """As `granted_ratio`, of executors and driver together."""
    driver_core_s = float(row["driver_granted_core_s"])
    if not driver_core_s:
        return None
    mean_cores = float(row["mean_cores"]) + driver_core_s / float(row["finish_s"])
    work_core_s = float(row["work_core_s"]) + float(row["driver_used_core_s"])
    return mean_cores / (work_core_s / float(row["deadline_s"]))


def figures(rows: Sequence[Row]) -> Figures | None:
    """None when no run came to its end."""
    done = finished(rows)
    if not done:
        return None
    errors = [error_percent(row) for row in done]
    both = [ratio for row in done if (ratio := with_driver_ratio(row)) is not None]
    return Figures(
        runs=len(rows),
        failed=len(rows) - len(done),
        misses=sum(not row["met"] for row in rows),
        median_percent=statistics.median(errors),
        p95_percent=smoothing.percentile(errors, 95) or 0.0,
        granted_ratio=statistics.fmean(map(granted_ratio, done)),
        with_driver_ratio=statistics.fmean(both) if both else None,
        peak_cores=statistics.median(row["peak_cores"] for row in done),
        mean_cores=statistics.fmean(row["mean_cores"] for row in done),
        used_ratio=statistics.fmean(row["used_core_s"] / row["work_core_s"] for row in done),
    )


def of(rows: Iterable[Row], *systems: str, factor: float | None = None) -> list[Row]:
    """The rows of some systems, of all deadlines or of one."""
    return [row for row in rows if row["system"] in systems and factor in (None, row["factor"])]


@dataclass(frozen=True)
class Target:
    """One thing that is asked for."""

    says: str
    met: bool | None
    """None when no run speaks of it."""
    measured: str

    def __str__(self) -> str:
        verdict = {None: "no data", True: "met", False: "NOT MET"}[self.met]
        return f"{verdict}: {self.says}{': ' if self.measured else ''}{self.measured}"


def targets(rows: Sequence[Row]) -> list[Target]:
    """What is asked for of ours, and whether the rows show it."""
    reserve = of(rows, "ours_reserve")
    return [
        _no_miss("no miss in reserve", reserve),
        _no_miss("no miss in work conserving mode, alone", of(rows, "ours_work_conserving")),
        _no_miss("no miss in work conserving mode beside a greedy neighbour", of(rows, "ours_work_conserving_greedy")),
        _at_most("median error of reserve", MEDIAN_PERCENT, " %", reserve, lambda found: found.median_percent),
        _at_most("95th percentile of its error", P95_PERCENT, " %", reserve, lambda found: found.p95_percent),
        _granted(reserve),
        _peak(rows),
        _no_miss("no miss at 1.5× with a profile × 0.5", of(rows, "ours_reserve_half", factor=1.5)),
        _no_miss("no miss at 1.5× with a profile × 2", of(rows, "ours_reserve_double", factor=1.5)),
        _better_than_paper(rows),
    ]


def _no_miss(says: str, rows: Sequence[Row]) -> Target:
    misses = [row for row in rows if not row["met"]]
    late = [100 * (row["finish_s"] / row["deadline_s"] - 1) for row in finished(misses)]
    worst = f", the worst by {max(late):.1f} %" if late else ""
    return Target(says, not misses if rows else None, f"{len(misses)} of {len(rows)} runs{worst}" if rows else "")


def _at_most(says: str, limit: float, unit: str, rows: Sequence[Row], value: Callable[[Figures], float]) -> Target:
    found = figures(rows)
    says = f"{says} at most {limit:g}{unit}"
    return Target(says, None, "") if found is None else Target(says, value(found) <= limit, f"{value(found):.2f}{unit}")


def _granted(rows: Sequence[Row]) -> Target:
    target = _at_most(
        "mean granted cores ÷ (work ÷ deadline)", GRANTED_RATIO, "", rows, lambda found: found.granted_ratio
    )
    found = figures(rows)
    if found is None or found.with_driver_ratio is None:
        return target
    both = f"{target.measured} of the executors, {found.with_driver_ratio:.2f} with the driver's grant and use"
    return replace(target, measured=both)


def _peak(rows: Sequence[Row]) -> Target:
    ours, alone = figures(of(rows, "ours_reserve", factor=2.0)), figures(of(rows, BASELINE))
    says = f"peak grant at 2× at most {PEAK_PART:g} of the uncontrolled run's"
    if ours is None or alone is None:
        return Target(says, None, "")
    return Target(
        says, ours.peak_cores <= PEAK_PART * alone.peak_cores, f"{ours.peak_cores:.2f} of {alone.peak_cores:.2f} cores"
    )


def _better_than_paper(rows: Sequence[Row]) -> Target:
    """On the deadlines that both have run to."""
    both = {_deadline(row) for row in of(rows, "ours_reserve")} & {_deadline(row) for row in of(rows, "paper")}
    shared = [row for row in rows if _deadline(row) in both]
    ours, paper = figures(of(shared, "ours_reserve")), figures(of(shared, "paper"))
    says = "a smaller error than the published policy's, and no more misses"
    if ours is None or paper is None:
        return Target(says, None, "")
    return Target(
        says,
        ours.median_percent < paper.median_percent and ours.miss_percent <= paper.miss_percent,
        f"median {ours.median_percent:.1f} % against {paper.median_percent:.1f} %, "
        f"misses {ours.miss_percent:.0f} % against {paper.miss_percent:.0f} %, of {len(both)} deadlines",
    )


def _deadline(row: Row) -> tuple[Any, ...]:
    return row["app"], row["seed"], row["factor"]


HEADS = (
    *("system", "runs", "missed", "error, median", "error, p95"),
    *("granted ÷ needed", "with driver", "peak", "mean", "used"),
)


def cells(name: str, found: Figures) -> tuple[str, ...]:
    """One line of the table."""
    failed = f" ({found.failed} failed)" if found.failed else ""
    return (
        name,
        f"{found.runs}{failed}",
        f"{found.miss_percent:.0f} %",
        f"{found.median_percent:.1f} %",
        f"{found.p95_percent:.1f} %",
        f"{found.granted_ratio:.2f}",
        "-" if found.with_driver_ratio is None else f"{found.with_driver_ratio:.2f}",
        f"{found.peak_cores:.2f}",
        f"{found.mean_cores:.2f}",
        f"{found.used_ratio:.2f}",
    )


def lines(rows: Sequence[Row], *, factor: float | None = None) -> list[tuple[str, ...]]:
    """Lines of the table, systems in the order of `RIVALS`."""
    found = []
    for name in RIVALS:
        mine = of(rows, name, factor=factor)
        if (each := figures(mine)) is not None:
            found.append(cells(name, each))
        elif mine:
            found.append((name, f"{len(mine)} (all failed)", "100 %", *("-" for _ in HEADS[3:])))
    return found


def table(rows: Sequence[Row], *, factor: float | None = None) -> Table:
    """For the terminal."""
    title = "Deadlines" if factor is None else f"Deadlines at {factor:g}× the uncontrolled time"
    drawn = Table(title=title)
    for head in HEADS:
        drawn.add_column(head, no_wrap=head == HEADS[0])
    for line in lines(rows, factor=factor):
        drawn.add_row(*line)
    return drawn


def markdown(found: Results) -> str:
    """The page that goes with the pictures."""
    rows = found.rows
    machine = ", ".join(f"{name} {value}" for name, value in {**found.machine, **found.versions}.items())
    alone = ", ".join(
        f"{app} {found.median_s(app):.1f} s and {found.work_core_s(app):.0f} core-s" for app in found.baselines
    )
    rest = statistics.median(row["rest_cores"] for row in finished(rows)) if finished(rows) else 0.0
    parts = [
        f"Begun {found.started}; {machine}. Uncontrolled (median): {alone}. "
        f"Everything else on the machine used {rest:.2f} cores (median), Spark's daemons and the controller included.",
        _markdown(lines(rows)),
        "Error is |finish − deadline| ÷ deadline; granted ÷ needed is mean granted cores ÷ (work ÷ deadline); peak "
        "(median over the runs) and mean are granted cores; used is core-seconds relative to an uncontrolled run. "
        "Grant and work are the executors'; *with driver* has the driver's grant and use added, where somebody "
        "guarantees it something. Ending early is no fault in work conserving mode: it took idle cycles.",
    ]
    for factor in sorted({row["factor"] for row in rows}):
        parts += [f"### {factor:g}× the uncontrolled time", _markdown(lines(rows, factor=factor))]
    parts += ["### Targets", "\n".join(f"- {target}" for target in targets(rows))]
    return "\n\n".join(parts) + "\n"


def between_marks(page: str, text: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """The page with what stands between its marks replaced; a page without marks stays as it is."""
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    return f"{before}{begin}\n\n{text}\n{end}{after}" if begin and end else page


def _markdown(found: Sequence[tuple[str, ...]]) -> str:
    every = [HEADS, ("---",) * len(HEADS), *found]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)
