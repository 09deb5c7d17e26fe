"""``mlscale spark profile``: what was learned about applications, for people."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from airflow_mlscale import errors
from airflow_mlscale.spark.adapters.profile_store import ProfileFiles
from airflow_mlscale.spark.model import Plan, Profile, StageProfile


def add_commands(actions: Any) -> None:
    """Add ``profile list | show | diff | forget``."""
    profile = actions.add_parser("profile", help="what was learned about applications")
    verbs = profile.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add(verbs, "list", _list, "all profiles")
    show = _add(verbs, "show", _show, "what an application costs, stage by stage")
    diff = _add(verbs, "diff", _diff, "two courses of an application, or two applications")
    forget = _add(verbs, "forget", _forget, "learn an application anew")
    for verb in (show, diff, forget):
        verb.add_argument("key", metavar="KEY", help="profile_key of the task, or the application's name")
    diff.add_argument("other", metavar="OTHER", nargs="?", help="another profile (default: the same one)")
    diff.add_argument("--plans", nargs=2, type=int, metavar=("I", "J"), help="which courses, counted from 1")
    forget.add_argument("--yes", action="store_true", help="do not ask")


def _add(verbs: Any, name: str, run: Any, what: str) -> Any:
    verb = verbs.add_parser(name, help=what)
    verb.add_argument("--store", help="folder or fsspec address of the profiles (default: $MLSCALE_HOME/profiles)")
    verb.set_defaults(run=run)
    return verb


def _list(options: argparse.Namespace) -> int:
    store = ProfileFiles(options.store)
    table = _table("application", "courses", "runs", "core-s", "driver gaps s", first=1)
    entries = store.entries()
    for entry in entries:
        if entry.profile is None:
            table.add_row(entry.path.rpartition("/")[2], f"cannot be read: {entry.problem}")
            continue
        plans = entry.profile.plans
        runs = sum(plan.runs for plan in plans)
        heaviest = max(plans, key=lambda plan: plan.core_s, default=Plan(stages=()))
        table.add_row(entry.profile.key, str(len(plans)), str(runs), f"{heaviest.core_s:.1f}", f"{heaviest.gaps_s:.1f}")
    if not entries:
        print(f"no profile in {store.folder} yet; the first successful run of a task leaves one")
        return 0
    _console().print(table)
    return 0


def _show(options: argparse.Namespace) -> int:
    profile = ProfileFiles(options.store).read(options.key)
    console = _console()
    for number, plan in enumerate(profile.plans, start=1):
        console.print(f"{profile.key}, course {number} of {len(profile.plans)}: {_told(plan)}")
        console.print(_stages(plan))
    return 0


def _diff(options: argparse.Namespace) -> int:
    store = ProfileFiles(options.store)
    one = store.read(options.key)
    other = store.read(options.other) if options.other else one
    first, second = options.plans or ((1, 1) if options.other else (1, 2))
    _console().print(_difference(_plan(one, first), _plan(other, second), (_name(one, first), _name(other, second))))
    return 0


def _forget(options: argparse.Namespace) -> int:
    store = ProfileFiles(options.store)
    if not options.yes:
        if not sys.stdin.isatty():
            raise errors.InvalidInputError("--yes", False, f"nobody can be asked here; add it to forget {options.key}")
        if input(f"forget what was learned about {options.key}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("kept")
            return 0
    if not store.forget(options.key):
        store.read(options.key)  # says what there is instead
    print(f"forgot {options.key}: its next run is a first one")
    return 0


def _told(plan: Plan) -> str:
    parts = [
        plan.signature,
        f"{plan.runs} run{'s' if plan.runs != 1 else ''}",
        f"{plan.core_s:.1f} core-s"
        + (f" ± {100 * plan.spread:.0f} %" if plan.spread is not None else "")
        + f" ({plan.startup_core_s:.1f} before the first stage)",
        f"driver gaps {plan.gaps_s:.1f} s ({plan.lead_s:.1f} first, {plan.tail_s:.1f} last)",
        f"{_bytes(plan.input_bytes)} read",
    ]
    return ", ".join(parts)


def _stages(plan: Plan) -> Table:
    table = _table("stage", "kind", "tasks", "core-s", "longest", "gap s", "read", "grows with", "waits for", first=2)
    number = {stage.key: str(place) for place, stage in enumerate(plan.stages, start=1)}
    for stage in plan.stages:
        table.add_row(
            f"{number[stage.key]}. {stage.key}",
            stage.kind or "-",
            str(stage.tasks),
            f"{stage.core_s:.1f}",
            f"{stage.longest_core_s:.1f}" if stage.longest_core_s else "-",
            f"{stage.gap_s:.1f}",
            _bytes(stage.input_bytes),
            f"size^{stage.elasticity:.2g}",
            ", ".join(number.get(key, "?") for key in stage.after) or "-",
        )
    return table


def _difference(one: Plan, other: Plan, names: tuple[str, str]) -> Table:
    table = _table("stage", *names, "change", first=1)
    before, after = ({stage.key: stage for stage in plan.stages} for plan in (one, other))
    for key in dict.fromkeys([*before, *after]):
        table.add_row(key, *_change(_work(before.get(key)), _work(after.get(key))))
    table.add_section()
    table.add_row("before the first stage", *_change(one.startup_core_s, other.startup_core_s))
    table.add_row("all core-s", *_change(one.core_s, other.core_s))
    table.add_row("driver gaps, s", *_change(one.gaps_s, other.gaps_s))
    return table


def _work(stage: StageProfile | None) -> float | None:
    return stage.core_s if stage else None


def _change(before: float | None, after: float | None) -> tuple[str, str, str]:
    told = tuple("-" if value is None else f"{value:.1f}" for value in (before, after))
    if before is None or after is None:
        return told[0], told[1], "only here" if before is not None else "only there"
    return told[0], told[1], f"{100 * (after - before) / before:+.0f} %" if before else "-"


def _plan(profile: Profile, number: int) -> Plan:
    if not 1 <= number <= len(profile.plans):
        known = f"{profile.key} has {len(profile.plans)} course{'s' if len(profile.plans) != 1 else ''}"
        raise errors.InvalidInputError("--plans", number, f"{known}; name two of them, or another profile to compare")
    return profile.plans[number - 1]


def _name(profile: Profile, number: int) -> str:
    return f"{profile.key} {number}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _table(*columns: str, first: int) -> Table:
    """A table whose first columns are words and the others numbers."""
    table = Table()
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place < first else "right", overflow="fold")
    return table


def _console() -> Console:
    """As wide as the terminal; wide enough for a stage's name where there is none."""
    # Names of stages may look like markup.
    return Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False)
