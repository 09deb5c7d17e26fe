"""The same policies on real NVFlare processes: few sites, few seeds; what a round costs beside its training shows here.

``python -m benchmarks.federated.real`` starts a federation of its own under a temporary ``MLSCALE_HOME`` and ends it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from airflow_mlscale.federated import client, model
from airflow_mlscale.federated.adapters import local_federation, nvflare_admin
from airflow_mlscale.federated.settings import FederationSettings, RunSettings
from airflow_mlscale.federated.watch import Progress
from benchmarks.federated import cases, data, report
from benchmarks.federated.systems import SYSTEMS

SITES = ("a", "b", "c", "d")
TARGET, DEADLINE_S = 0.95, 240.0
COMPARED = ("ours_cost", "ours_time", "fedavg_K5_E1", "fedavg_K5_E5", "over1.3_K5_E5")
"""A cohort of five is all four sites."""
LOOK_S = 0.5


def main() -> None:
    """Play every system on every seed, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federated.real", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--only", nargs="+", default=COMPARED, choices=COMPARED)
    parser.add_argument("--rows", type=Path, help="add the rows to this file")
    args = parser.parse_args()
    code = Path(__file__).parent / "site"
    sys.path.insert(0, str(code))
    with tempfile.TemporaryDirectory(prefix="mlscale-bench-") as home:
        os.environ["MLSCALE_HOME"] = home
        try:
            running = local_federation.up(FederationSettings(sites=SITES), python_path=[code])
            runs = client.RunClient(nvflare_admin.NvflareAdmin(running.admin_kit), running.run_store)
            for seed in range(args.first, args.first + args.seeds):
                file = _split(Path(home) / f"digits-{seed}.npz", seed)
                rows = [_row(runs, name, seed, file) for name in args.only]
                report.show_rows(Console(), rows)
                if args.rows:
                    report.append_rows(args.rows, rows)
        finally:
            local_federation.down()


def _split(file: Path, seed: int) -> Path:
    parts = data.digits(seed, sites=len(SITES))
    arrays = {"held_out_x": parts.held_out[0], "held_out_y": parts.held_out[1]}
    for name, (x, y) in zip(SITES, parts.sites.values(), strict=True):
        arrays |= {f"{name}_x": x, f"{name}_y": y}
    np.savez(file, **arrays)
    return file


def _row(runs: client.RunClient, name: str, seed: int, file: Path) -> cases.Row:
    system = SYSTEMS[name]
    run = RunSettings(
        **{
            "run_id": f"{name}.{seed}", "model": "bench_digits:build", "client_data": "bench_digits:of_site",
            "evaluation_data": "bench_digits:held_out", "data_args": {"file": str(file)}, "seed": seed,
            "target": model.Quality("accuracy", TARGET), "deadline_at": time.time() + DEADLINE_S, "max_rounds": 500,
            "batch_size": cases.BATCH_SIZE, "server_optimiser": system.optimiser, **system.settings,
        }
    )  # fmt: skip
    runs.begin(run)
    follower = runs.follower(run.run_id)
    while (look := follower.look()).progress != Progress.ENDED:
        if look.progress == Progress.LOST:
            runs.next_segment(run.run_id, look.reason)
            follower = runs.follower(run.run_id)
        time.sleep(LOOK_S)
    state = runs.directory(run.run_id).state()
    if state is None:
        raise RuntimeError(f"run {run.run_id} left no state")
    wall_s = state.updated_at - state.started_at
    reached = state.status == model.Status.REACHED
    return cases.Row(
        system=name, data="digits", kind="real", seed=seed, target=TARGET, deadline_s=DEADLINE_S, reached=reached,
        met_deadline=reached and wall_s <= DEADLINE_S, rounds=len(state.rounds), wall_s=round(wall_s, 1),
        node_s=round(state.node_seconds, 1), compute_s=round(sum(each.compute_s for each in state.rounds), 1),
        gigabytes=state.gigabytes, quality=state.best_value or 0.0, status=str(state.status), static=system.static,
        simulated=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
