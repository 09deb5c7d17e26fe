"""``python -m benchmarks.deadline``: measure deadlines on real Spark, print the table, draw the pictures."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console

from airflow_mlscale import errors
from benchmarks.deadline import machine, pictures, report, session
from benchmarks.deadline.results import Results

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "deadline.json"
DOCS = ROOT / "docs"


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments ask for; 0 if every run ended well, 1 if one failed, 2 for bad input."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        scope = _scope(options)
        found = _open(options, scope)
        if not options.report:
            _measure(options, replace(scope, scale=found.scale), found, console)
        if not found.rows:
            console.print("no rows yet")
            return 0
        factors = sorted({row["factor"] for row in found.rows})
        for factor in (None, *(factors if len(factors) > 1 else ())):
            console.print(report.table(found.rows, factor=factor))
        for target in report.targets(found.rows):
            console.print(str(target), markup=False, highlight=False, soft_wrap=True)
        if options.full or options.report or options.docs != DOCS:
            _publish(options, found, console)
    except errors.InvalidInputError as exc:
        console.print(str(exc), style="red", markup=False)
        return 2
    return int(any(row["error"] for row in found.rows))


def _measure(options: argparse.Namespace, scope: session.Scope, found: Results, console: Console) -> None:
    home = options.home
    home.mkdir(parents=True, exist_ok=True)
    os.environ["MLSCALE_HOME"] = str(home)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster is ended
    (home / "logs").mkdir(exist_ok=True)
    logging.basicConfig(
        filename=home / "logs" / "session.log", level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    found.machine, found.versions = machine.info(), machine.versions()
    running = session.Session(scope, found, home=home, allocator=options.allocator)
    if running.complete():
        return
    with running:
        for line in running.baselines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        console.print(f"{running.left()} runs to go, about {running.left_s() / 60:.0f} minutes", highlight=False)
        for line in running.race():
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _publish(options: argparse.Namespace, found: Results, console: Console) -> None:
    """The table beside the rows and on its page, and the pictures."""
    text = report.markdown(found)
    table = options.results.with_suffix(".md")
    table.write_text(text)
    written = [table, *pictures.draw(found, options.docs / "img")]
    page = options.docs / "benchmarks.md"
    if page.exists():
        page.write_text(report.between_marks(page.read_text(), text))
        written.append(page)
    for path in written:
        console.print(f"written: {path}", highlight=False)


def _open(options: argparse.Namespace, scope: session.Scope) -> Results:
    """The results to go on with; those of an earlier session are kept aside unless it is resumed."""
    path: Path = options.results
    if options.resume or options.report:
        found = Results.load(path)
        if options.scale not in (None, found.scale):
            raise errors.InvalidInputError("scale", options.scale, f"these results were made with {found.scale:g}")
        if options.resume and found.versions.get("law") != machine.law():
            raise errors.InvalidInputError(
                "resume",
                str(path),
                f"its rows are of law {found.versions.get('law')}, this is {machine.law()}; begin anew",
            )
        return found
    if path.exists():
        path.replace(path.with_suffix(".previous.json"))
    return Results(path=path, scale=scope.scale)


def _scope(options: argparse.Namespace) -> session.Scope:
    """What the options ask for, on top of ``--quick`` (default) or ``--full``."""
    base = session.FULL if options.full else session.QUICK
    given = {field.name: getattr(options, field.name) for field in fields(session.Scope)}
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deadline", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="two applications, five rivals, 1.5x, one seed (default)")
    size.add_argument("--full", action="store_true", help="everything, five seeds: hours")
    parser.add_argument("--apps", type=_words, help="comma-separated")
    parser.add_argument("--rivals", type=_words, help="comma-separated")
    parser.add_argument("--factors", type=_numbers, help="deadlines as multiples of the uncontrolled time")
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--baselines", type=int, help="uncontrolled runs of each application before the race")
    parser.add_argument("--scale", type=float, help="size of the applications")
    parser.add_argument("--resume", action="store_true", help="go on with the results that are there")
    parser.add_argument("--report", action="store_true", help="only show the results that are there, and publish them")
    parser.add_argument("--allocator", default="auto", help="which CPU-share adapter")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--docs",
        type=Path,
        default=DOCS,
        help="folder of the page and, in img, the pictures; a quick session publishes there only if this is given",
    )
    home = Path(tempfile.gettempdir()) / f"mlscale-bench-deadline-{os.getuid()}"
    parser.add_argument(
        "--home", type=Path, default=home, help="folder of the cluster's files, of logs and of each run's steps"
    )
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in _words(text))


if __name__ == "__main__":
    sys.exit(main())
