"""``python -m benchmarks.federated``: who reaches a quality by a deadline, and at what cost.

Two layers under the product's own controller and policies: thousands of simulated runs, and a few on real NVFlare
processes, with the time that a round costs beside its training.
"""

from __future__ import annotations

import argparse
import functools
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before NumPy is loaded: one core for each process
    os.environ.setdefault(name, "1")

LAYERS = ("simulated", "real", "overhead")
KEPT = Path("benchmarks/results/federated.json")


def main() -> None:
    """Run what the arguments ask for."""
    from rich.console import Console

    from benchmarks.federated import report, results

    args = _arguments()
    console = Console() if Console().is_terminal else Console(width=160)
    found = results.read(args.out / KEPT) if args.out else results.Results()
    save = functools.partial(results.write, args.out / KEPT) if args.out else lambda _: None
    begun = time.monotonic()
    if "simulated" in args.layers:
        found = found.without_simulated(args.fresh)
        for rows in _simulated(args, found):
            found = found.plus(rows)
            save(found)
    if "real" in args.layers or "overhead" in args.layers:
        for more in _real(args):
            found = found.plus(**more)
            save(found)
    report.show(console, found)
    console.print(f"{len(found.rows)} rows, {time.monotonic() - begun:.0f} s")
    if args.out:
        report.tell(args.out / KEPT.with_suffix(".md"), found)
        report.tell_in_short(args.out / "docs/benchmarks.md", found)
        report.draw(args.out / "docs/img/federated-sim.png", found.rows)


def _simulated(args: argparse.Namespace, found: Any) -> Any:
    """Rows of one seed after the other; what is known already is not run again."""
    from benchmarks.federated import cases

    wanted = cases.chosen(args.only)
    if not wanted:
        raise SystemExit(f"no condition matches {args.only}: use patterns of system/data/kind")
    known = {(row.system, row.data, row.kind, row.seed) for row in found.rows}
    with ProcessPoolExecutor(args.jobs) as pool:
        left = {
            seed: [(name, case) for name, case in wanted if (name, case.data, case.kind, seed) not in known]
            for seed in range(args.first, args.first + args.seeds)
        }
        yield from pool.map(cases.rows, left.keys(), left.values())


def _real(args: argparse.Namespace) -> Any:
    from benchmarks.federated import overhead, real

    with real.federation() as (runs, scratch):
        for seed in range(args.first, args.first + args.real_seeds):
            file = real.split(scratch / f"digits-{seed}.npz", seed)
            if "overhead" in args.layers:
                yield {"overhead": overhead.measure(runs, real.SITES, scratch, file, seed)}
            if "real" in args.layers:
                drawn = args.out / "docs/img/federated-run.png" if args.out and seed == args.first else None
                for row in real.rows(runs, file, seed, real.COMPARED, drawn):
                    print(row, flush=True)
                    yield {"rows": [row]}


def _arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federated", description=__doc__)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=LAYERS, help="default: all")
    parser.add_argument("--seeds", type=int, default=30, help="how many simulated federations (default: 30)")
    parser.add_argument("--real-seeds", type=int, default=2, help="how many real ones (default: 2)")
    parser.add_argument("--first", type=int, default=100, help="the first seed (default: 100; tuned on 0 to 29)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes of the simulation")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="SYSTEM/DATA/KIND", help="such as 'ours_*/digits' or 'fedavg*'"
    )
    parser.add_argument(
        "--out", type=Path, help="the project's folder: keep rows, tables, pictures there; rows of the same law that "
        "are there already are not run again"
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="run simulated rows again that are there already")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
