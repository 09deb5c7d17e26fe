"""The pictures: what each system withholds and how often it breaks its promises for that, and one run of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.report import Row, conditions, mean, of
from benchmarks.serving.results import finished
from benchmarks.serving.systems import SYSTEMS

OURS, OTHERS = "#1f77b4", "#7f7f7f"


def race(rows: Sequence[Row], path: Path) -> Path:
    """One panel for each condition: granted cores across, violations up; the lower left corner is best."""
    plt = _pyplot()
    panels = conditions(finished(rows))
    figure, axes = plt.subplots(1, len(panels), figsize=(1.2 + 4.2 * len(panels), 4.6), squeeze=False)
    for axis, (shape, load) in zip(axes[0], panels, strict=True):
        for name, system in SYSTEMS.items():
            mine = of(rows, name, (shape, load))
            if not mine:
                continue
            across = mean(mine, "granted_core_s") / mean(mine, "length_s")
            up = mean(mine, "violations_pct")
            axis.scatter([across], [up], s=46, color=OURS if system.ours else OTHERS)
            axis.annotate(name.replace("_", " "), (across, up), xytext=(5, 4), textcoords="offset points", fontsize=8)
        axis.set_title(f"{shape}, load {load:g}", fontsize=10)
        axis.set_xlabel("cores withheld from others (mean)")
        axis.set_ylim(bottom=-1)
        axis.margins(x=0.25, y=0.1)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("violations, % of the requests")
    return _save(figure, path)


def overhead(rows: Sequence[Row], path: Path) -> Path:
    """Requests per second of each server on the small model, by clients."""
    plt = _pyplot()
    clients = sorted({row["clients"] for row in rows})
    names = list(dict.fromkeys(row["system"] for row in rows))
    figure, axis = plt.subplots(figsize=(8, 4))
    width = 0.8 / len(clients)
    for place, count in enumerate(clients):
        heights = [
            mean([row for row in rows if row["system"] == name and row["clients"] == count], "requests_per_s")
            for name in names
        ]
        at = [index + (place - (len(clients) - 1) / 2) * width for index in range(len(names))]
        axis.bar(at, heights, width, label=f"{count} client{'s' if count != 1 else ''}")
    axis.set_yscale("log")
    axis.set_xticks(range(len(names)), names)
    axis.set_ylabel("requests per second")
    axis.legend()
    axis.grid(axis="y", alpha=0.3)
    return _save(figure, path)


def run(journal: Path, path: Path) -> Path:
    """One real run, a row for each model: what was asked of it and the cores it got, and its latency by that.

    Args:
        journal: of the daemon (JSON lines), from its start to its end.
        path: of the picture.
    """
    records = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    asked = [record for record in records if record["seen"]["requests"]]
    names = sorted({record["subject"] for record in asked})
    began = min(record["at"] for record in asked)
    figure, axes = _pyplot().subplots(len(names), 2, figsize=(11, 2.1 * len(names)), sharex=True, squeeze=False)
    for row, name in zip(axes, names, strict=True):
        mine = [record for record in asked if record["subject"] == name]
        _cores(row[0], mine, began, name)
        _latency(row[1], mine, began)
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    for axis in axes[0]:
        axis.legend(fontsize=8, loc="upper right")
    return _save(figure, path)


def _cores(axis: Any, mine: Sequence[Mapping[str, Any]], began: float, name: str) -> None:
    at = [record["at"] - began for record in mine]
    rate = axis.twinx()
    rate.fill_between(at, [record["seen"]["arrivals_per_s"] for record in mine], step="post", alpha=0.15, color=OTHERS)
    rate.set_ylabel("requests/s", fontsize=8, color=OTHERS)
    rate.set_ylim(bottom=0)
    axis.step(at, [record["decided"]["guaranteed_cores"] for record in mine], where="post", label="guaranteed")
    axis.plot(at, [record["seen"]["used_cores"] for record in mine], lw=0.9, label="used")
    axis.set_ylim(bottom=0)
    axis.set_ylabel("cores", fontsize=8)
    axis.set_title(name, fontsize=9, loc="left")


def _latency(axis: Any, mine: Sequence[Mapping[str, Any]], began: float) -> None:
    at = [record["at"] - began for record in mine]
    rank = mine[0]["seen"]["percentile"]
    axis.plot(at, [record["seen"]["percentile_ms"] for record in mine], label=f"p{rank:g} of the last 10 s")
    objectives = [record["seen"]["objective_ms"] for record in mine]
    axis.plot(at, objectives, "--", color="#d62728", label="objective")
    axis.set_ylim(0, 1.6 * max(objectives))
    axis.set_ylabel("ms", fontsize=8)
    axis.grid(alpha=0.3)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def _save(figure: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None})
    _pyplot().close(figure)
    return path
