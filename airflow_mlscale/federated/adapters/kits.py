"""Certificates and start-up kits of a federation across machines, by NVFlare's provisioning library.

One directory holds it all::

    authority/NAME/state/    the certificate authority with its private key: whoever has it can join as anybody
    kits/NAME/               a start-up kit for each of server, sites and administrator
    kits/NAME.zip            the same, to be carried to its machine
    kits/SHA256SUMS          of the archives, for ``sha256sum -c``
    federation.json          what was provisioned last

Provisioning again is safe: the authority, the certificates and every kit whose description is the same stay byte by
byte as they are. Only the owner can read any of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import roster as rosters
from airflow_mlscale.federated.adapters import provisioning
from airflow_mlscale.federated.roster import Roster, SiteEntry

AUTHORITY_DAYS = 3650
"""Certificates hold for 360 days, or as long as their authority: it must outlive them, so that they can be renewed."""
PARTS = ("local", "startup")
"""Directories of a kit; beside them a participant that runs keeps its files."""
OWN = "mlscale.json"
"""In a kit's ``local/``: what our commands have to know beside what NVFlare wrote."""


@dataclass(frozen=True)
class Provisioned:
    """What a provisioning did."""

    directory: Path
    roster: Roster
    made: tuple[str, ...] = ()
    """Kits that are new or changed: they have to be carried to their machines."""
    kept: tuple[str, ...] = ()
    """Kits that stay as they were."""
    unlisted: tuple[str, ...] = ()
    """Sites that are no longer listed; their certificates still hold."""

    @property
    def kits(self) -> Path:
        """Where the kits are."""
        return self.directory / "kits"

    @property
    def connection(self) -> str:
        """Airflow's JSON form of the connection, for ``AIRFLOW_CONN_MLSCALE_FEDERATED``. Holds paths, no secret."""
        kit, runs = self.kits / self.roster.admin, self.roster.server.run_store or self.directory / "runs"
        return json.dumps({"conn_type": "mlscale_federated", "extra": {"admin_kit": str(kit), "run_store": str(runs)}})


def read(path: Path) -> Roster:
    """The roster of a ``sites.yaml``.

    Raises:
        InvalidInputError: there is none, it is no YAML, or something in it is wrong.
    """
    import yaml  # type: ignore[import-untyped]  # its stubs are not among the dependencies

    try:
        return rosters.parse(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as exc:
        raise errors.InvalidInputError("sites.yaml", str(path), f"cannot be read: {exc}") from exc
    except yaml.YAMLError as exc:
        raise errors.InvalidInputError("sites.yaml", str(path), f"is no YAML: {exc}") from exc


def provision(roster: Roster, directory: Path, *, renew: Sequence[str] = ()) -> Provisioned:
    """Make the kits that are missing or whose description changed.

    Args:
        roster: who takes part.
        directory: of the federation; absolute.
        renew: participants that get a new certificate.

    Raises:
        InvalidInputError: the directory holds another federation, a name to renew is unknown, or encryption is asked
            for without its library.
        RunFailedError: NVFlare could not provision.
    """
    provisioning.check_encryption(roster.encrypted)
    known = _known(roster, directory)
    wanted = _descriptions(roster, directory)
    for name in renew:
        if name not in wanted:
            raise errors.InvalidInputError("renew", name, f"use one of {', '.join(wanted)}")
    kits = directory / "kits"
    stale = [
        name for name, told in wanted.items() if name in renew or known.get(name) != told or not _whole(kits / name)
    ]
    with private():
        directory.mkdir(parents=True, exist_ok=True)
        if roster.server.run_store is None:
            (directory / "runs").mkdir(exist_ok=True)
        if stale:
            _make(roster, directory, stale, wanted, renew)
        _write(directory / "federation.json", {"roster": roster.to_json(), "kits": {**known, **wanted}})
    return Provisioned(
        directory, roster, tuple(stale), tuple(name for name in wanted if name not in stale),
        unlisted=tuple(sorted(name for name in known if name not in wanted and (kits / name).exists())),
    )  # fmt: skip


def _known(roster: Roster, directory: Path) -> Mapping[str, Any]:
    """Descriptions of the kits that are there; refuses what would make all of them worthless."""
    try:
        found = json.loads((directory / "federation.json").read_text())
        before = rosters.parse(found["roster"])
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError) as exc:
        raise errors.InvalidInputError("out", str(directory), "holds something else; name another directory") from exc
    fix = f"the kits in {directory} are for {{!r}}; name another directory for another federation"
    for name in ("name", "organisation", "admin", "encrypted"):
        if getattr(before, name) != getattr(roster, name):
            raise errors.InvalidInputError(name, getattr(roster, name), fix.format(getattr(before, name)))
    if before.server.host != roster.server.host:
        raise errors.InvalidInputError("server.host", roster.server.host, fix.format(before.server.host))
    return found["kits"]  # type: ignore[no-any-return]


def _descriptions(roster: Roster, directory: Path) -> dict[str, Any]:
    """Everything that a kit depends on, by participant."""
    server = roster.server
    runs = server.run_store or str(directory / "runs")
    labels = {site.name: dict(site.labels) for site in roster.sites if site.labels}
    return {
        server.host: {"role": "server", "port": server.port, "bind": server.bind, "run_store": runs, "labels": labels},
        **{site.name: _site(site, roster) for site in roster.sites},
        roster.admin: {"role": "admin", "port": server.port},
    }


def _site(site: SiteEntry, roster: Roster) -> dict[str, Any]:
    return {"role": "site", "server": list(site.reaches(roster.server)), "labels": dict(site.labels)}


def _make(roster: Roster, directory: Path, names: Sequence[str], told: Mapping[str, Any], renew: Sequence[str]) -> None:
    authority = directory / "authority"
    authority.mkdir(exist_ok=True)
    state = authority / roster.name / "state" / "cert.json"
    if state.exists():  # NVFlare writes it in place, and it is all that there is of the authority
        shutil.copy2(state, state.with_name("cert.json.previous"))
    _forget(state, renew)
    fresh = provisioning.build(project(roster), authority)
    try:
        for name in names:
            _finish(fresh / name, told[name])
            _replace(fresh / name, directory / "kits" / name)
            _archive(directory / "kits", name)
    finally:
        shutil.rmtree(fresh)
    _write_sums(directory / "kits")


def project(roster: Roster) -> dict[str, Any]:
    """The roster as NVFlare's project."""
    server, org = roster.server, roster.organisation
    elsewhere = sorted({host for site in roster.sites if (host := site.reaches(server)[0]) != server.host})
    return provisioning.project(
        roster.name,
        [
            {
                "name": server.host, "type": "server", "org": org, "host_names": elsewhere,
                "fed_learn_port": server.port, "admin_port": server.port,
            },
            *({"name": site.name, "type": "client", "org": org, **_way(site, roster)} for site in roster.sites),
            {"name": roster.admin, "type": "admin", "org": org, "role": "project_admin"},
        ],
        encrypted=roster.encrypted,
        authority_days=AUTHORITY_DAYS,
    )  # fmt: skip


def _way(site: SiteEntry, roster: Roster) -> dict[str, Any]:
    if site.server_address is None:
        return {}
    host, port = site.reaches(roster.server)
    return {"connect_to": {"host": host, "port": port}}


def _finish(kit: Path, told: Mapping[str, Any]) -> None:
    """What NVFlare does not do: our own file, the site's labels, and files that only their owner can read."""
    if told["role"] != "admin":
        _write(kit / "local" / OWN, told)
    if told["role"] == "site":
        provisioning.tune_site(kit / "local", told["labels"])
    (kit / "transfer").mkdir(exist_ok=True)
    for path in (kit, *kit.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)


def _replace(fresh: Path, kit: Path) -> None:
    """Put the parts of a kit in their places; what a participant that runs on it keeps beside them stays."""
    kit.mkdir(parents=True, exist_ok=True)
    for part in sorted(fresh.iterdir()):
        old = kit / f".{part.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if part.name == "transfer" and (kit / "transfer").exists():
            continue
        if part.is_dir() and (kit / part.name).exists():
            (kit / part.name).rename(old)
        part.rename(kit / part.name)
        shutil.rmtree(old, ignore_errors=True)


def _archive(kits: Path, name: str) -> None:
    """One file that carries a kit; the same kit gives the same bytes."""
    packed = io.BytesIO()
    parts = [path for part in PARTS for path in ((kits / name / part), *sorted((kits / name / part).rglob("*")))]
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in parts:
            told = zipfile.ZipInfo(f"{name}/{path.relative_to(kits / name)}{'/' if path.is_dir() else ''}")
            told.external_attr = ((0o40700 if path.is_dir() else 0o100600) << 16) | (0x10 if path.is_dir() else 0)
            archive.writestr(told, b"" if path.is_dir() else path.read_bytes(), zipfile.ZIP_DEFLATED)
    partial = kits / f".{name}.zip.partial"
    partial.write_bytes(packed.getvalue())
    partial.replace(kits / f"{name}.zip")


def _write_sums(kits: Path) -> None:
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(kits.glob("*.zip"))]
    partial = kits / ".SHA256SUMS.partial"
    partial.write_text("".join(sums))
    partial.replace(kits / "SHA256SUMS")


def _forget(state: Path, names: Sequence[str]) -> None:
    """Let NVFlare make new certificates for these."""
    if not names or not state.exists():
        return
    _write(state, {name: value for name, value in json.loads(state.read_text()).items() if name not in names})


def _whole(kit: Path) -> bool:
    return (kit / "startup" / "rootCA.pem").exists() and kit.with_name(f"{kit.name}.zip").exists()


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Whatever this process writes meanwhile belongs to its owner alone, what libraries write too."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def _write(path: Path, values: Any) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(values, indent=1))
    partial.replace(path)
