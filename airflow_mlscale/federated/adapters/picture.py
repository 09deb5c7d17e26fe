"""A picture of a run: the metric after each round, the target, and the predicted curve."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import model
from airflow_mlscale.federated.settings import RunSettings

FIX = "needs matplotlib: pip install 'airflow-provider-mlscale[demo]'"
LINE, TARGET, SHADE = "#1f5fa8", "#b03a2e", "#9bbfe6"


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def draw(run: RunSettings, state: model.RunState, path: Path, *, earlier: model.RunState | None = None) -> Path:
    """Write the picture; its format is that of the path's ending.

    Args:
        run: the settings that hold.
        state: the run's last one.
        path: of the file.
        earlier: a state of the run whose forecast is shown, to compare it with what came; default is the last one.

    Raises:
        InvalidInputError: matplotlib is not there or does not know the ending, or there is no round to draw.
    """
    if not can_draw():
        raise errors.InvalidInputError("picture", str(path), FIX)
    if not state.rounds:
        raise errors.InvalidInputError("picture", str(path), f"run {run.run_id} has no complete round yet")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    if path.suffix.lstrip(".").lower() not in FigureCanvasAgg(figure).get_supported_filetypes():
        raise errors.InvalidInputError("picture", str(path), "use a name that ends in .png, .svg or .pdf")
    quality, cohort = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw_quality(quality, run, state)
    if earlier is not None or not state.status.ended:
        _draw_forecast(quality, earlier or state)
    if earlier is not None:
        quality.set_xlim(0, 1.25 * len(state.rounds))  # what came is what it is compared with
    quality.legend(loc="lower right" if run.target.higher_is_better else "upper right", fontsize=8)
    _draw_cohort(cohort, state)
    figure.suptitle(f"{run.run_id}{' (simulated)' if state.simulated else ''}: {state.status}", fontsize=11)
    figure.savefig(path, dpi=110)
    return path


def _draw_quality(axes: Any, run: RunSettings, state: model.RunState) -> None:
    numbers = [done.number for done in state.rounds]
    axes.plot(numbers, state.values, color=LINE, marker="o", markersize=3, label=run.target.metric)
    axes.axhline(state.target, color=TARGET, linestyle="--", linewidth=1, label=f"target {state.target:g}")
    best = next((done for done in state.rounds if done.number == state.best_round), None)
    if best is not None:
        axes.plot([best.number], [best.value], color=LINE, marker="*", markersize=11, linestyle="", label="best")
    axes.set_ylabel(run.target.metric)
    axes.grid(alpha=0.25)


def _draw_forecast(axes: Any, state: model.RunState) -> None:
    ahead = [point for point in (state.forecast or {}).get("curve", ()) if None not in point]
    if ahead:
        rounds, low, middle, high = zip(*ahead, strict=True)
        after = f"after round {len(state.rounds)}"
        axes.fill_between(rounds, low, high, color=SHADE, alpha=0.4, linewidth=0, label=f"expected {after}, 10 to 90 %")
        axes.plot(rounds, middle, color=LINE, linestyle=":", label=f"expected {after}")


def _draw_cohort(axes: Any, state: model.RunState) -> None:
    numbers = [done.number for done in state.rounds]
    axes.bar(numbers, [len(done.asked) for done in state.rounds], color=SHADE, label="asked")
    axes.bar(numbers, [len(done.answered) for done in state.rounds], color=LINE, width=0.5, label="answered")
    axes.set_ylabel("sites")
    axes.set_xlabel("round")
    epochs = axes.twinx()
    most = [max(done.epochs.values(), default=0) for done in state.rounds]
    epochs.step(numbers, most, where="mid", color=TARGET, linewidth=1, label="epochs")
    epochs.set_ylabel("most local epochs")
    epochs.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize=8)
