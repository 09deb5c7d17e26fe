"""``python -m benchmarks.serving_sim``: up to a hundred simulated models on 8 to 64 simulated cores."""

from __future__ import annotations

import argparse
import functools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console

from benchmarks.serving import results
from benchmarks.serving_sim import cases, closed_loop, report


def main() -> None:
    """Run what the arguments ask for."""
    args = _arguments()
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    wanted = cases.cells(args.only)
    if not wanted:
        raise SystemExit(f"no condition matches {args.only}: use patterns of system/host/shape/load")
    begun = time.monotonic()
    seeds = range(args.first, args.first + args.seeds)
    jobs = [(cell, seed) for seed in seeds for cell in wanted]
    one = functools.partial(_row, length_s=args.length)
    with ProcessPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(one, jobs))
    report.show(console, rows)
    for line in report.targets(rows):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"{len(rows)} runs in {time.monotonic() - begun:.0f} s")
    if args.out:
        about = {
            "seeds": [seeds.start, seeds.stop],
            "length_s": args.length,
            "only": args.only,
            "law": results.law(),
        }
        report.write(args.out, rows, about)


def _row(job: tuple[cases.Cell, int], length_s: float) -> cases.Row:
    return cases.row(*job, length_s)


def _arguments() -> argparse.Namespace:
    systems = ", ".join(closed_loop.systems())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_sim",
        description=f"{__doc__} {report.SIMULATED}",
        epilog=f"Systems: {systems}. Hosts (cores x models): {', '.join(cases.HOSTS)}.",
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many sets of models and arrivals (default: 5)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--length", type=float, default=120.0, metavar="S", help="simulated seconds, 10 of warm-up")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="SYSTEM/HOST/SHAPE/LOAD", help="such as '*/8x10/steps/*'"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="write JSON, picture and, if there is docs/benchmarks.md, the table below this folder, such as .",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
