"""The pictures: errors and grants by system, and one real burn-down."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.deadline.report import Row, granted_ratio, of
from benchmarks.deadline.results import Results, finished
from benchmarks.deadline.rivals import RIVALS

OURS, OTHERS, LINE, GUIDE = "#1f77b4", "#b0b0b0", "#d62728", "#888888"


def draw(found: Results, folder: Path) -> list[Path]:
    """Draw what the results allow; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [race(found.rows, folder / "deadline.png")] if finished(found.rows) else []
    if found.burn_down:
        app = max(found.burn_down, key=lambda name: len(found.burn_down[name]["points"]))
        drawn.append(burn_down(app, found.burn_down[app], found.work_core_s(app), folder / "burn-down.png"))
    return drawn


def race(rows: Sequence[Row], path: Path) -> Path:
    """Where each system's runs end relative to their deadline, and what they were granted for it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    systems = [name for name in RIVALS if finished(of(rows, name))]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 0.7 + 0.45 * len(systems)), sharey=True)
    for place, name in enumerate(reversed(systems)):
        done = finished(of(rows, name))
        colour = OURS if RIVALS[name].ours else OTHERS
        ends = [100 * (row["finish_s"] / row["deadline_s"] - 1) for row in done]
        heights = [place + 0.35 * ((number % 7) - 3) / 7 for number in range(len(ends))]
        left.scatter(ends, heights, s=18, color=colour, edgecolors=["black" if row["met"] else LINE for row in done])
        right.boxplot(
            [granted_ratio(row) for row in done],
            positions=[place],
            orientation="horizontal",
            widths=0.6,
            patch_artist=True,
            boxprops={"facecolor": colour},
            medianprops={"color": "black"},
        )
    left.axvline(0, color=LINE)
    left.set_xlabel("end relative to the deadline, %: late to the right of the line")
    right.axvline(1, color=GUIDE, linestyle="--")
    right.set_xlabel("mean granted cores ÷ (work ÷ deadline)")
    left.set_yticks(range(len(systems)), [RIVALS[name].says for name in reversed(systems)])
    return _save(figure, path)


def burn_down(app: str, run: Mapping[str, Any], work_core_s: float, path: Path) -> Path:
    """Work that is left and the share, second by second, of one run."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    points, deadline_s, finish_s = run["points"], run["deadline_s"], run["finish_s"]
    times = [point["t_s"] for point in points]
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 5.5), sharex=True, height_ratios=[3, 2])
    left = [work_core_s * (1 - (point["progress"] or 0.0)) for point in points]
    above.plot([*times, finish_s], [*left, 0.0], color=OURS, label="work left")
    above.plot([0, deadline_s], [work_core_s, 0], color=GUIDE, linestyle="--", label="even pace to the deadline")
    above.set_ylabel("core-seconds")
    above.set_title(f"{app}: done after {finish_s:.1f} s of {deadline_s:.1f} s")
    below.step(times, [point["guaranteed_cores"] for point in points], where="post", color=OURS, label="share")
    spent = [(point["t_s"], point["used_core_s"]) for point in points[::2]]
    steps = list(itertools.pairwise(spent))
    used = [(later - before) / (end - begin) if end > begin else 0.0 for (begin, before), (end, later) in steps]
    below.step([end for _, (end, _) in steps], used, where="pre", color=OTHERS, label="used")
    below.set_ylabel("cores")
    below.set_xlabel("seconds since the start")
    below.set_ylim(bottom=0)
    for axes in (above, below):
        axes.axvline(deadline_s, color=LINE, label="deadline")
        axes.legend(loc="best", fontsize=8)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return path
