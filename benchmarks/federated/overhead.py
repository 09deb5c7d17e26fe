"""What a round costs under our controller beyond NVFlare's own FedAvg.

The same client script, the same sites, the same transport settings, everybody in every round; a round lasts from one
model to the next as the sites see it. Ours also measures, decides, checks, and makes each round durable.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from airflow_mlscale.federated import client, model
from airflow_mlscale.federated.adapters import job_folder
from airflow_mlscale.federated.settings import RunSettings
from airflow_mlscale.runtime import processes

ROUNDS = 25
WARM_UP = 3
"""Rounds at the beginning that do not count."""
SYSTEMS = ("nvflare_fedavg", "ours")


def measure(runs: client.RunClient, sites: Sequence[str], scratch: Path, file: Path, seed: int) -> list[dict[str, Any]]:
    """One run of each, one after the other; a row each with its round times in seconds."""
    rows = []
    for system in SYSTEMS if seed % 2 else reversed(SYSTEMS):
        clock = scratch / f"clock-{system}-{seed}"
        play = _ours if system == "ours" else _nvflare
        play(runs, sites, scratch, file, clock, seed)
        seconds = [times for site in sites for times in _between(Path(f"{clock}.{site}"))]
        rows.append({"system": system, "seed": seed, "rounds": ROUNDS, "seconds": [round(each, 4) for each in seconds]})
    return rows


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median round of each, and by how much ours is longer, over all seeds and for each of them."""
    medians = {
        system: median(s for row in rows if row["system"] == system for s in row["seconds"]) for system in SYSTEMS
    }
    seeds = sorted({row["seed"] for row in rows})
    by_seed = [
        {row["system"]: median(row["seconds"]) for row in rows if row["seed"] == seed} for seed in seeds
    ]  # fmt: skip
    return {
        "round_s": {system: round(seconds, 4) for system, seconds in medians.items()},
        "overhead_pct": round(100 * (medians["ours"] / medians["nvflare_fedavg"] - 1), 2),
        "overhead_pct_by_seed": [round(100 * (each["ours"] / each["nvflare_fedavg"] - 1), 2) for each in by_seed],
    }


def _ours(runs: client.RunClient, sites: Sequence[str], scratch: Path, file: Path, clock: Path, seed: int) -> None:
    run = settings(f"overhead-{seed}", sites, file, clock)
    runs.begin(run)
    directory = runs.directory(run.run_id)

    def ended() -> bool:
        state = directory.state()
        return state is not None and state.status.ended

    processes.wait_until(ended, what=f"run {run.run_id}", timeout_s=300, poll_s=0.5)


def settings(run_id: str, sites: Sequence[str], file: Path, clock: Path) -> RunSettings:
    """Everybody, one epoch, for so many rounds: what NVFlare's FedAvg does."""
    return RunSettings(
        run_id=run_id, client_script="bench_client.py", client_script_args=("--file", str(file), "--clock", str(clock)),
        initial_weights="bench_digits:weights", extra_modules=("bench_digits",),
        target=model.Quality("accuracy", 1.0, in_a_row=ROUNDS), max_rounds=ROUNDS, policy="fedavg",
        min_nodes=len(sites), cohort=len(sites), local_epochs=1, on_infeasible="go_on", stall_rounds=None,
    )  # fmt: skip


def _nvflare(runs: client.RunClient, sites: Sequence[str], scratch: Path, file: Path, clock: Path, seed: int) -> None:
    folder = job_folder.render(
        settings(f"nvflare-{seed}", sites, file, clock), segment=1, run_dir=scratch / "unused", folder=scratch / "job"
    )
    config = folder / "app" / "config" / "config_fed_server.json"
    server = json.loads(config.read_text())
    arguments = {"num_clients": len(sites), "num_rounds": ROUNDS, "kept": str(scratch / f"kept-{seed}.npz")}
    server["workflows"] = [{"id": "fedavg", "path": "bench_fedavg.KeptFedAvg", "args": arguments}]
    config.write_text(json.dumps(server))
    (folder / "app" / "custom" / "bench_fedavg.py").write_bytes(
        (Path(__file__).parent / "site/bench_fedavg.py").read_bytes()
    )
    job = runs.admin.submit(folder, f"nvflare-{seed}-{time.time():.0f}")

    def ended() -> bool:
        return (runs.admin.job_status(job) or "FINISHED").startswith("FINISHED")

    processes.wait_until(ended, what=f"job {job}", timeout_s=300, poll_s=3.0)


def _between(clock: Path) -> list[float]:
    at = [float(line) for line in clock.read_text().split()]
    return [later - earlier for earlier, later in zip(at[WARM_UP:], at[WARM_UP + 1 :], strict=False)]
