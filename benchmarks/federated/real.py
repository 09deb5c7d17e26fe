"""The same policies on real NVFlare processes: few sites, few seeds, and the sites of the simulation at a tenth of
their times."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from airflow_mlscale.federated import client, model, simulation
from airflow_mlscale.federated.adapters import local_federation, nvflare_admin, picture
from airflow_mlscale.federated.settings import FederationSettings, RunSettings
from airflow_mlscale.federated.watch import Progress
from benchmarks.federated import cases, data, law
from benchmarks.federated.systems import SYSTEMS

SITES = ("one", "two", "three", "four", "five", "six")
SLOWNESS = 0.1
"""Of the emulated devices, ÷ the simulation's: 0.4 s for a median epoch."""
COMPARED = ("ours_cost", "ours_time", "fedavg_K5_E5", "over1.3_K5_E2", "over1.3_K5_E2_momentum")
LOOK_S = 0.5
SHOWN_ROUND = 12
"""After which the picture shows what was expected of the rest."""
CODE = Path(__file__).parent / "site"


@contextlib.contextmanager
def federation() -> Iterator[tuple[client.RunClient, Path]]:
    """A federation of its own, and a directory that its sites can read; all of it is gone afterwards."""
    sys.path.insert(0, str(CODE))
    with tempfile.TemporaryDirectory(prefix="mlscale-bench-") as home:
        os.environ["MLSCALE_HOME"] = home
        try:
            running = local_federation.up(FederationSettings(sites=SITES), python_path=[CODE])
            yield client.RunClient(nvflare_admin.NvflareAdmin(running.admin_kit), running.run_store), Path(home)
        finally:
            local_federation.down()


def split(file: Path, seed: int) -> Path:
    """Write a seed's digits by site, and the held-out ones, where the sites read them."""
    parts = data.digits(seed, sites=len(SITES))
    arrays = {"held_out_x": parts.held_out[0], "held_out_y": parts.held_out[1]}
    for name, (x, y) in zip(SITES, parts.sites.values(), strict=True):
        arrays |= {f"{name}_x": x, f"{name}_y": y}
    np.savez(file, **arrays)
    return file


def rows(
    runs: client.RunClient, file: Path, seed: int, systems: Sequence[str], picture_path: Path | None = None
) -> Iterator[cases.Row]:
    """One run of each system, one after the other; a picture of the first, with what was expected on the way."""
    for name in systems:
        run = settings(name, file, seed)
        runs.begin(run)
        earlier = _follow(runs, run.run_id)
        state = runs.directory(run.run_id).state()
        if state is None:
            raise RuntimeError(f"run {run.run_id} left no state")
        if picture_path is not None and name == systems[0]:
            picture.draw(run, state, picture_path, earlier=earlier)
        yield _row(name, seed, state)


def settings(name: str, file: Path, seed: int) -> RunSettings:
    """What a system is asked to do."""
    system = SYSTEMS[name]
    sites = simulation.drawn(
        SITES, seed, overhead_s=4.0 * SLOWNESS, epoch_s=4.0 * SLOWNESS
    )  # fmt: skip
    pace = {site.name: {**asdict(site), "straggle": list(site.straggle), "gone": []} for site in sites}
    return RunSettings(
        **{
            "run_id": f"{name}.{seed}", "model": "bench_digits:build", "client_data": "bench_digits:of_site",
            "evaluation_data": "bench_digits:held_out", "seed": seed, "max_rounds": 500,
            "data_args": {"file": str(file), "pace": pace, "seed": seed},
            "target": model.Quality("accuracy", cases.REAL.target), "deadline_at": time.time() + cases.REAL.deadline_s,
            "batch_size": cases.BATCH_SIZE, "server_optimiser": system.optimiser, **system.settings,
        }
    )  # fmt: skip


def _follow(runs: client.RunClient, run_id: str) -> model.RunState | None:
    """See a run to its end; returns what it was after `SHOWN_ROUND` rounds."""
    follower = runs.follower(run_id)
    earlier = None
    while (look := follower.look()).progress != Progress.ENDED:
        state = runs.directory(run_id).state()
        if earlier is None and state is not None and len(state.rounds) >= SHOWN_ROUND:
            earlier = state
        if look.progress == Progress.LOST:
            runs.next_segment(run_id, look.reason)
            follower = runs.follower(run_id)
        time.sleep(LOOK_S)
    return earlier


def _row(name: str, seed: int, state: model.RunState) -> cases.Row:
    wall_s = state.updated_at - state.started_at
    reached = state.status == model.Status.REACHED
    case = cases.REAL
    return cases.Row(
        system=name, data=case.data, kind=case.kind, seed=seed, target=case.target, deadline_s=case.deadline_s,
        reached=reached, met_deadline=reached and wall_s <= case.deadline_s, rounds=len(state.rounds),
        wall_s=round(wall_s, 1), node_s=round(state.node_seconds, 1),
        compute_s=round(sum(each.compute_s for each in state.rounds), 1), gigabytes=round(state.gigabytes, 6),
        quality=state.best_value or 0.0, status=str(state.status), static=SYSTEMS[name].static, law=law.name(),
        simulated=False,
    )  # fmt: skip
