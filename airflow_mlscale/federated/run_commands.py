"""``mlscale federated runs | show | set | stop``: runs, for people."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlscale import errors
from airflow_mlscale.federated import limits, narration

if TYPE_CHECKING:
    from airflow_mlscale.federated.client import RunClient

CONNECTION = "AIRFLOW_CONN_MLSCALE_FEDERATED"
"""Environment variable with the connection, as Airflow reads it too."""
NONE = "none"


def add_commands(actions: Any) -> None:
    """Add the four to the actions of ``mlscale federated``."""
    runs = actions.add_parser("runs", help="all runs of the store")
    runs.set_defaults(run=_runs)

    show = actions.add_parser("show", help="rounds, sites and the forecast of a run")
    show.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw quality and cohort per round (.png, .svg, .pdf)"
    )
    show.set_defaults(run=_show)

    change = actions.add_parser("set", help="change limits or target of a run that is under way")
    change.add_argument(
        "--deadline", help="seconds or an ISO 8601 duration from now, a date and time with zone, or 'none'"
    )
    change.add_argument("--max-rounds", type=_whole, metavar="N", help="most complete rounds")
    change.add_argument("--target", type=float, metavar="VALUE", help="value of the target's metric")
    change.add_argument("--node-seconds", type=_number, metavar="S", help="budget of site seconds, or 'none'")
    change.add_argument("--gigabytes", type=_number, metavar="GB", help="budget of gigabytes moved, or 'none'")
    change.set_defaults(run=_set)

    stop = actions.add_parser("stop", help="end a run with the best model that it has")
    stop.add_argument("--abort", action="store_true", help="leave no model")
    stop.add_argument("--why", default="asked to", help="for the run's record")
    stop.set_defaults(run=_stop)

    for action in (show, change, stop):
        action.add_argument("run_id", metavar="RUN", help="id of the run, as 'mlscale federated runs' tells it")
    for action in (runs, show, change, stop):
        action.add_argument(
            "--run-store", type=Path, help=f"directory of runs instead of that of ${CONNECTION} or the local federation"
        )
        action.add_argument("--home", type=Path, help="state directory instead of $MLSCALE_HOME or ~/.mlscale")


def _runs(options: argparse.Namespace) -> int:
    known = _client(options).known()
    if not known:
        print("no runs")
        return 0
    width = max(3, *(len(run.run_id) for run, _ in known))
    print(f"{'run':<{width}}  {'status':<11}  {'rounds':>9}  {'value / target':<34}  {'deadline':<25}  budget")
    for run, state in known:
        status = str(state.status) if state else "submitted"
        rounds = f"{len(state.rounds) if state else 0}/{run.max_rounds}"
        value = "none" if state is None or state.best_value is None else f"{state.best_value:.4f}"
        budget = ", ".join(
            f"{amount:g} {name.replace('_', ' ')}"
            for name, amount in run.budget.to_json().items()
            if amount is not None
        )
        quality = f"{run.target.metric} {value} / {run.target.value:g}"
        deadline = narration.moment(run.deadline_at)
        print(f"{run.run_id:<{width}}  {status:<11}  {rounds:>9}  {quality:<34}  {deadline:<25}  {budget or 'none'}")
    return 0


def _show(options: argparse.Namespace) -> int:
    client = _client(options)
    directory = client.directory(options.run_id)
    run, state = directory.settings(), directory.state()
    if run is None:
        client.result(options.run_id)  # says that there is none
        return 2
    if options.picture and state is not None:
        from airflow_mlscale.federated.adapters import picture

        print(f"picture     {picture.draw(run, state, options.picture)}")
        return 0
    print(f"run         {run.run_id}{' (simulated)' if state and state.simulated else ''}")
    print(
        f"status      {state.status if state else 'submitted'}{f': {state.reason}' if state and state.reason else ''}"
    )
    print(f"target      {run.target}")
    held = {**limits.values(run), "deadline_at": narration.moment(run.deadline_at)}
    print(f"limits      {', '.join(f'{name} {value}' for name, value in held.items() if name != 'target')}")
    for record in directory.records():
        if not narration.is_round(record):
            print(f"changed     {narration.moment(record.at)} {record.reason}")
    if state is None:
        return 0
    if not state.status.ended:
        print(f"forecast    {narration.forecast(state.forecast, run)}")
    cost = f"{state.node_seconds:.1f} site s, {state.gigabytes:.4g} GB"
    print(f"cost        {cost}, {state.updated_at - state.started_at:.1f} s, {state.segment} segments")
    for lines in (narration.rounds_table(state), narration.table(state.sites, state)):
        print("", *lines, sep="\n")
    return 0


def _set(options: argparse.Namespace) -> int:
    given = {name: getattr(options, name) for name in limits.ASKED}
    values: dict[str, Any] = {
        name: None if value == NONE else value for name, value in given.items() if value is not None
    }
    if not values:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in limits.ASKED)
        raise errors.InvalidInputError("limits", None, f"name what to change: {told}")
    run = _client(options).change(options.run_id, **values)
    held = {**limits.values(run), "deadline_at": narration.moment(run.deadline_at)}
    print(f"run {run.run_id} now has {', '.join(f'{name} {value}' for name, value in held.items())}")
    return 0


def _stop(options: argparse.Namespace) -> int:
    client = _client(options)
    if options.abort:
        client.result(options.run_id)  # says if there is none
        client.stop(options.run_id)
        print(f"run {options.run_id} is told to stop without a model")
        return 0
    from airflow_mlscale.federated.client import who

    asked = client.end(options.run_id, by=who(), why=options.why)
    print(f"run {options.run_id} {'is asked to end with its best model' if asked else 'has ended already'}")
    return 0


def _client(options: argparse.Namespace) -> RunClient:
    """The runs of the store that is meant.

    Raises:
        InvalidInputError: none is named, and no federation is known here.
    """
    from airflow_mlscale.federated import connection
    from airflow_mlscale.federated.adapters import local_federation

    if options.home:
        os.environ["MLSCALE_HOME"] = str(options.home.expanduser().resolve())
    extra: dict[str, Any] = {}
    if told := os.environ.get(CONNECTION):
        extra = _extra(told)
    elif federation := local_federation.running():
        extra = _extra(federation.connection)
    elif (left := local_federation.directory() / "runs").is_dir():  # the federation is down, its runs are there
        extra = {"run_store": str(left)}
    if options.run_store:
        extra["run_store"] = str(options.run_store.expanduser())
    if not extra.get("run_store"):
        fix = f"name a directory of runs with --run-store, or set ${CONNECTION}"
        raise errors.InvalidInputError("run_store", None, fix)
    if not extra.get("admin_kit") and not connection.simulated(extra):
        return connection.stored(Path(extra["run_store"]))
    return connection.runs(extra, CONNECTION)


def _extra(text: str) -> dict[str, Any]:
    try:
        extra = json.loads(text)["extra"]
        return dict(json.loads(extra) if isinstance(extra, str) else extra)
    except (ValueError, KeyError, TypeError):
        return {}  # a URI, which Airflow alone can read


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number; every run has such a limit") from None


def _number(text: str) -> float | str:
    try:
        return NONE if text == NONE else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, and not {NONE!r}") from None
