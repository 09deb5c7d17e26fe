"""``mlscale federated provision | server | site``: a federation across machines."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_mlscale import errors
from airflow_mlscale.federated import labels

if TYPE_CHECKING:
    from airflow_mlscale.federated.adapters.start_up_kit import Kit


def add_commands(actions: Any) -> None:
    """Add the three to the actions of ``mlscale federated``."""
    provision = actions.add_parser("provision", help="certificates and start-up kits for a federation across machines")
    provision.add_argument("sites", type=Path, metavar="sites.yaml", help="who takes part; see docs/federated.md")
    provision.add_argument("--out", type=Path, default=Path("federation"), help="directory for all of it (federation)")
    provision.add_argument(
        "--renew", action="append", default=[], metavar="NAME", help="new certificate for this one; may be repeated"
    )
    provision.set_defaults(run=_provision)

    site = actions.add_parser("site", help="join a federation as a site, in the foreground")
    site.add_argument(
        "--label", action="append", default=[], metavar="KEY=VALUE", help="of this site, beside those of its kit"
    )
    site.add_argument(
        "--data-args",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="this site's own argument of the client data function, JSON or text; may be repeated",
    )
    site.add_argument("--threads", type=int, default=1, help="TensorFlow threads of each trainer (default 1)")
    site.set_defaults(run=_site)

    server = actions.add_parser("server", help="be the server of a federation, in the foreground")
    server.add_argument("--bind", help="address to listen on instead of the one of sites.yaml")
    server.set_defaults(run=_server)

    for action in (site, server):
        action.add_argument("--kit", type=Path, required=True, help="start-up kit: its directory or its .zip archive")
        action.add_argument("--check", action="store_true", help="only look whether the kit can be used")
        action.add_argument("--systemd", action="store_true", help="only print a systemd unit that runs this command")
        action.add_argument(
            "--python-path",
            action="append",
            default=[],
            type=Path,
            help="directory with modules that the run's functions import; may be repeated",
        )


def _provision(options: argparse.Namespace) -> int:
    from airflow_mlscale.federated.adapters import kits

    done = kits.provision(kits.read(options.sites), options.out.expanduser().resolve(), renew=options.renew)
    for name in done.made:
        print(f"made        {done.kits / name}{'' if name == done.roster.admin else '.zip'}")
    for name in done.kept:
        print(f"kept        {done.kits / name}{'' if name == done.roster.admin else '.zip'}")
    for name in done.unlisted:
        print(f"not listed  {name}: its certificate still holds; whoever has its kit can join")
    print(f"checksums   {done.kits / 'SHA256SUMS'}")
    print(f"AIRFLOW_CONN_MLSCALE_FEDERATED='{done.connection}'")
    return 0


def _site(options: argparse.Namespace) -> int:
    from airflow_mlscale.federated import checks
    from airflow_mlscale.federated.adapters import participant

    own = participant.SiteOptions(
        labels=labels.check("label", labels.given("label", options.label)),
        data_args=_data_args(options.data_args),
        threads=options.threads,
        python_path=_directories(options.python_path),
    )
    checks.whole(own.threads, "threads", 1)
    kit = _kit(options, "site")
    extra = [word for text in options.label for word in ("--label", text)]
    extra += [word for text in options.data_args for word in ("--data-args", text)]
    extra += ["--threads", str(options.threads)] if options.threads != 1 else []
    return 0 if _only_told(options, kit, extra) else participant.site(kit, own)


def _server(options: argparse.Namespace) -> int:
    from airflow_mlscale.federated.adapters import participant

    path = _directories(options.python_path)
    kit = _kit(options, "server")
    extra = ["--bind", options.bind] if options.bind else []
    if _only_told(options, kit, extra):
        return 0
    return participant.server(kit, bind=options.bind, python_path=path)


def _kit(options: argparse.Namespace, role: str) -> Kit:
    from airflow_mlscale.federated.adapters import start_up_kit
    from airflow_mlscale.runtime import processes

    path = options.kit.expanduser().resolve()
    if path.is_file():
        path = start_up_kit.unpack(path, processes.home() / "federated" / "kits")
    return start_up_kit.look(path, role)


def _only_told(options: argparse.Namespace, kit: Kit, extra: list[str]) -> bool:
    """Whether the command was to tell something instead of running; then it has."""
    if options.systemd:
        print(_unit(options, kit, extra), end="")
    elif options.check:
        print(f"{kit.role:<12}{kit.name} of {kit.organisation}")
        print(f"server      {kit.host}:{kit.port}, certified as {kit.identity}")
        print(f"certificate holds until {kit.expires:%Y-%m-%d %H:%M} UTC")
    return bool(options.systemd or options.check)


def _unit(options: argparse.Namespace, kit: Kit, extra: list[str]) -> str:
    from airflow_mlscale.federated.adapters import systemd

    program = [shutil.which("mlscale", path=str(Path(sys.executable).parent)) or shutil.which("mlscale") or "mlscale"]
    if not Path(program[0]).is_absolute():
        program = [sys.executable, "-m", "airflow_mlscale.cli"]
    paths = [word for path in _directories(options.python_path) for word in ("--python-path", str(path))]
    store = kit.own.get("run_store")
    return systemd.unit(
        kit.role,
        kit.name,
        command=[*program, "federated", kit.role, "--kit", str(kit.directory), *extra, *paths],
        directory=str(kit.directory),
        user=kit.directory.owner(),
        writable=[store] if store else [],
    )


def _directories(paths: list[Path]) -> list[Path]:
    for path in paths:
        if not path.is_dir():
            raise errors.InvalidInputError("python-path", str(path), "is no directory")
    return [path.resolve() for path in paths]


def _data_args(texts: list[str]) -> dict[str, Any]:
    """Arguments by name; a value is JSON, or the text itself if it is none."""
    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key.isidentifier():
            raise errors.InvalidInputError("data-args", text, "write 'name=value', the name of an argument")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
