"""``python -m benchmarks.deadline_sim``: thousands of simulated deadlines, the product's own policies."""

from __future__ import annotations

import argparse
import functools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from airflow_mlscale.spark.settings import DeadlineSettings
from benchmarks.deadline import machine
from benchmarks.deadline_sim import applications, cases, report


def main() -> None:
    """Run what the arguments ask for."""
    args = _arguments()
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    wanted = cases.cells(args.only)
    if not wanted:
        raise SystemExit(f"no condition matches {args.only}: use patterns of system/profile/slack")
    if args.trace is not None:
        for cell in wanted:
            _trace(console, args, cell)
        return
    begun = time.monotonic()
    one = functools.partial(
        cases.rows, wanted=wanted, length_s=tuple(args.length), tuning=dict(args.set), shape=args.shape
    )
    seeds = range(args.first, args.first + args.seeds)
    with ProcessPoolExecutor(args.jobs) as pool:
        rows = [row for found in pool.map(one, seeds, chunksize=2) for row in found]
    report.show(console, rows)
    report.show_misses(console, rows, most=args.worst)
    for target in report.targets(rows):
        console.print(target, highlight=False, soft_wrap=True)
    console.print(f"{len(rows)} runs of {args.seeds} applications in {time.monotonic() - begun:.0f} s")
    if args.out:
        about = {
            "seeds": [seeds.start, seeds.stop],
            "length_s": args.length,
            "tuning": dict(args.set),
            "law": machine.law(),
        }
        report.write(args.out / "benchmarks/results/deadline-sim.json", rows, about)
        report.draw(args.out / "docs/img/deadline-sim.png", rows)
        page = args.out / "docs/benchmarks.md"
        if page.exists():
            report.tell(page, rows, about)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deadline_sim", description=f"{__doc__} {report.SIMULATED}"
    )
    parser.add_argument("--seeds", type=int, default=200, help="how many random applications (default: 200)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="SYSTEM/PROFILE/SLACK", help="such as 'ours_*/warm/1.2' or 'paper'"
    )
    parser.add_argument("--shape", choices=list(applications.SHAPES), help="one shape instead of all in turn")
    parser.add_argument(
        "--length", type=float, nargs=2, default=(60.0, 300.0), metavar="S", help="least and most seconds at full share"
    )
    parser.add_argument(
        "--set", type=_setting, nargs="+", default=[], metavar="NAME=VALUE", help="settings of the policies"
    )
    parser.add_argument("--worst", type=int, default=10, help="how many missed runs to list")
    parser.add_argument("--trace", type=int, metavar="SEED", help="show one run step by step instead")
    parser.add_argument(
        "--out",
        type=Path,
        help="write JSON, picture and, if there is docs/benchmarks.md, the table below this folder, such as .",
    )
    return parser.parse_args()


def _setting(text: str) -> tuple[str, float | str]:
    name, _, value = text.partition("=")
    if name not in DeadlineSettings.__dataclass_fields__:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(DeadlineSettings.__dataclass_fields__)}")
    try:
        return name, float(value)
    except ValueError:
        return name, value


def _trace(console: Console, args: Any, cell: cases.Cell) -> None:
    same = cases.trial(args.trace, partly=cell.profile == "partly", length_s=tuple(args.length), shape=args.shape)
    outcome = cases.run(same, cell, dict(args.set), trace=True)
    app, draw = same.application, same.draw
    console.rule(f"{cell.name}, seed {same.seed}: {app.shape}, {len(app.stages)} stages, {app.slots} slots")
    for step in outcome.steps:
        decision = step.decision
        console.print(
            f"{step.t_s:6.1f} s  used {step.used_core_s:7.1f}  share {decision.guaranteed_cores:5.2f}"
            f" / {decision.ceiling_cores or 0:5.2f}  delivered {step.delivered_cores:5.2f}"
            f"  needed {decision.needed_cores:6.2f}  progress {decision.progress or 0:.3f}"
            f"  {decision.outlook}  {decision.reason}",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"mishaps {sorted(draw.mishaps)}, fetch failures {draw.fetch_failures}, lost {draw.lost}")
    console.print(
        f"alone {same.alone.finish_s:.1f} s, deadline {cell.slack * same.alone.finish_s:.1f} s,"
        f" finish {outcome.finish_s:.1f} s; derating {draw.derating[0]:.2f}, slow cost {app.slow_cost:.2f}"
    )


if __name__ == "__main__":
    main()
