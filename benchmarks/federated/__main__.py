"""``python -m benchmarks.federated``: thousands of simulated federated runs, the product's own controller."""

from __future__ import annotations

import argparse
import functools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before NumPy is loaded: one core for each process
    os.environ.setdefault(name, "1")


def main() -> None:
    """Run what the arguments ask for."""
    from rich.console import Console

    from benchmarks.federated import cases, report

    args = _arguments()
    wanted = cases.chosen(args.only)
    if not wanted:
        raise SystemExit(f"no condition matches {args.only}: use patterns of system/data/kind")
    begun = time.monotonic()
    seeds = range(args.first, args.first + args.seeds)
    one = functools.partial(cases.rows, wanted=wanted)
    rows = report.read_rows(args.rows) if args.rows else []
    left = [seed for seed in seeds if seed not in {row.seed for row in rows}]
    with ProcessPoolExecutor(args.jobs) as pool:
        for found in pool.map(one, left):
            rows += found
            if args.rows:
                report.append_rows(args.rows, found)
    console = Console() if Console().is_terminal else Console(width=160)
    report.show(console, rows)
    console.print(f"{len(rows)} rows of {args.seeds} seeds from {args.first} in {time.monotonic() - begun:.0f} s")
    if args.out:
        about = {"seeds": [seeds.start, seeds.stop], "tuned_on": [0, 30]}
        report.write(args.out / "benchmarks/results/federated.json", rows, about)
        report.tell(args.out / "benchmarks/results/federated.md", rows, about)
        report.draw(args.out / "docs/img/federated-sim.png", rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federated", description=__doc__)
    parser.add_argument("--seeds", type=int, default=30, help="how many federations (default: 30)")
    parser.add_argument("--first", type=int, default=100, help="the first seed (default: 100; tuned on 0 to 29)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="SYSTEM/DATA/KIND", help="such as 'ours_*/digits' or 'fedavg*'"
    )
    parser.add_argument("--rows", type=Path, help="keep rows in this file as they come, and skip seeds that are in it")
    parser.add_argument("--out", type=Path, help="write JSON, table and picture below this folder, such as .")
    return parser.parse_args()


if __name__ == "__main__":
    main()
