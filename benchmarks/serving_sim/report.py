"""What came out: a table for people and JSON for other programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.serving_sim import cases

SIMULATED = (
    "Simulated: models and cores that exist only as numbers, under ROMA's own policy code. No TensorFlow, no kernel, "
    "no gateway. Every system has ROMA's lines (order, batches, shedding); the law of the cores is what differs."
)
RIVALS = ("static", "rules", "ct", "ct_scaled", "queue_length", "queue_length_scaled", "hpa")
OURS = ("ours_work_conserving", "ours_reserve")
Condition = tuple[str, str, float]


def conditions(rows: Sequence[cases.Row]) -> dict[Condition, dict[str, list[cases.Row]]]:
    """Rows by host, shape and load, and then by system."""
    found: dict[Condition, dict[str, list[cases.Row]]] = {}
    for row in rows:
        found.setdefault((row.host, row.shape, row.load), {}).setdefault(row.system, []).append(row)
    return found


def show(console: Console, rows: Sequence[cases.Row]) -> None:
    """The table: means over the seeds."""
    table = Table(caption=SIMULATED)
    for name in ("host", "shape", "load", "system"):
        table.add_column(name)
    for name in ("violations %", "shed %", "on target", "p95 ÷ SLO", "granted", "caps", "used", "raised"):
        table.add_column(name, justify="right")
    for (host, shape, load), systems in conditions(rows).items():
        table.add_section()
        for system, same in systems.items():
            raised = [row.raised_pct for row in same if row.raised_pct is not None]
            table.add_row(
                host,
                shape,
                f"{load:g}",
                system,
                f"{mean(row.violations_pct for row in same):.2f}",
                f"{mean(row.shed_pct for row in same):.2f}",
                f"{mean(row.models_on_target for row in same):.1f}/{same[0].models}",
                f"{mean(row.p95_ratio for row in same):.2f}",
                f"{mean(row.granted_core_s for row in same):.0f}",
                f"{mean(row.cap_core_s for row in same):.0f}",
                f"{mean(row.used_core_s for row in same):.0f}",
                f"{mean(raised):+.2f}" if raised else "",
            )
    console.print(table)


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


def write(path: Path, rows: Sequence[cases.Row], about: dict[str, Any]) -> None:
    """Everything, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"note": SIMULATED, "about": about, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
