"""What came out: a table for people, JSON for other programs, a picture for the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.federated import cases
from benchmarks.federated.systems import BASELINE, SYSTEMS

SIMULATED = "Simulated: real data and real training on simulated sites and time, under the product's own controller."
Key = tuple[str, str]
"""Data and kind."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Geometric mean of paired ratios, with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f}–{self.high:.2f})"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Of all seeds of a system in a case."""

    system: str
    data: str
    kind: str
    deadline_s: float
    runs: int
    met: int
    named_early: int
    """Called infeasible before half of the deadline."""
    rounds: float
    wall_s: float
    node_s: float
    compute_s: float
    wall_ratio: Ratio | None
    """To the baseline, by seed; runs that missed count with what they had spent at the deadline."""
    node_ratio: Ratio | None
    static: bool


def paired(mine: Mapping[int, float], theirs: Mapping[int, float]) -> Ratio | None:
    """Geometric mean of mine ÷ theirs over the seeds that both have."""
    logs = [log(max(mine[seed], 1e-9) / max(theirs[seed], 1e-9)) for seed in sorted(set(mine) & set(theirs))]
    if not logs:
        return None
    off = 1.96 * stdev(logs) / sqrt(len(logs)) if len(logs) > 1 else 0.0
    middle = fmean(logs)
    return Ratio(mean=exp(middle), low=exp(middle - off), high=exp(middle + off))


def summaries(rows: Sequence[cases.Row]) -> list[Summary]:
    """One for each system and case, in their order."""
    groups: dict[tuple[str, Key], list[cases.Row]] = {}
    for row in rows:
        groups.setdefault((row.system, (row.data, row.kind)), []).append(row)
    keys = [(case.data, case.kind) for case in cases.CASES]
    return [_summary(groups[name, key], groups.get((BASELINE, key), [])) for key in keys for name in SYSTEMS
            if (name, key) in groups]  # fmt: skip


def _summary(mine: Sequence[cases.Row], baseline: Sequence[cases.Row]) -> Summary:
    first = mine[0]
    return Summary(
        system=first.system, data=first.data, kind=first.kind, deadline_s=first.deadline_s, runs=len(mine),
        met=sum(row.met_deadline for row in mine),
        named_early=sum(row.status == "infeasible" and row.wall_s <= row.deadline_s / 2 for row in mine),
        rounds=fmean(row.rounds for row in mine), wall_s=fmean(row.wall_s for row in mine),
        node_s=fmean(row.node_s for row in mine), compute_s=fmean(row.compute_s for row in mine),
        wall_ratio=paired(_by_seed(mine, "wall_s"), _by_seed(baseline, "wall_s")),
        node_ratio=paired(_by_seed(mine, "node_s"), _by_seed(baseline, "node_s")), static=first.static,
    )  # fmt: skip


def _by_seed(rows: Iterable[cases.Row], name: str) -> dict[int, float]:
    return {row.seed: getattr(row, name) for row in rows}


def best_static(found: Sequence[Summary]) -> Summary | None:
    """The fixed setting that hindsight chooses: it meets most often, and of those costs least."""
    fixed = [each for each in found if each.static]
    return min(fixed, key=lambda each: (-each.met, each.node_s)) if fixed else None


def verdicts(rows: Sequence[cases.Row]) -> list[str]:
    """Ours against the best fixed setting in hindsight and against what was possible, in words."""
    told = []
    for case in cases.CASES:
        mine = [row for row in rows if (row.data, row.kind) == (case.data, case.kind)]
        ours = [row for row in mine if row.system == "ours_cost"]
        if not ours:
            continue
        if case.kind.startswith("infeasible"):
            early = sum(row.status == "infeasible" and row.wall_s <= row.deadline_s / 2 for row in ours)
            told.append(f"{case.name}: named before half of the deadline in {early} of {len(ours)}")
            continue
        feasible = {row.seed for row in mine if row.met_deadline}
        met = sum(row.met_deadline for row in ours)
        alarms = sum(row.status == "infeasible" and row.seed in feasible for row in ours)
        told.append(
            f"{case.name}: ours_cost met {met} of {len(ours)}, of {len(feasible)} that any system met; "
            f"{alarms} false alarms"
        )
        if best := best_static(summaries(mine)):
            told.append(f"    best fixed setting {best.system} met {best.met}: {_compared(ours, mine, best.system)}")
        if any(row.system == BASELINE for row in mine):
            told.append(f"    {BASELINE}: {_compared(ours, mine, BASELINE)}")
    return told


def _compared(ours: Sequence[cases.Row], rows: Sequence[cases.Row], system: str) -> str:
    theirs = [row for row in rows if row.system == system]
    wall, node = (paired(_by_seed(ours, name), _by_seed(theirs, name)) for name in ("wall_s", "node_s"))
    return f"ours ÷ it, wall {wall}, node-s {node}"


_HEAD = ("system", "met", "rounds", "wall s", "node-s", "compute s", "wall ÷ FedAvg", "node-s ÷ FedAvg", "infeasible")


def _cells(each: Summary) -> tuple[str, ...]:
    return (
        each.system, f"{each.met}/{each.runs}", f"{each.rounds:.0f}", f"{each.wall_s:.0f}", f"{each.node_s:.0f}",
        f"{each.compute_s:.0f}", str(each.wall_ratio or ""), str(each.node_ratio or ""), str(each.named_early or ""),
    )  # fmt: skip


def show_rows(console: Console, rows: Sequence[cases.Row]) -> None:
    """Single runs."""
    table = Table("system", "seed", "status", "rounds", "wall s", "node-s", "compute s", "quality")
    for row in rows:
        told = (row.rounds, row.wall_s, row.node_s, row.compute_s, round(row.quality, 4))
        table.add_row(row.system, str(row.seed), row.status, *(str(each) for each in told))
    console.print(table)


def show(console: Console, rows: Sequence[cases.Row]) -> None:
    """The tables."""
    for case in cases.CASES:
        found = [each for each in summaries(rows) if (each.data, each.kind) == (case.data, case.kind)]
        if not found:
            continue
        table = Table(title=f"{case.name}: accuracy {case.target:g} by {case.deadline_s:g} s", caption=SIMULATED)
        for i, name in enumerate(_HEAD):
            table.add_column(name, justify="right" if i else "left")
        for each in found:
            table.add_row(*_cells(each))
        console.print(table)
    for line in verdicts(rows):
        console.print(line, highlight=False)


def read_rows(path: Path) -> list[cases.Row]:
    """Rows that an earlier session kept."""
    return [cases.Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def append_rows(path: Path, rows: Sequence[cases.Row]) -> None:
    """Keep the rows of one seed."""
    with path.open("a") as file:
        file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


def write(path: Path, rows: Sequence[cases.Row], about: Mapping[str, Any]) -> None:
    """All rows and the summaries; written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {
        "about": SIMULATED, **about, "verdicts": verdicts(rows),
        "summaries": [asdict(each) for each in summaries(rows)], "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(body, indent=1) + "\n")
    fresh.replace(path)


def tell(path: Path, rows: Sequence[cases.Row], about: Mapping[str, Any]) -> None:
    """The tables as a page."""
    lines = [
        "# Federated training by a deadline",
        "",
        f"{SIMULATED} Seeds {about['seeds']}, tuned on {about['tuned_on']}.",
        "",
    ]
    lines += [f"- {line.strip()}" for line in verdicts(rows)]
    for case in cases.CASES:
        found = [each for each in summaries(rows) if (each.data, each.kind) == (case.data, case.kind)]
        if found:
            lines += ["", f"## {case.name}: accuracy {case.target:g} by {case.deadline_s:g} s", ""]
            lines += [f"| {' | '.join(_HEAD)} |", "|---|" + "--:|" * (len(_HEAD) - 1)]
            lines += [f"| {' | '.join(_cells(each))} |" for each in found]
    path.write_text("\n".join(lines) + "\n")


def draw(path: Path, rows: Sequence[cases.Row]) -> None:
    """Site time against deadlines met, for each case."""
    import matplotlib.figure

    found = [each for each in summaries(rows) if not each.kind.startswith("infeasible")]
    keys = list(dict.fromkeys((each.data, each.kind) for each in found))
    if not keys:
        return
    figure = matplotlib.figure.Figure(figsize=(4.2 * len(keys), 4.2), layout="constrained")
    panels = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=True):
        for each in found:
            if (each.data, each.kind) == key and not each.system.startswith("part_"):
                ours = each.system.startswith("ours")
                axes.scatter(each.node_s, 100 * each.met / each.runs, color="tab:red" if ours else "tab:grey")
                axes.annotate(each.system, (each.node_s, 100 * each.met / each.runs), fontsize=6 + 2 * ours)
        axes.set_xscale("log")
        axes.set_title(" ".join(key), fontsize=10)
        axes.set_xlabel("site seconds per run")
    panels[0].set_ylabel("deadlines met, %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
