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
_MARKS = ("<!-- federated: begin -->", "<!-- federated: end -->")
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
    for line in verdicts(found):
        console.print(line, highlight=False)


def verdicts(found: results.Results) -> list[str]:
    """The targets, each with what was seen."""
    from benchmarks.federated import targets

    return [*map(str, targets.all_of(found.rows)), *_overhead(found)]


def tell(path: Path, found: results.Results) -> None:
    """All tables as a page of their own."""
    lines = ["# Federated training by a deadline", "", SIMULATED, REAL, "", _made(found.rows), ""]
    lines += [f"- {line}" for line in verdicts(found)]
    for case, each in _tables(found.rows):
        lines += ["", f"## {_title(case)}", "", *_markdown(each)]
    path.write_text("\n".join(lines) + "\n")


def tell_in_short(path: Path, found: results.Results) -> None:
    """The verdicts and the few systems that matter, between two marks of the benchmarks' page."""
    before, _, rest = path.read_text().partition(_MARKS[0])
    _, mark, after = rest.partition(_MARKS[1])
    if not mark:
        raise ValueError(f"{path} lacks {_MARKS[0]} or {_MARKS[1]}")
    lines = [f"{SIMULATED} {REAL} {_made(found.rows)}", ""]
    for case, each in _tables(found.rows):
        lines += [f"**{_title(case)}**", "", *_markdown(_telling(each)), ""]
    lines += [f"- {line}" for line in verdicts(found)]
    path.write_text(before + "\n".join((_MARKS[0], *lines, _MARKS[1])) + after)


def _telling(found: Sequence[Summary]) -> list[Summary]:
    """Ours, the best fixed setting without and with our momentum, and one of each other kind."""
    fixed = [best_static([each for each in found if each.system.endswith("_momentum") == it]) for it in (False, True)]
    names = {best.system for best in fixed if best} | {BASELINE, "oort_K5_E2", "linear_rounds"}
    return [each for each in found if each.system in names or each.system.startswith("ours") or each.kind == "real"]


def _made(rows: Sequence[cases.Row]) -> str:
    told = []
    for simulated, words in ((True, "simulated"), (False, "real")):
        mine = [row for row in rows if row.simulated == simulated]
        seeds, laws = sorted({row.seed for row in mine}), sorted({row.law for row in mine})
        if mine:
            told.append(f"{words}: seeds {seeds[0]} to {seeds[-1]}, law {', '.join(laws)}")
    return f"{'; '.join(told).capitalize()}. Tuned on seeds 0 to 29."


def _markdown(found: Sequence[Summary]) -> list[str]:
    head = [f"| {' | '.join(_HEAD)} |", "|---|" + "--:|" * (len(_HEAD) - 1)]
    return head + [f"| {' | '.join(_cells(each))} |" for each in found]


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
        f"{'met' if seen['overhead_pct'] <= 5 else 'NOT MET'}: at most 5 % more for a round than NVFlare's own FedAvg "
        f"takes for the same client script: {ours:.3f} s and {theirs:.3f} s, {seen['overhead_pct']:+.1f} % ({by_seed})"
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
        axes.xaxis.set_minor_formatter("")
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
