"""``python -m benchmarks.serving``: models under objectives on real TensorFlow against rivals; table, JSON, picture."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from dataclasses import fields, replace
from pathlib import Path

from rich.console import Console

from airflow_mlscale import errors
from benchmarks.deadline import machine
from benchmarks.deadline.report import between_marks
from benchmarks.serving import pictures, report, results, session

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "serving.json"
DOCS = ROOT / "docs"


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments ask for; 0 if every run ended well, 1 if one failed, 2 for bad input."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        scope = _scope(options)
        found = _open(options)
        if not options.report:
            _measure(options, scope, found, console)
        for condition in report.conditions(results.finished(found.rows)):
            console.print(report.table(found.rows, condition))
        for target in report.targets(found.rows):
            console.print(str(target), markup=False, highlight=False, soft_wrap=True)
        if results.finished(found.rows):
            _publish(options, found, console)
    except errors.InvalidInputError as exc:
        console.print(str(exc), style="red", markup=False)
        return 2
    except errors.TransientError as exc:
        console.print(str(exc), style="red", markup=False)
        return 1
    return int(any(row["error"] for row in found.rows))


def _measure(options: argparse.Namespace, scope: session.Scope, found: results.Results, console: Console) -> None:
    options.home.mkdir(parents=True, exist_ok=True)
    os.environ["MLSCALE_HOME"] = str(options.home)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended
    running = session.Session(scope, found, home=options.home)
    for line in running.prepare():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    found.machine, found.versions = machine.info(), results.versions()
    found.scope = session.joined(found.scope, running.described())
    left = running.left()
    console.print(f"{len(left)} runs to go, about {running.left_s() / 60:.0f} minutes", highlight=False)
    for line in running.go():
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _publish(options: argparse.Namespace, found: results.Results, console: Console) -> None:
    """The table beside the rows; of a full session, or if asked to, also the page and the picture."""
    text = report.markdown(found)
    table = options.results.with_suffix(".md")
    table.write_text(text)
    written = [table]
    if options.full or options.report or options.docs != DOCS:
        written.append(pictures.race(found.rows, options.docs / "img" / "serving.png"))
        if found.journal.exists():
            written.append(pictures.run(found.journal, options.docs / "img" / "serving-run.png"))
        page = options.docs / "benchmarks.md"
        if page.exists():
            page.write_text(between_marks(page.read_text(), text, (report.BEGIN, report.END)))
            written.append(page)
    for path in written:
        console.print(f"written: {path}", highlight=False)


def _open(options: argparse.Namespace) -> results.Results:
    """The results to go on with; those of an earlier session are kept aside unless it is resumed."""
    path: Path = options.results
    if options.resume or options.report:
        found = results.Results.load(path)
        if options.resume and found.versions.get("law") not in (None, results.law()):
            fix = f"its rows are of law {found.versions.get('law')}, this is {results.law()}; begin anew"
            raise errors.InvalidInputError("resume", str(path), fix)
        return found
    if path.exists():
        path.replace(path.with_suffix(".previous.json"))
    return results.Results(path=path)


def _scope(options: argparse.Namespace) -> session.Scope:
    """What the options ask for, on top of ``--quick`` (default), ``--smoke`` or ``--full``."""
    base = session.FULL if options.full else session.SMOKE if options.smoke else session.QUICK
    given = {field.name: getattr(options, field.name) for field in fields(session.Scope)}
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="two models, two systems, seconds: whether it works at all")
    size.add_argument("--quick", action="store_true", help="one seed, one shape, eight systems: 20 minutes (default)")
    size.add_argument("--full", action="store_true", help="everything, three seeds: hours")
    parser.add_argument("--models", type=_words, help="comma-separated")
    parser.add_argument("--systems", type=_words, help="comma-separated")
    parser.add_argument("--shapes", type=_words, help="comma-separated: steps, diurnal")
    parser.add_argument("--loads", type=_numbers, help="parts of the machine's capacity, comma-separated")
    parser.add_argument("--seeds", type=int, help="how many")
    parser.add_argument("--neighbours", type=_words, help="systems to run beside a noisy neighbour too")
    parser.add_argument("--lead", type=float, help="seconds of load before anything is measured")
    parser.add_argument("--length", type=float, help="seconds that are measured in each run")
    parser.add_argument("--capacity", type=float, help="seconds of each of the measurements before the race")
    parser.add_argument("--resume", action="store_true", help="go on with the results that are there")
    parser.add_argument("--report", action="store_true", help="only show the results that are there, and publish them")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page and, in img, the picture")
    home = Path(tempfile.gettempdir()) / f"mlscale-bench-serving-{os.getuid()}"
    parser.add_argument("--home", type=Path, default=home, help="folder of logs; those of runs that failed stay")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in _words(text))


if __name__ == "__main__":
    sys.exit(main())
