"""What the run promised and what it did: ``report.json`` and a self-contained ``report.html``."""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

from demo.airflow_api import AirflowApi


def collect(api: AirflowApi, dag_id: str, run_id: str, *, took_s: float) -> dict[str, Any]:
    """Gather the tasks' own results; what a task did not deliver is absent, never assumed."""
    spark, trained, served, replayed = (
        api.result(dag_id, run_id, task) or api.summary(dag_id, run_id, task)
        for task in ("features", "train", "objective_holds", "replay_held_out")
    )
    return {
        "dag_state": api.run_state(dag_id, run_id),
        "run_id": run_id,
        "took_s": round(took_s, 1),
        "spark": _part(
            spark, ("deadline_s", "finish_s", "met", "mode", "profile", "granted_core_s", "used_core_s", "series")
        ),
        "federated": {
            **_part(trained, ("target", "metric", "reached", "accuracy", "rounds", "stopped_early", "stopped_reason")),
            "sites": len(trained.get("sites_table") or []),
            "sites_trained": sum(site["answered"] > 0 for site in trained.get("sites_table") or []),
            "rounds_table": trained.get("rounds_table"),
        },
        "serving": {
            "objective_ms": served.get("objective_ms"),
            "p95_ms": replayed.get("p95_ms"),
            "server_p95_ms": served.get("p95_ms"),
            "requests": replayed.get("requests", 0),
            "errors": replayed.get("errors"),
            "accuracy": replayed.get("accuracy"),
            "met": _objective_met(served, replayed),
            "series": replayed.get("series", []),
        },
        "tasks": [
            {key: task.get(key) for key in ("task_id", "state", "start_date", "end_date", "duration", "try_number")}
            for task in api.tasks(dag_id, run_id)
        ],
    }


def _part(result: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: result.get(name) for name in names}


def _objective_met(served: dict[str, Any], replayed: dict[str, Any]) -> bool:
    """The daemon says the objective holds *and* the callers saw it: no errors, their own p95 within it."""
    seen_ms, objective_ms = replayed.get("p95_ms"), served.get("objective_ms")
    return bool(
        served.get("met") and replayed.get("errors") == 0 and seen_ms and objective_ms and seen_ms <= objective_ms
    )


def promises(outcome: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """Each promise: whether it was kept, and the figures in one line."""
    spark, federated, serving = outcome["spark"], outcome["federated"], outcome["serving"]
    return {
        "deadline": (
            spark["met"] is True,
            f"Spark features: finished after {_text(spark['finish_s'])} s, deadline {_text(spark['deadline_s'])} s"
            f" ({spark['profile'] or 'no'} profile, {_text(spark['used_core_s'])} core-seconds used)",
        ),
        "quality": (
            federated["reached"] is True,
            f"federated {federated['metric']}: {_text(federated['accuracy'], 4)},"
            f" target {_text(federated['target'], 4)},"
            f" after {federated['rounds']} rounds on {federated['sites_trained']} of {federated['sites']} sites"
            + (", stopped early" if federated["stopped_early"] else ""),
        ),
        "objective": (
            serving["met"],
            f"serving p95: {_text(serving['p95_ms'])} ms as the callers saw it,"
            f" objective {_text(serving['objective_ms'])} ms,"
            f" {serving['requests']} requests, {serving['errors']} errors",
        ),
        "pipeline": (outcome["dag_state"] == "success", f"DAG run {outcome['dag_state']}"),
    }


def outlines(outcome: dict[str, Any], width: int = 60) -> dict[str, str]:
    """What happened over time, as lines for a terminal."""
    series, rounds = outcome["spark"]["series"] or [], outcome["federated"]["rounds_table"] or []
    used = [point.get("used_cores") or 0.0 for point in series]
    guaranteed = [point.get("guaranteed_cores") or 0.0 for point in series]
    top = max([*used, *guaranteed, 0.01])
    return {
        "Spark, cores used": f"{_sparkline(used, top, width)} 0 to {top:.1f}",
        "Spark, cores guaranteed": f"{_sparkline(guaranteed, top, width)} 0 to {top:.1f}",
        f"{outcome['federated']['metric'] or 'metric'} after each round": " ".join(
            f"{row['value']:.4f}" for row in rounds
        ),
        "training stopped": str(outcome["federated"]["stopped_reason"]),
    }


def _sparkline(values: list[float], top: float, width: int) -> str:
    """The values as a row of bars; each bar is the mean of those that fall to it."""
    bars = "▁▂▃▄▅▆▇█"
    size = max(1, -(-len(values) // width))
    means = [sum(part) / len(part) for part in (values[at : at + size] for at in range(0, len(values), size))]
    return "".join(bars[min(len(bars) - 1, int(mean / top * len(bars)))] for mean in means)


def kept(outcome: dict[str, Any]) -> bool:
    """Whether every promise was kept."""
    return all(met for met, _ in promises(outcome).values())


def write(outcome: dict[str, Any], directory: Path) -> None:
    """Write both files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(outcome, indent=1) + "\n")
    (directory / "report.html").write_text(_page(outcome))
    (directory / "report.png").write_bytes(_picture(outcome, "png"))


def _text(value: Any, digits: int = 1) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "unknown"


def _page(outcome: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td class={'kept' if met else 'broken'}>{'kept' if met else 'broken'}</td><td>{name}</td>"
        f"<td>{html.escape(text)}</td></tr>"
        for name, (met, text) in promises(outcome).items()
    )
    tasks = "".join(
        f"<tr><td>{html.escape(task['task_id'])}</td><td>{task['state']}</td><td>{_text(task['duration'])}</td></tr>"
        for task in outcome["tasks"]
    )
    picture = base64.b64encode(_picture(outcome, "svg")).decode()
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Flight-delay retraining: promises and results</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
td, th {{ padding: .3rem .8rem; border-bottom: 1px solid #d8dee4; text-align: left }}
.kept {{ color: #1a7f37; font-weight: 600 }} .broken {{ color: #cf222e; font-weight: 600 }} img {{ width: 100% }}
</style>
<h1>Flight-delay retraining</h1>
<p>Run {html.escape(outcome["run_id"])}, {outcome["took_s"]:.0f} s with the start of all services.</p>
<table><tr><th></th><th>promise</th><th>result</th></tr>{rows}</table>
<img alt="Cores and progress, accuracy per round, response times" src="data:image/svg+xml;base64,{picture}">
<h2>Tasks</h2><table><tr><th>task</th><th>state</th><th>seconds</th></tr>{tasks}</table>
</html>
"""


def _picture(outcome: dict[str, Any], kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 10), layout="constrained")
    FigureCanvasAgg(figure)
    work, quality, latency = figure.subplots(3, 1)
    _draw_spark(work, outcome["spark"])
    _draw_rounds(quality, outcome["federated"])
    _draw_latency(latency, outcome["serving"])
    for axes in (work, quality, latency):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    target = io.BytesIO()
    figure.savefig(target, format=kind, dpi=120)
    return target.getvalue()


def _draw_spark(axes: Any, spark: dict[str, Any]) -> None:
    axes.set_title("Spark: cores and progress", loc="left")
    axes.set_xlabel("seconds since the task's start")
    axes.set_ylabel("cores")
    series = spark["series"] or []
    times = [point["t_s"] for point in series]
    for name, style in (("guaranteed_cores", "-"), ("ceiling_cores", "--"), ("used_cores", ":")):
        axes.plot(
            times, [point.get(name) for point in series], style, label=name.replace("_", " "), drawstyle="steps-post"
        )
    progress = axes.twinx()
    progress.plot(times, [100 * (point.get("progress") or 0) for point in series], color="tab:gray", label="progress")
    progress.set_ylabel("progress, % (grey)")
    progress.set_ylim(0, 105)
    progress.spines[["top"]].set_visible(False)
    if spark["deadline_s"]:
        axes.axvline(spark["deadline_s"], color="tab:red", label="deadline")
    if spark["finish_s"]:
        axes.axvline(spark["finish_s"], color="tab:green", label="finish")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _draw_rounds(axes: Any, federated: dict[str, Any]) -> None:
    axes.set_title("Federated training: held-out accuracy after each round", loc="left")
    axes.set_xlabel("round")
    rounds = federated["rounds_table"] or []
    axes.plot([row["round"] for row in rounds], [row["value"] for row in rounds], "o-", label=federated["metric"])
    if federated["target"]:
        axes.axhline(federated["target"], color="tab:red", label="target")
    _legend(axes)


def _draw_latency(axes: Any, serving: dict[str, Any]) -> None:
    axes.set_title("Serving: p95 of each second, as the callers saw it", loc="left")
    axes.set_xlabel("seconds of replay")
    axes.set_ylabel("ms")
    axes.plot([row["t_s"] for row in serving["series"]], [row["p95_ms"] for row in serving["series"]], label="p95")
    if serving["objective_ms"]:
        axes.axhline(serving["objective_ms"], color="tab:red", label="objective")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _legend(axes: Any) -> None:
    """Above the plot, where it hides nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=5, fontsize="small", frameon=False)
