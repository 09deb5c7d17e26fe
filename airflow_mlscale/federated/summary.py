"""What a run came to, as JSON: the operator's XCom, and the smaller form for Airflow's task state. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_mlscale.federated import card, limits, model
from airflow_mlscale.federated.settings import RunSettings

SITES_BYTES = 40_000
"""Of the sites' table in the task state, which holds 60 kB in all."""


def summary(run: RunSettings, state: model.RunState | None) -> dict[str, Any]:
    """A run as one JSON object.

    Args:
        run: the settings that hold.
        state: the last one; None before the run has begun.
    """
    state = state or model.RunState(run_id=run.run_id, deadline_at=run.deadline_at)
    reached = state.status == model.Status.REACHED
    return {
        "run_id": run.run_id,
        "metric": run.target.metric,
        "target": run.target.value,
        "reached": reached,
        "accuracy": state.best_value,
        "value": state.best_value,
        "rounds": len(state.rounds),
        "best_round": state.best_round,
        "stopped_early": (reached and len(state.rounds) < run.max_rounds) or state.status == model.Status.STOPPED,
        "stopped_reason": state.reason,
        "status": str(state.status),
        "simulated": state.simulated,
        "segments": state.segment,
        "started_at": state.started_at,
        "finished_at": state.updated_at,
        "deadline_at": run.deadline_at,
        "limits": limits.values(run),
        "limit_changes": state.changes,
        "seconds": round(state.updated_at - state.started_at, 3),
        "node_seconds": round(state.node_seconds, 3),
        "gigabytes": state.gigabytes,
        "forecast": state.forecast,
        "epsilon": state.epsilon,
        "delta": run.privacy.delta if run.privacy else None,
        "saved_model": state.saved_model,
        "keras_model": state.keras_model,
        "weights_file": state.weights_file,
        "model_card": str(Path(state.exported).parent / card.FILE) if state.exported else None,
        "rounds_table": [
            {
                "round": done.number, "value": done.value, "loss": done.loss, "seconds": done.seconds,
                "asked": len(done.asked), "answered": len(done.answered), "samples": done.samples,
                "segment": done.segment, "late": len(done.late), "epochs": max(done.epochs.values(), default=0),
                "node_s": done.node_s,
            }
            for done in state.rounds
        ],
        "sites_table": [
            {
                "site": site.name, "samples": site.samples, "overhead_s": site.overhead_s, "epoch_s": site.epoch_s,
                "reliability": round(site.reliability, 3), "asked": site.asked, "answered": site.answered,
                "node_s": round(site.busy_s, 3), "gigabytes": site.gigabytes,
            }
            for site in state.sites
        ],
    }  # fmt: skip


def for_task_state(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary without its rounds, which are in the journal, and with as many sites as there is room for.

    The sites that cost most stay; ``sites_left_out`` says how many others there are.
    """
    kept = {name: value for name, value in summary.items() if not name.endswith("_table")}
    sites = sorted(summary.get("sites_table", ()), key=lambda site: -site["node_s"])
    size, shown = 0, []
    for site in sites:
        size += len(json.dumps(site)) + 2
        if size > SITES_BYTES:
            break
        shown.append(site)
    return {**kept, "sites_table": shown, "sites_left_out": len(sites) - len(shown)}
