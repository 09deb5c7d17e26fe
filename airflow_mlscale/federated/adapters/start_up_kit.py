"""A start-up kit on the machine that uses it: unpacked, and looked through before anything starts with it.

Reads any NVFlare kit. What `kits` added to ours is in ``local/mlscale.json``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import ssl
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated.adapters.kits import OWN, PARTS, private

log = logging.getLogger(__name__)

SOON = timedelta(days=30)
"""Before its end a certificate is warned about."""
UNPACKED_FROM = "unpacked-from"
"""In an unpacked kit: the checksum of its archive."""
RENEW = "ask the federation's administrator for a new one ('mlscale federated provision --renew {}')"
PROGRAMS = {"site": "fed_client.json", "server": "fed_server.json", "admin": "fed_admin.json"}


@dataclass(frozen=True)
class Kit:
    """A kit that was looked through."""

    directory: Path
    role: str
    """``site`` or ``server``."""
    name: str
    """In its certificate."""
    organisation: str
    host: str
    """Of the server, as this participant reaches it."""
    port: int
    identity: str
    """The server's certified name."""
    expires: datetime
    own: Mapping[str, Any] = field(default_factory=dict)
    """What `kits` wrote into it; empty for another's kit."""

    def file(self, name: str) -> Path:
        """A file of the kit proper."""
        return self.directory / "startup" / name

    @property
    def pair(self) -> tuple[Path, Path]:
        """Certificate and private key."""
        stem = "server" if self.role == "server" else "client"
        return self.file(f"{stem}.crt"), self.file(f"{stem}.key")


def unpack(archive: Path, below: Path) -> Path:
    """The directory of an archived kit, unpacked anew if the archive is another one than last time.

    Raises:
        InvalidInputError: it is damaged, or no start-up kit.
    """
    try:
        packed = archive.read_bytes()
        content = zipfile.ZipFile(archive)
        damaged = content.testzip()
    except (OSError, zipfile.BadZipFile) as exc:
        raise errors.InvalidInputError("kit", str(archive), f"cannot be read: {exc}") from exc
    digest = hashlib.sha256(packed).hexdigest()
    _check_sum(archive, digest)
    paths = [PurePosixPath(name) for name in content.namelist()]
    names = {path.parts[0] for path in paths if path.parts}
    safe = all(not path.is_absolute() and ".." not in path.parts for path in paths)
    if damaged or not safe or len(names) != 1:
        raise errors.InvalidInputError("kit", str(archive), "is damaged, or no kit of 'mlscale federated provision'")
    target = below / names.pop()
    told = target / UNPACKED_FROM
    if not told.exists() or told.read_text() != digest:
        told.unlink(missing_ok=True)
        for part in PARTS:
            shutil.rmtree(target / part, ignore_errors=True)
        with private():
            (target / "transfer").mkdir(parents=True, exist_ok=True)  # where NVFlare looks for files to send
            content.extractall(below)
            told.write_text(digest)
    return target


def _check_sum(archive: Path, digest: str) -> None:
    """Against the list that travels with the archives, if it came along."""
    try:
        lines = (archive.parent / "SHA256SUMS").read_text().splitlines()
    except OSError:
        return
    listed = {name: told for told, _, name in (line.partition("  ") for line in lines)}
    if listed.get(archive.name, digest) != digest:
        fix = "is not what was provisioned: its checksum differs from that in SHA256SUMS; copy it again"
        raise errors.InvalidInputError("kit", str(archive), fix)


def look(directory: Path, role: str, *, now: datetime | None = None) -> Kit:
    """Look a kit through.

    Args:
        directory: of the kit.
        role: ``site`` or ``server``: what it is to be used as.
        now: the time; the clock's without it.

    Raises:
        InvalidInputError: it is no such kit, it is not whole, its certificate does not hold now or is not of its
            authority, or others can read its private key.
    """
    _check_role(directory, role)
    settings = _json(directory, PROGRAMS[role])
    try:
        server = settings["servers"][0]
        target = str(server["service"]["target"])
        identity = str(server["identity"]) if role == "site" else target.partition(":")[0]
        host, port = target.partition(":")[0], int(target.partition(":")[2])
    except (KeyError, IndexError, TypeError, ValueError) as exc:
        raise errors.InvalidInputError("kit", str(directory), f"startup/{PROGRAMS[role]} is damaged") from exc
    stem = "server" if role == "server" else "client"
    name, organisation, expires = _certificate(directory, stem, now or datetime.now(UTC))
    _check_private(directory, stem)
    own = json.loads(_text(directory / "local" / OWN) or "{}")
    return Kit(directory.resolve(), role, name, organisation, host, port, identity, expires, own)


def _check_role(directory: Path, role: str) -> None:
    found = [each for each, program in PROGRAMS.items() if (directory / "startup" / program).exists()]
    if not found:
        fix = "name a kit of 'mlscale federated provision': its directory (with startup/ in it) or its archive"
        raise errors.InvalidInputError("kit", str(directory), fix)
    if role not in found:
        raise errors.InvalidInputError(
            "kit", str(directory), f"is the kit of a federation's {found[0]}, not a {role}'s"
        )


def _certificate(directory: Path, stem: str, now: datetime) -> tuple[str, str, datetime]:
    """Name, organisation and end of a certificate that holds."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509.oid import NameOID

    startup = directory / "startup"
    try:
        own = x509.load_pem_x509_certificate((startup / f"{stem}.crt").read_bytes())
        authority = x509.load_pem_x509_certificate((startup / "rootCA.pem").read_bytes())
        own.verify_directly_issued_by(authority)
        ssl.create_default_context().load_cert_chain(startup / f"{stem}.crt", startup / f"{stem}.key")
        name = str(own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        organisations = own.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    except (OSError, ValueError, TypeError, IndexError, InvalidSignature) as exc:
        fix = f"its certificate, key and authority cannot be read or do not belong together ({type(exc).__name__})"
        raise errors.InvalidInputError("kit", str(directory), fix) from exc
    for certificate, what in ((own, f"the certificate of {name}"), (authority, "the certificate authority")):
        if certificate.not_valid_before_utc > now + timedelta(minutes=5):
            fix = (
                f"{what} holds only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; is the clock right?"
            )
            raise errors.InvalidInputError("kit", str(directory), fix)
        if certificate.not_valid_after_utc <= now:
            fix = f"{what} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; {RENEW.format(name)}"
            raise errors.InvalidInputError("kit", str(directory), fix)
    if own.not_valid_after_utc - now < SOON:
        log.warning("the certificate of %s ends on %s; %s", name, own.not_valid_after_utc.date(), RENEW.format(name))
    organisation = str(organisations[0].value) if organisations else ""
    return name, organisation, min(own.not_valid_after_utc, authority.not_valid_after_utc)


def _check_private(directory: Path, stem: str) -> None:
    key = directory / "startup" / f"{stem}.key"
    for path in (key, *(each for each in (directory / "startup").glob("*.tenseal"))):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            fix = f"others can read {path.name} (mode {mode:04o}); run: chmod -R go= {directory}"
            raise errors.InvalidInputError("kit", str(directory), fix)
    if not os.access(directory, os.W_OK):
        fix = "cannot be written: NVFlare keeps its jobs and logs beside the kit; copy it to a place of your own"
        raise errors.InvalidInputError("kit", str(directory), fix)


def _json(directory: Path, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / "startup" / name).read_text()))
    except (OSError, ValueError) as exc:
        raise errors.InvalidInputError("kit", str(directory), f"startup/{name} cannot be read: {exc}") from exc


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
