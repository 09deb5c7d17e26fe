"""The model card: what an exported model was trained on, how, how good it is and what it keeps private. Pure.

A function of what is recorded of the run anyway; ``adapters.model_card`` writes it beside the model, as Markdown for
people and as JSON for programs. It never holds data, data arguments or addresses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from airflow_mlscale.federated import model
from airflow_mlscale.federated.settings import RunSettings
from airflow_mlscale.federated.sites import Site

FILE = "model_card.md"
"""Beside the model; the JSON form has the same name with another ending."""
FORM = 1
"""Of the JSON object; another number is another form."""
BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 60
"""Most characters of the curve."""


def card(run: RunSettings, state: model.RunState, versions: Mapping[str, str]) -> dict[str, Any]:
    """The model card as a JSON object.

    Args:
        run: the run's settings.
        state: its last state; the model is that of its best round.
        versions: of the packages that trained and saved the model.
    """
    behind = [done for done in state.rounds if done.number <= state.best_round]
    best = behind[-1] if behind else None
    if best is not None and run.measured_by_sites:
        behind = behind[:-1]  # the model that was measured in a round is the one that it began with
    return {
        "card": FORM,
        "run_id": run.run_id,
        "simulated": state.simulated,
        "model": {
            "function": run.model or run.initial_weights, "keras_model": state.keras_model,
            "saved_model": state.saved_model, "weights_file": state.weights_file,
        },
        "quality": {
            "metric": run.target.metric,
            "value": best.value if best else None,
            "loss": best.loss if best else None,
            "target": run.target.value,
            "higher_is_better": run.target.higher_is_better,
            "reached": state.status == model.Status.REACHED,
            "held_out_by": run.evaluation_data,
            "round": state.best_round,
            "values": state.values,
        },
        "data": {
            "function": run.client_data or run.client_script,
            "samples": sum(site["samples"] for site in _sites(state, behind) if site["rounds_in_model"]),
            "sites": _sites(state, behind),
        },
        "training": _training(run, state),
        "privacy": _privacy(run, state),
        "versions": dict(sorted(versions.items())),
    }  # fmt: skip


def _training(run: RunSettings, state: model.RunState) -> dict[str, Any]:
    return {
        "status": str(state.status),
        "reason": state.reason,
        "rounds": len(state.rounds),
        "segments": state.segment,
        "started_at": _utc(state.started_at),
        "finished_at": _utc(state.updated_at),
        "deadline_at": _utc(state.deadline_at),
        "seconds": round(max(0.0, state.updated_at - state.started_at), 1),
        "node_seconds": round(state.node_seconds, 1),
        "compute_seconds": round(sum(done.compute_s for done in state.rounds), 1),
        "gigabytes": round(state.gigabytes, 6),
        "policy": run.policy,
        "objective": run.objective,
        "batch_size": run.batch_size,
        "proximal_mu": run.proximal_mu,
        "aggregation": run.aggregation.to_json(),
        "server_optimiser": run.server_optimiser.to_json(),
        "seed": run.seed,
    }


def _privacy(run: RunSettings, state: model.RunState) -> dict[str, Any]:
    """What was promised and what of it is spent; ``epsilon`` None promises nothing."""
    promised = run.privacy
    return {
        "epsilon": state.epsilon if promised else None,
        "delta": promised.delta if promised else None,
        "clip_norm": promised.clip_norm if promised else None,
        "noise_multiplier": promised.noise_multiplier if promised else None,
        "noise_at": promised.noise_at if promised else None,
        "encrypted": run.encrypted,
    }


def _sites(state: model.RunState, behind: Sequence[model.Round]) -> list[dict[str, Any]]:
    return [_site(site, sum(site.name in (*done.answered, *done.late) for done in behind)) for site in state.sites]


def _site(site: Site, rounds_in_model: int) -> dict[str, Any]:
    return {
        "name": site.name,
        "samples": site.samples,
        "rounds_in_model": rounds_in_model,
        "asked": site.asked,
        "answered": site.answered,
        "reliability": round(site.reliability, 3),
        "epoch_seconds": None if site.epoch_s is None else round(site.epoch_s, 3),
        "node_seconds": round(site.busy_s, 1),
        "gigabytes": round(site.gigabytes, 6),
    }


def markdown(found: Mapping[str, Any]) -> str:
    """A card for people, out of its JSON object."""
    simulated = ["**Simulated: no real site took part.**", ""] if found["simulated"] else []
    return "\n".join(
        [
            f"# Model card: {found['run_id']}", "", *simulated, _summary(found), "",
            "## Quality", "", *_quality(found["quality"]), "",
            "## Data", "", *_data(found["data"]), "",
            "## Training", "", *_bullets(_training_words(found["training"])), "",
            "## Privacy", "", *_privacy_words(found["privacy"]), "",
            "## Versions", "", *_bullets(found["versions"].items()), "",
        ]
    )  # fmt: skip


def _summary(found: Mapping[str, Any]) -> str:
    quality, data, training = found["quality"], found["data"], found["training"]
    verdict = "reached" if quality["reached"] else "not reached"
    taking_part = sum(1 for site in data["sites"] if site["rounds_in_model"])
    kind = "Keras model" if found["model"]["saved_model"] else "Weights"
    return (
        f"{kind} of `{found['model']['function']}`, trained on {data['samples']} samples of {taking_part} sites "
        f"in {training['rounds']} rounds{'' if found['simulated'] else '; their data stayed where it was'}. "
        f"Target {quality['metric']} "
        f"{'>=' if quality['higher_is_better'] else '<='} {quality['target']:g}: {verdict} ({training['reason']})."
    )


def _quality(quality: Mapping[str, Any]) -> list[str]:
    if quality["value"] is None:
        return ["Never evaluated."]
    low, high = _ends(quality["values"])
    held_out = quality["held_out_by"]
    where = f"the held-out data of `{held_out}`" if held_out else "what the sites keep from training"
    loss = "" if quality["loss"] is None else f", loss {quality['loss']:.4f}"
    return [
        f"{quality['metric']} {quality['value']:.4f}{loss} on {where}, "
        f"{'after' if held_out else 'as it was sent in'} round {quality['round']}, "
        f"the best of {len(quality['values'])}. "
        "The best round is chosen on the same data, which flatters it a little.",
        "",
        f"Per round: `{curve(quality['values'])}` ({low:.4f} to {high:.4f})",
    ]


def curve(values: Sequence[float]) -> str:
    """Values as a line of bars between the least and the greatest; long lines are thinned out, × is no number."""
    step = max(1, -(-len(values) // CURVE_WIDTH))
    shown = [values[min(start + step, len(values)) - 1] for start in range(0, len(values), step)]
    low, high = _ends(values)
    scale = (len(BARS) - 1) / ((high - low) or 1.0)
    return "".join(BARS[round((value - low) * scale)] if isfinite(value) else "×" for value in shown)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if isfinite(value)]
    return min(finite, default=0.0), max(finite, default=0.0)


def _data(data: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {site['name']} | {site['samples']} | {site['rounds_in_model']} | {site['answered']} of {site['asked']} "
        f"| {site['reliability']:.2f} | {_number(site['epoch_seconds'])} | {site['node_seconds']:g} "
        f"| {site['gigabytes'] * 1e3:.3g} |"
        for site in data["sites"]
    ]
    return [
        f"Read on each site by `{data['function']}`.",
        "",
        "| site | samples | rounds in this model | answered | reliability | s per epoch | node-s | MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *rows,
    ]


def _training_words(training: Mapping[str, Any]) -> list[tuple[str, str]]:
    aggregation, optimiser = training["aggregation"], training["server_optimiser"]
    return [
        ("ended", f"{training['status']}: {training['reason']}"),
        ("from", f"{training['started_at']} to {training['finished_at']}, {training['seconds']:g} s"),
        ("deadline", training["deadline_at"] or "none"),
        ("rounds", f"{training['rounds']}, in segments of the run: {training['segments']}"),
        ("cost", f"{training['node_seconds']:g} node-s ({training['compute_seconds']:g} s of training)"),
        ("moved", f"{training['gigabytes'] * 1e3:.3g} MB"),
        ("policy", f"{training['policy']}, objective {training['objective']}, seed {training['seed']}"),
        ("sites' steps", f"batches of {training['batch_size']}, FedProx µ = {training['proximal_mu']:g}"),
        ("aggregation", f"{aggregation['rule']}, then {optimiser['name']}"),
    ]


def _privacy_words(privacy: Mapping[str, Any]) -> list[str]:
    told = ["The server summed weights that it could not read." if privacy["encrypted"] else None]
    if privacy["epsilon"] is None:
        told.append("No differential privacy was asked for: nothing is promised about what the weights tell.")
    else:
        told.append(
            f"({privacy['epsilon']:.3g}, {privacy['delta']:g})-differential privacy of each site's whole data over all "
            f"rounds: updates clipped to {privacy['clip_norm']:g}, Gaussian noise of {privacy['noise_multiplier']:g} "
            f"times that, added at the {privacy['noise_at']}."
        )
    return [line for line in told if line]


def _bullets(pairs: Any) -> list[str]:
    return [f"- {name}: {value}" for name, value in pairs]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _utc(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
