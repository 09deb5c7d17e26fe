"""``mlscale roma token``: make, list and revoke the tokens of a file. The daemon reads it again by itself."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from airflow_mlscale.roma import authority
from airflow_mlscale.runtime import processes

DAY_S = 86_400.0


def add_commands(actions: Any) -> None:
    """Add ``token add|list|remove``."""
    parser = actions.add_parser("token", help="make, list and revoke tokens")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    add = verbs.add_parser("add", help="make a token and print it, once")
    add.add_argument("name", help="whose it is; appears in the access log")
    add.add_argument(
        "--scope",
        choices=authority.SCOPES,
        action="append",
        required=True,
        help="what it may do; may be given several times",
    )
    add.add_argument("--rate", type=float, help="requests a second (default: the daemon's limit)")
    add.add_argument("--days", type=float, help="after which it expires (default: never)")
    add.set_defaults(run=_add)
    listed = verbs.add_parser("list", help="names, scopes and limits; tokens themselves are not kept")
    listed.set_defaults(run=_list)
    remove = verbs.add_parser("remove", help="revoke a token")
    remove.add_argument("name")
    remove.set_defaults(run=_remove)
    for verb in (add, listed, remove):
        verb.add_argument("--tokens-file", type=Path, help="default $MLSCALE_HOME/roma/tokens.json")


def _add(options: argparse.Namespace) -> int:
    from airflow_mlscale.roma.adapters import tokens

    expires = None if options.days is None else time.time() + DAY_S * options.days
    path = _path(options)
    token = tokens.add(path, options.name, frozenset(options.scope), rate_per_s=options.rate, expires=expires)
    print(token)
    return 0


def _list(options: argparse.Namespace) -> int:
    from airflow_mlscale.roma.adapters import tokens

    path = _path(options)
    for grant in tokens.load(path) if path.exists() else ():
        rate = "" if grant.rate_per_s is None else f"  {grant.rate_per_s:g}/s"
        print(f"{grant.name}  {','.join(sorted(grant.scopes))}{rate}{_expiry(grant)}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from airflow_mlscale.roma.adapters import tokens

    tokens.remove(_path(options), options.name)
    print(f"removed {options.name}")
    return 0


def _expiry(grant: authority.Grant) -> str:
    if grant.expires is None:
        return ""
    day = time.strftime("%Y-%m-%d", time.gmtime(grant.expires))
    return f"  until {day}" if grant.valid(time.time()) else f"  expired {day}"


def _path(options: argparse.Namespace) -> Path:
    path: Path = options.tokens_file or processes.home() / "roma" / "tokens.json"
    return path
