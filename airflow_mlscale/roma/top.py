"""``mlscale roma top``: how the models fare, in a table that is drawn anew every few seconds."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_mlscale import errors
from airflow_mlscale.roma import reach

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from airflow_mlscale.roma.adapters import client

_STYLES = {"on_target": "green", "at_risk": "yellow", "violating": "bold red", "no_data": "dim"}

_FIGURES = ("ms", "of", "req/s", "lost", "waiting", "batch", "cores", "used")
_COLUMNS = ("model", "version", "fares", *_FIGURES, "answered by")
_LEFT_OUT = ("version", "batch", "used", "answered by")

WIDE = 110
"""Columns of a terminal that has room for all of a table."""

Status = Mapping[str, Any]


def add_commands(actions: Any) -> None:
    """Add ``top``."""
    parser = actions.add_parser("top", help="how the models fare, live")
    reach.add_options(parser)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between looks (default %(default)g)")
    parser.add_argument("--window", type=float, default=10.0, help="seconds that are measured (default %(default)g)")
    parser.add_argument("--once", action="store_true", help="print once; so it is where no terminal is")
    parser.set_defaults(run=_top)


def _top(options: argparse.Namespace) -> int:
    from rich.console import Console

    if not 0.1 <= options.every <= 3600:
        raise errors.InvalidInputError("every", options.every, "give 0.1 to 3600 seconds")
    roma = reach.connected(options)
    if roma is None:
        print("ROMA is not running")
        return 3
    console = Console()
    with roma:
        if options.once or not console.is_terminal:
            console.print(_seen(roma, options.window, console.width))
        else:
            _watch(roma, console, options.window, options.every)
    return 0


def _watch(roma: client.RomaClient, console: Console, window_s: float, every_s: float) -> None:
    """Until somebody interrupts; a daemon that is away is waited for, a token that is refused ends it."""
    from rich.live import Live

    with Live(_seen(roma, window_s, console.width), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            try:
                shown = _seen(roma, window_s, console.width)
            except errors.TransientError as exc:
                shown = f"[bold red]no answer[/]: {exc}"
            live.update(shown, refresh=True)


def _seen(roma: client.RomaClient, window_s: float, width: int) -> RenderableType:
    from rich.console import Group

    models, host = roma.models(window_s=window_s), roma.host()
    parts = [table(models, host, roma.address, width=width)]
    if host.get("gpus"):
        parts.append(gpu_table(host["gpus"]))
    return Group(*parts)


def table(models: Sequence[Status], host: Mapping[str, Any], address: str, *, width: int) -> RenderableType:
    """All models, the worst first; what is least missed is left out where a terminal has fewer columns than `WIDE`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"ROMA at {address}: {host['cores']:g} cores, divided by {host['cpu']}"
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    rows = [_row(one) for one in sorted(models, key=_urgency)]
    left_out = () if width >= WIDE else _LEFT_OUT
    headings = [heading for heading in _COLUMNS if heading not in left_out]
    for heading in headings:
        made.add_column(heading, justify="right" if heading in _FIGURES else "left")
    for row in rows:
        # Text, not markup: names and reasons are shown as they are.
        style = _STYLES.get(row["fares"], "yellow")
        made.add_row(
            *(Text(row[name].replace("_", " "), style) if name == "fares" else Text(row[name]) for name in headings)
        )
    return made


def _row(one: Status) -> dict[str, Any]:
    objective, cores = one["objective"], one.get("cores", {})
    return {
        "model": one["name"],
        "version": _version(one),
        "fares": one["verdict"] if one["state"] == "ready" else one["state"],
        "ms": f"p{objective['percentile']:g} {_shown(one['percentile_ms'])}",
        "of": f"{objective['milliseconds']:g}",
        "req/s": _shown(one.get("arrivals_per_s")),
        "lost": str(one["errors"]),
        "waiting": str(one.get("queue", {}).get("requests", "–")),
        "batch": _shown(_mean_batch(one.get("batches", {}))),
        "cores": _shown(cores.get("guaranteed")) + (f"–{cores['ceiling']:g}" if cores.get("ceiling") else ""),
        "used": _shown(cores.get("used")),
        "answered by": answered_by(one.get("answered", {})),
    }


def gpu_table(gpus: Sequence[Status]) -> RenderableType:
    """All GPUs: memory, health, and the models on each with their part of its executions."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("GPU", "device", "state"):
        made.add_column(heading)
    for heading in ("used MiB", "reserved", "of budget", "busy"):
        made.add_column(heading, justify="right")
    made.add_column("models")
    for one in gpus:
        state = f"{one['state']}: {one['fault']}" if one["fault"] else one["state"]
        busy = "–" if one["utilisation"] is None else f"{one['utilisation']:.0%}"
        sizes = (str(one[f"{kind}_bytes"] // 2**20) for kind in ("used", "reserved", "budget"))
        made.add_row(
            Text(f"{one['name']} {one['uuid']}"),
            Text(one["device"]),
            Text(state, style="green" if one["state"] == "ready" else "bold red" if one["fault"] else "yellow"),
            *map(Text, (*sizes, busy, _residents(one))),
        )
    return made


def _residents(gpu: Status) -> str:
    total = sum(gpu["executions"].values())
    return ", ".join(
        f"{name} {gpu['executions'][name] / total:.0%}" if state == "ready" and total else f"{name} {state}"
        for name, state in gpu["models"].items()
    )


def answered_by(counts: Mapping[str, int]) -> str:
    """Which devices answered, by their part of the requests since the start."""
    total = sum(counts.values())
    found = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{device} {count / total:.0%}" for device, count in found if count) or "–"


def _urgency(one: Status) -> tuple[int, str]:
    order = ("violating", "at_risk", "on_target", "no_data")
    return (order.index(one["verdict"]) if one["state"] == "ready" else -1, one["name"])


def _version(one: Status) -> str:
    candidate = one.get("candidate")
    return f"{one['version']} → {candidate['version']}" if candidate else str(one["version"])


def _mean_batch(batches: Mapping[str, int]) -> float | None:
    executions = sum(batches.values())
    return sum(int(size) * count for size, count in batches.items()) / executions if executions else None


def _shown(number: float | None) -> str:
    return "–" if number is None else f"{number:.3g}" if number < 1000 else f"{number:.0f}"
