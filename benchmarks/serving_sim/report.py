"""What came out: tables and a picture for people, JSON for other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.deadline.report import between_marks
from benchmarks.serving_sim import cases

SIMULATED = (
    "Simulated: models and cores that exist only as numbers, under ROMA's own policy code. No TensorFlow, no kernel, "
    "no gateway. Every system has ROMA's lines (order, batches, shedding); the law of the cores is what differs."
)
RIVALS = ("static", "rules", "ct", "ct_scaled", "queue_length", "queue_length_scaled", "hpa")
OURS = ("ours_work_conserving", "ours_reserve")
Condition = tuple[str, str, float]
HEADS = (
    *("host", "shape", "load", "system", "violations %", "shed %", "on target", "p95 ÷ SLO", "in time/s"),
    *("granted", "caps", "used", "raised"),
)
_MARKS = ("<!-- serving-sim: begin -->", "<!-- serving-sim: end -->")


def conditions(rows: Sequence[cases.Row]) -> dict[Condition, dict[str, list[cases.Row]]]:
    """Rows by host, shape and load, and then by system."""
    found: dict[Condition, dict[str, list[cases.Row]]] = {}
    for row in rows:
        found.setdefault((row.host, row.shape, row.load), {}).setdefault(row.system, []).append(row)
    return found


def show(console: Console, rows: Sequence[cases.Row]) -> None:
    """The table: means over the seeds."""
    table = Table(caption=SIMULATED)
    for head in HEADS:
        table.add_column(head, justify="left" if head in HEADS[:4] else "right")
    for condition, systems in conditions(rows).items():
        table.add_section()
        for same in systems.values():
            table.add_row(*_line(condition, same))
    console.print(table)


def _line(condition: Condition, same: Sequence[cases.Row]) -> list[str]:
    """Of one system under one condition."""
    raised = [row.raised_pct for row in same if row.raised_pct is not None]
    host, shape, load = condition
    return [
        *(host, shape, f"{load:g}", same[0].system),
        f"{mean(row.violations_pct for row in same):.2f}",
        f"{mean(row.shed_pct for row in same):.2f}",
        f"{mean(row.models_on_target for row in same):.1f}/{same[0].models}",
        f"{mean(row.p95_ratio for row in same):.2f}",
        f"{mean(row.goodput_per_s for row in same):.0f}",
        f"{mean(row.granted_core_s for row in same):.0f}",
        f"{mean(row.cap_core_s for row in same):.0f}",
        f"{mean(row.used_core_s for row in same):.0f}",
        f"{mean(raised):+.2f}" if raised else "",
    ]


def targets(rows: Sequence[cases.Row]) -> list[str]:
    """How ours stand against each rival: a line for each that says whether the aim was met, and by how much not."""
    lines = []
    for (host, shape, load), systems in conditions(rows).items():
        for ours in (name for name in OURS if name in systems):
            for rival in (name for name in RIVALS if name in systems):
                lines.append(_against(f"{host} {shape} {load:g}", systems[ours], systems[rival], load))
            if "sharing" in systems and load <= 1:
                mine, other = (mean(row.violations_pct for row in systems[name]) for name in (ours, "sharing"))
                word = "met" if mine <= other + 0.05 else "NOT met"
                lines.append(f"{word}: {host} {shape} {load:g}: {ours} {mine:.2f} % against sharing {other:.2f} %")
    return lines


def _against(where: str, ours: Sequence[cases.Row], rival: Sequence[cases.Row], load: float) -> str:
    who = f"{where}: {ours[0].system} against {rival[0].system}"
    if load > 1:
        mine, other = (mean(row.goodput_per_s for row in same) for same in (ours, rival))
        return f"{'met' if mine >= 0.95 * other else 'NOT met'}: {who}: goodput {mine:.1f}/s against {other:.1f}/s"
    mine, other = (mean(row.violations_pct for row in same) for same in (ours, rival))
    granted, theirs = (mean(row.granted_core_s for row in same) for same in (ours, rival))
    fewer = 100 * (1 - mine / other) if other > 0 else 0.0
    cheaper = 100 * (1 - granted / theirs)
    met = (fewer >= 75 or mine <= 0.05) and cheaper >= 24
    return f"{'met' if met else 'NOT met'}: {who}: {fewer:.0f} % fewer violations, {cheaper:.0f} % fewer granted core-s"


def write(root: Path, rows: Sequence[cases.Row], about: dict[str, Any]) -> None:
    """JSON, picture and, if there is docs/benchmarks.md below ``root``, its table."""
    results, page = root / "benchmarks/results/serving-sim.json", root / "docs/benchmarks.md"
    results.parent.mkdir(parents=True, exist_ok=True)
    document = {"note": SIMULATED, "about": about, "rows": [asdict(row) for row in rows]}
    results.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    draw(root / "docs/img/serving-sim.png", rows)
    if page.exists():
        page.write_text(between_marks(page.read_text(), _markdown(rows, about), _MARKS))


def _markdown(rows: Sequence[cases.Row], about: dict[str, Any]) -> str:
    first, end = about["seeds"]
    seeds = f"Seed {first}" if end - first == 1 else f"Seeds {first} to {end - 1}"
    made = f"{seeds}, {about['length_s']:g} s of which 10 warm up, law {about['law']}."
    lines = [_line(condition, same) for condition, systems in conditions(rows).items() for same in systems.values()]
    table = [HEADS, ("---",) * 4 + ("--:",) * (len(HEADS) - 4), *lines]
    told = "\n".join(f"- {line}" for line in targets(rows))
    return f"{SIMULATED} {made}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in table) + f"\n\n{told}\n"


def draw(path: Path, rows: Sequence[cases.Row]) -> None:
    """Violations by load, a panel for each host, under stepped arrivals."""
    import matplotlib
    import matplotlib.figure

    steps = {key: systems for key, systems in conditions(rows).items() if key[1] == "steps"}
    hosts = list(dict.fromkeys(host for host, _, _ in steps))
    if not hosts:
        return
    figure = matplotlib.figure.Figure(figsize=(1.5 + 4.2 * len(hosts), 4.6), layout="constrained")
    panels = figure.subplots(1, len(hosts), sharey=True, squeeze=False)[0]
    for axes, host in zip(panels, hosts, strict=True):
        mine = {load: systems for (where, _, load), systems in steps.items() if where == host}
        for index, system in enumerate(dict.fromkeys(name for systems in mine.values() for name in systems)):
            points = [
                (load, mean(row.violations_pct for row in systems[system]))
                for load, systems in sorted(mine.items())
                if system in systems
            ]
            width = 2.6 if system in OURS else 1.1
            color = matplotlib.colormaps["tab20"]((2 * index + index // 10) % 20)  # the ten strong ones first
            label = system.replace("_", " ")
            axes.plot(*zip(*points, strict=True), marker="o", ms=4, lw=width, color=color, label=label)
        cores, models = cases.HOSTS[host]
        axes.set_title(f"{cores:g} cores, {models} models", fontsize=10)
        axes.set_xlabel("mean work ÷ cores")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("violations, % of the requests")
    panels[-1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.suptitle("Simulated, stepped and bursty arrivals", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
