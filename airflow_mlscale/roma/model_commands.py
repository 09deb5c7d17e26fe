"""``mlscale roma deploy|promote|rollback|undeploy``: the life of a model, from the command line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from airflow_mlscale import errors
from airflow_mlscale.roma import devices, model, reach, runtimes, watch

if TYPE_CHECKING:  # httpx is only needed by those who ask
    from airflow_mlscale.roma.adapters import client

WAIT_S = 600.0


def add_commands(actions: Any) -> None:
    """Add the four commands."""
    deploy = actions.add_parser("deploy", help="serve a model, or another version of it")
    deploy.add_argument("model")
    deploy.add_argument("artefact", help="what to serve: a path on the daemon's host, or a URL")
    deploy.add_argument("--version", help="its name (default: one more than the last)")
    deploy.add_argument("--objective-ms", type=float, help="latency to keep, in milliseconds; a first version needs it")
    deploy.add_argument("--percentile", type=float, help="of the requests for which it must hold (default 95)")
    deploy.add_argument("--min-cores", type=float, help="guarantee that is never taken away")
    _add_limit(deploy, "--max-cores", "most cores the guarantee may grow to")
    deploy.add_argument("--priority", type=int, help="under contention a higher one is served first")
    deploy.add_argument("--max-batch", type=int, help="most requests joined into one execution")
    deploy.add_argument("--device", choices=get_args(devices.Preference), help="what executes it (default: auto)")
    _add_limit(deploy, "--gpu-memory-mb", "memory to reserve on a GPU; else it is measured")
    _add_limit(deploy, "--max-memory-mb", "of its worker, before a fresh one takes its place")
    deploy.add_argument("--canary", type=float, metavar="FRACTION", help="try it on this part of the requests first")
    deploy.add_argument("--runtime", choices=get_args(runtimes.Name), help="what computes it (default: native)")
    deploy.add_argument("--checksum", metavar="SHA256", help="refuse other files")
    deploy.add_argument("--no-wait", action="store_true", help="return before it is loaded and warm")
    deploy.set_defaults(run=_deploy)
    promote = actions.add_parser("promote", help="let the version that is tried serve everything")
    promote.set_defaults(run=_promote)
    rollback = actions.add_parser("rollback", help="leave the version that is tried, or go back to the one before")
    rollback.add_argument("--reason", default="rolled back by hand", help="for the journal and the status")
    rollback.set_defaults(run=_roll_back)
    undeploy = actions.add_parser("undeploy", help="stop serving a model and forget it")
    undeploy.set_defaults(run=_undeploy)
    for parser in (promote, rollback):
        parser.add_argument("--version", help="nothing happens if another one is meant (default: the latest)")
    for parser in (promote, rollback, undeploy):
        parser.add_argument("model")
    for parser in (deploy, promote, rollback, undeploy):
        reach.add_options(parser)


def _add_limit(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    """One of `model.LIFTABLE`: absent from the options if it is not given."""
    parser.add_argument(name, type=_limit, default=argparse.SUPPRESS, metavar="NUMBER|none", help=text)


def _limit(text: str) -> float | None:
    return None if text == "none" else float(text)


def _objective(options: argparse.Namespace) -> model.Objective | None:
    if options.objective_ms is None:
        if options.percentile is not None:
            raise errors.InvalidInputError("percentile", options.percentile, "give --objective-ms too")
        return None
    percentile = 95.0 if options.percentile is None else options.percentile
    return model.Objective(milliseconds=options.objective_ms, percentile=percentile)


def _deploy(options: argparse.Namespace) -> int:
    limits: dict[str, float | None] = {key: getattr(options, key) for key in model.LIFTABLE if hasattr(options, key)}
    artefact = options.artefact
    if "://" not in artefact and Path(artefact).exists():  # the daemon has a directory of its own
        artefact = str(Path(artefact).resolve())
    order = model.DeployOrder(
        name=model.check_name("model", options.model),
        artefact=artefact,
        version=options.version,
        objective=_objective(options),
        min_cores=options.min_cores,
        priority=options.priority,
        max_batch=options.max_batch,
        device=options.device,
        **limits,
        lifted=frozenset(key for key, value in limits.items() if value is None),
        canary=None if options.canary is None else model.Canary(fraction=options.canary),
        runtime=None if options.runtime is None else runtimes.Runtime(name=options.runtime),
        checksum=options.checksum,
    )
    with _connected(options) as roma:
        status = roma.deploy(order)
        version = watch.pending_version(status)
        if options.no_wait:
            print(f"version {version} of {order.name} is under way")
            return 0
        look = watch.deployed(roma.status(order.name, settled_within_s=WAIT_S), version)
        print(look.told)
        return 0 if look.done else 1


def _promote(options: argparse.Namespace) -> int:
    with _connected(options) as roma:
        _print(roma.promote(options.model, version=options.version))
    return 0


def _roll_back(options: argparse.Namespace) -> int:
    with _connected(options) as roma:
        roma.roll_back(options.model, version=options.version, reason=options.reason)
        _print(roma.status(options.model, settled_within_s=WAIT_S))
    return 0


def _undeploy(options: argparse.Namespace) -> int:
    with _connected(options) as roma:
        roma.remove(options.model)
    print(f"{options.model} is not served any more")
    return 0


def _print(status: dict[str, Any]) -> None:
    told = ("name", "version", "state", "candidate", "previous", "failure")
    print(json.dumps({key: status[key] for key in told if status[key] is not None}))


def _connected(options: argparse.Namespace) -> client.RomaClient:
    """The daemon that the options name.

    Raises:
        UnreachableError: no service runs on this machine, and no other was named.
    """
    roma = reach.connected(options)
    if roma is None:
        raise errors.UnreachableError("ROMA", "this machine", "start it with `mlscale roma up`, or give --url")
    return roma
