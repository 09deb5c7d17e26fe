"""``python -m benchmarks.serving.overhead``: what the gateway adds to TensorFlow, and throughput beside other servers.

Both with the small model, one row a request. Latency: one client, blocks of ROMA and of TensorFlow in a process
without a server in turn. Throughput: every server alone on the machine with the source of load, in an order shuffled
each round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from airflow_mlscale import errors
from benchmarks import resumable
from benchmarks.deadline import machine
from benchmarks.deadline.report import Target, between_marks
from benchmarks.serving import meter, models, peers, pictures, results, setup, trial
from benchmarks.serving.report import mean

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "overhead.json"
DOCS = ROOT / "docs"
BEGIN, END = "<!-- overhead: begin -->", "<!-- overhead: end -->"
MOST_MS = 1.0
TIMES = 2.0
SETTLE_S = 1.0
"""Before answers count."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """How much is measured."""

    rounds: int
    """Starts of each server."""
    seconds: float
    """Of each number of clients in a round."""
    clients: Sequence[int]
    blocks: int
    """Of each kind in turn, for the latency."""
    block: int
    """Executions in process in each."""
    peers: Sequence[str]


QUICK = Scope(rounds=2, seconds=6.0, clients=(1, 16, 64), blocks=6, block=1000, peers=tuple(peers.PEERS))
FULL = Scope(rounds=5, seconds=10.0, clients=(1, 16, 64), blocks=12, block=2000, peers=tuple(peers.PEERS))
SMOKE = Scope(rounds=1, seconds=1.0, clients=(1, 16), blocks=2, block=200, peers=("ours",))


def main(arguments: list[str] | None = None) -> int:
    """Measure what the arguments ask for; 0 if all servers ran, 1 if one failed, 2 for bad input."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    scope = FULL if options.full else SMOKE if options.smoke else QUICK
    try:
        if options.report:
            found = _read(options.results)
        else:
            found = _measure(scope, options.home, console)
            options.results.parent.mkdir(parents=True, exist_ok=True)
            if options.results.exists():
                options.results.replace(options.results.with_suffix(".previous.json"))
            options.results.write_text(json.dumps(found, indent=1) + "\n")
    except errors.InvalidInputError as exc:
        console.print(str(exc), style="red", markup=False)
        return 2
    except errors.TransientError as exc:
        console.print(str(exc), style="red", markup=False)
        return 1
    _show(found, console)
    _publish(options, found, console)
    return int(bool(found["failed"]))


def _measure(scope: Scope, home: Path, console: Console) -> dict[str, Any]:
    home.mkdir(parents=True, exist_ok=True)
    os.environ["MLSCALE_HOME"] = str(home)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended
    setup.models([peers.SMALL.name])
    found: dict[str, Any] = {
        "started": resumable.now(),
        "machine": machine.info(),
        "failed": {},
        "latency": _latency(scope, home / "latency"),
        "rows": [],
    }
    console.print(_latency_line(found["latency"]), highlight=False)
    for name in scope.peers:
        if name in peers.NEEDS:
            try:
                setup.rival(peers.NEEDS[name])
            except errors.TransientError as exc:
                found["failed"][name] = str(exc)
    found["versions"] = results.versions()
    for row in _rounds([name for name in scope.peers if name not in found["failed"]], scope, home, found["failed"]):
        found["rows"].append(row)
        console.print(
            f"{row['system']}, {row['clients']} clients: {row['requests_per_s']:.0f}/s, p50 {row['p50_ms']:.2f} ms",
            highlight=False,
        )
    return found


def _latency(scope: Scope, folder: Path) -> dict[str, Any]:
    """Median latencies by way, in milliseconds, over all blocks."""
    shutil.rmtree(folder, ignore_errors=True)
    seconds: dict[str, list[float]] = {"in_process": [], "json": [], "binary": []}
    with peers.InProcess(folder) as bare, peers.ours(folder) as roma:
        bare.run(scope.block)
        targets = {"json": roma.target, "binary": _binary(roma, folder)}
        for _ in range(scope.blocks):
            seconds["in_process"] += bare.run(scope.block)
            for name, target in targets.items():
                report = trial.closed(roma.port, [target], folder, clients=1, seconds=SETTLE_S + scope.seconds / 3)
                seconds[name] += trial.answered(report, after_s=SETTLE_S, before_s=SETTLE_S + scope.seconds / 3)
    if not all(seconds.values()):
        raise errors.TransientError("no request was answered while the latency was measured")
    shutil.rmtree(folder)
    return {
        "samples": {name: len(each) for name, each in seconds.items()},
        **{f"{name}_p50_ms": round(1000 * statistics.median(each), 4) for name, each in seconds.items()},
    }


def _binary(roma: peers.Answering, folder: Path) -> dict[str, Any]:
    path = f"/v2/models/{peers.SMALL.name}"
    metadata = httpx.get(f"http://127.0.0.1:{roma.port}{path}", trust_env=False).json()
    body, headers = models.v2_binary(peers.SMALL, metadata["inputs"][0]["name"])
    file = folder / "small.bin"
    file.write_bytes(body)
    return {"name": peers.SMALL.name, "path": f"{path}/infer", "headers": headers, "body": str(file)}


def _rounds(names: Sequence[str], scope: Scope, home: Path, failed: dict[str, str]) -> Iterator[dict[str, Any]]:
    for number in range(1, scope.rounds + 1):
        for name in random.Random(number).sample(names, len(names)):
            folder = home / f"round-{number}-{name}"
            shutil.rmtree(folder, ignore_errors=True)
            try:
                with peers.PEERS[name](folder) as server:
                    for clients in scope.clients:
                        yield {"system": name, "round": number, **_throughput(server, folder, clients, scope.seconds)}
            except (errors.MlscaleError, httpx.HTTPError) as exc:  # one server that fails must not end the session
                failed[name] = str(exc)
            else:
                shutil.rmtree(folder)


def _throughput(server: peers.Answering, folder: Path, clients: int, seconds: float) -> dict[str, Any]:
    end_s = SETTLE_S + seconds
    before = meter.spent(server.root)
    report = trial.closed(server.port, [server.target], folder, clients=clients, seconds=end_s)
    used_s = meter.spent(server.root).system_s - before.system_s
    good = sorted(trial.answered(report, after_s=SETTLE_S, before_s=end_s))
    if not good:
        raise errors.TransientError(f"no good answer of {len(report['status'])}")
    return {
        "clients": clients,
        "requests_per_s": round(len(good) / seconds, 2),
        "p50_ms": round(1000 * statistics.median(good), 3),
        "p99_ms": round(1000 * good[int(0.99 * (len(good) - 1))], 3),
        "bad": sum(status != 200 for status in report["status"]),
        "cpu_ms_per_request": round(1000 * used_s / max(1, report["status"].count(200)), 4),
        "load_cores": round(report["cpu_s"] / report["wall_s"], 3),
    }


def targets(found: dict[str, Any]) -> list[Target]:
    """What is asked for, and whether it was reached."""
    latency = found["latency"]
    made = []
    for name in ("json", "binary"):
        added = latency[f"{name}_p50_ms"] - latency["in_process_p50_ms"]
        says = f"p50 of gateway and dispatch at most {MOST_MS:g} ms over TensorFlow in process, {name}"
        made.append(Target(says, added <= MOST_MS, f"{added:.3f} ms"))
    return [*made, *(_faster(found, name) for name in peers.PEERS if name != "ours")]


def _faster(found: dict[str, Any], peer: str) -> Target:
    """At the number of clients with which each is at its best."""
    says = f"throughput on the small model at least {TIMES:g} × {peer}'s"
    if peer in found["failed"] and not _rows(found, peer):
        return Target(says, None, " it did not run: " + found["failed"][peer].splitlines()[0])
    mine, theirs = _best(found, "ours"), _best(found, peer)
    if not (mine and theirs):
        return Target(says, None, "")
    ratio = mine[0] / theirs[0]
    told = f"{ratio:.2f} × ({mine[0]:.0f}/s with {mine[1]} clients against {theirs[0]:.0f}/s with {theirs[1]})"
    return Target(says, ratio >= TIMES, told)


def _best(found: dict[str, Any], name: str) -> tuple[float, int] | None:
    rows = _rows(found, name)
    counts = {row["clients"] for row in rows}
    return max(((_mean(rows, count), count) for count in counts), default=None)


def _mean(rows: Sequence[dict[str, Any]], clients: int, name: str = "requests_per_s") -> float:
    return mean([row for row in rows if row["clients"] == clients], name)


def _rows(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if row["system"] == name]


HEADS = ("server", "clients", "requests/s", "p50 ms", "p99 ms", "CPU ms/request", "cores of the source")


def lines(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Lines of the table: means over the rounds."""
    made = []
    for name in peers.PEERS:
        rows = _rows(found, name)
        for count in sorted({row["clients"] for row in rows}):
            shown = [_mean(rows, count, each) for each in ("requests_per_s", "p50_ms", "p99_ms", "cpu_ms_per_request")]
            source = f"{_mean(rows, count, 'load_cores'):.2f}"
            made.append((name, str(count), f"{shown[0]:.0f}", *(f"{each:.2f}" for each in shown[1:]), source))
    return made


def _latency_line(latency: dict[str, Any]) -> str:
    return (
        f"p50 of one row: {latency['in_process_p50_ms']:.3f} ms in process, {latency['json_p50_ms']:.3f} ms through "
        f"ROMA in JSON, {latency['binary_p50_ms']:.3f} ms in binary"
    )


def _show(found: dict[str, Any], console: Console) -> None:
    drawn = Table(title="Throughput on the small model")
    for head in HEADS:
        drawn.add_column(head, justify="left" if head == HEADS[0] else "right")
    for line in lines(found):
        drawn.add_row(*line)
    console.print(drawn)
    for target in targets(found):
        console.print(str(target), markup=False, highlight=False, soft_wrap=True)


def markdown(found: dict[str, Any]) -> str:
    """The page that goes with the picture."""
    about = ", ".join(f"{name} {value}" for name, value in {**found["machine"], **found["versions"]}.items())
    every = (HEADS, ("---",) * len(HEADS), *lines(found))
    parts = [
        f"Measured {found['started']}; {about}. {_latency_line(found['latency'])}.",
        "\n".join(f"| {' | '.join(line)} |" for line in every),
        *(f"{name} did not run: {why.splitlines()[0]}" for name, why in found["failed"].items()),
        "\n".join(f"- {target}" for target in targets(found)),
    ]
    return "\n\n".join(parts) + "\n"


def _publish(options: argparse.Namespace, found: dict[str, Any], console: Console) -> None:
    text = markdown(found)
    written = [options.results.with_suffix(".md")]
    written[0].write_text(text)
    if options.full or options.report or options.docs != DOCS:
        written.append(pictures.overhead(found["rows"], options.docs / "img" / "overhead.png"))
        page = options.docs / "benchmarks.md"
        if page.exists():
            page.write_text(between_marks(page.read_text(), text, (BEGIN, END)))
            written.append(page)
    for path in written:
        console.print(f"written: {path}", highlight=False)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise errors.InvalidInputError("results", str(path), f"not a file of results ({exc})") from exc
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.overhead", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="ROMA alone, seconds: whether it works at all")
    size.add_argument("--quick", action="store_true", help="two rounds: eight minutes (default)")
    size.add_argument("--full", action="store_true", help="five rounds: half an hour")
    parser.add_argument("--report", action="store_true", help="only show the results that are there, and publish them")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page and, in img, the picture")
    home = Path(tempfile.gettempdir()) / f"mlscale-bench-overhead-{os.getuid()}"
    parser.add_argument("--home", type=Path, default=home, help="folder of logs; those of servers that failed stay")
    return parser


if __name__ == "__main__":
    sys.exit(main())
