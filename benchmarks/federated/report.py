"""What came out: a table for people, JSON for other programs, a picture for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks.federated import cases, overhead
from benchmarks.federated.systems import BASELINE, SYSTEMS

if TYPE_CHECKING:
    from benchmarks.federated import results

SIMULATED = "Simulated: real data and real training on simulated sites and time, under the product's own controller."
REAL = "Real: NVFlare processes on one machine; slow, lost and stalled rounds of six devices are emulated by waiting."
OURS = "ours_cost"
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
    keys = [(case.data, case.kind) for case in (*cases.CASES, cases.REAL)]
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
    """Ours against the targets, the best fixed setting in hindsight and what was possible at all, in words."""
    told: list[str] = []
    for case in cases.CASES:
        mine = [row for row in rows if (row.data, row.kind) == (case.data, case.kind)]
        ours = [row for row in mine if row.system == OURS]
        if ours and case.infeasible:
            told.append(f"{case.name}: {_named(ours)}")
        elif ours:
            told += _feasible(case, ours, mine)
    return told + _over_all(rows)


def _feasible(case: cases.Case, ours: Sequence[cases.Row], rows: Sequence[cases.Row]) -> list[str]:
    possible = {row.seed for row in rows if row.met_deadline}
    met = sum(row.met_deadline for row in ours)
    told = [f"{case.name}: {OURS} met {met} of {len(ours)}, of {len(possible)} that any system met"]
    if best := best_static(summaries(rows)):
        told.append(f"    best fixed setting {best.system} met {best.met}: {_compared(ours, rows, best.system)}")
    if any(row.system == BASELINE for row in rows):
        told.append(f"    {BASELINE}: {_compared(ours, rows, BASELINE)}")
    return told


def _over_all(rows: Sequence[cases.Row]) -> list[str]:
    """The verdicts of `OURS`: whether it says early that there is no hope, and says so only then."""
    kinds = {(case.data, case.kind): case.infeasible for case in cases.CASES}
    ours = [row for row in rows if row.system == OURS and (row.data, row.kind) in kinds]
    hopeless = [row for row in ours if kinds[row.data, row.kind]]
    possible = {(row.data, row.kind, row.seed) for row in rows if row.met_deadline}
    feasible = [row for row in ours if (row.data, row.kind, row.seed) in possible]
    alarms = sum(row.status == "infeasible" for row in feasible)
    told = [f"infeasible cases, all together: {_named(hopeless)}"] if hopeless else []
    if feasible:
        told.append(
            f"false alarms: {alarms} of {len(feasible)} runs ({alarms / len(feasible):.1%}) that could be reached"
        )
    return told


def _named(rows: Sequence[cases.Row]) -> str:
    early = sum(row.status == "infeasible" and row.wall_s <= row.deadline_s / 2 for row in rows)
    return f"named before half of the deadline in {early} of {len(rows)} ({early / len(rows):.0%})"


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


def show(console: Console, found: results.Results) -> None:
    """The tables and the verdicts."""
    for case, each in _tables(found.rows):
        caption = REAL if case is cases.REAL else SIMULATED
        table = Table(title=_title(case), caption=caption)
        for i, name in enumerate(_HEAD):
            table.add_column(name, justify="right" if i else "left")
        for summary in each:
            table.add_row(*_cells(summary))
        console.print(table)
    for line in (*verdicts(found.rows), *_overhead(found)):
        console.print(line, highlight=False)


def tell(path: Path, found: results.Results) -> None:
    """The verdicts and the tables as a page."""
    seeds = sorted({row.seed for row in found.rows if row.simulated})
    simulated = f"{SIMULATED} Seeds {seeds[0]} to {seeds[-1]}, tuned on 0 to 29." if seeds else ""
    lines = ["# Federated training by a deadline", "", simulated, "", REAL, ""]
    lines += [("  " if line.startswith(" ") else "") + f"- {line.strip()}" for line in verdicts(found.rows)]
    lines += [f"- {line}" for line in _overhead(found)]
    for case, each in _tables(found.rows):
        lines += ["", f"## {_title(case)}", ""]
        lines += [f"| {' | '.join(_HEAD)} |", "|---|" + "--:|" * (len(_HEAD) - 1)]
        lines += [f"| {' | '.join(_cells(summary))} |" for summary in each]
    path.write_text("\n".join(lines) + "\n")


def _tables(rows: Sequence[cases.Row]) -> Iterator[tuple[cases.Case, list[Summary]]]:
    found = summaries(rows)
    for case in (*cases.CASES, cases.REAL):
        if mine := [each for each in found if (each.data, each.kind) == (case.data, case.kind)]:
            yield case, mine


def _title(case: cases.Case) -> str:
    return f"{case.name}: accuracy {case.target:g} by {case.deadline_s:g} s"


def _overhead(found: results.Results) -> list[str]:
    if not found.overhead:
        return []
    seen = overhead.summary(found.overhead)
    ours, theirs = seen["round_s"]["ours"], seen["round_s"]["nvflare_fedavg"]
    by_seed = ", ".join(f"{each:+.1f} %" for each in seen["overhead_pct_by_seed"])
    return [
        f"a round of the same client script: NVFlare's FedAvg {theirs:.3f} s, ours {ours:.3f} s, "
        f"{seen['overhead_pct']:+.1f} % (by seed {by_seed})"
    ]


def draw(path: Path, rows: Sequence[cases.Row]) -> None:
    """Site time against deadlines met, a panel for each feasible case."""
    import matplotlib.figure

    panels = [(case, each) for case, each in _tables(rows) if not case.infeasible and case is not cases.REAL]
    if not panels:
        return
    columns = min(3, len(panels))
    figure = matplotlib.figure.Figure(figsize=(4.2 * columns, 3.6 * -(-len(panels) // columns)), layout="constrained")
    for place, (case, each) in enumerate(panels, start=1):
        axes = figure.add_subplot(-(-len(panels) // columns), columns, place)
        for family, colour in _FAMILIES.items():
            mine = [summary for summary in each if _family(summary.system) == family]
            met = [100 * summary.met / summary.runs for summary in mine]
            size = 70 if family == "ours" else 22
            axes.scatter([summary.node_s for summary in mine], met, color=colour, label=family, s=size)
        axes.set(
            xscale="log", title=_title(case), xlabel="site seconds per run", ylabel="deadlines met, %", ylim=(-5, 105)
        )
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(_FAMILIES))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


_FAMILIES = {
    "ours": "tab:red", "FedAvg": "tab:grey", "over-selection": "tab:blue", "fixed with our momentum": "tab:green",
    "Oort": "tab:orange", "the paper's": "tab:purple",
}  # fmt: skip


def _family(system: str) -> str | None:
    if system.endswith("_momentum"):
        return "fixed with our momentum"
    prefixes = {"ours": "ours", "fedavg": "FedAvg", "over": "over-selection", "oort": "Oort", "linear": "the paper's",
                "quadratic": "the paper's"}  # fmt: skip
    return next((family for prefix, family in prefixes.items() if system.startswith(prefix)), None)
