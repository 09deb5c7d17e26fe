"""Who takes part in a federation across machines: the server, its administrator and the sites. Pure.

The form of ``sites.yaml``::

    name: hospitals                  # of the federation
    organisation: example            # in every certificate
    server:
      host: fl.example.org           # what sites and Airflow connect to
      port: 8002
      bind: 10.0.0.5                 # address that the server listens on; without it that of `host`
      run_store: /srv/mlscale/runs   # directory that the server and Airflow share
    admin: ops@example.org
    encrypted: false                 # a common secret key for the sites, see RunSettings.encrypted
    sites:
      - name: berlin
        labels: {region: eu, device: gpu}
        server_address: 10.8.0.1:8443   # where this site reaches the server, if elsewhere (VPN, proxy)
      - turin                        # a name alone

Does not belong here: certificates and kits (`adapters.kits`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from airflow_mlscale.federated import checks, labels
from airflow_mlscale.federated.settings import check_site

HOST = re.compile(r"(?=.{1,63}$)([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?")
"""A name or an IPv4 address; the engine speaks no IPv6, and a certified name has at most 64 characters."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
ORGANISATION = re.compile(r"[A-Za-z0-9_]{1,63}")
ADMIN = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}")


@dataclass(frozen=True, kw_only=True)
class Server:
    """The federation's one server."""

    host: str
    """Name or IPv4 address that is certified and that sites and Airflow connect to."""
    port: int = 8002
    """For sites and administrators alike."""
    bind: str | None = None
    """IPv4 address or name of it that the server listens on; None for that of `host`, ``0.0.0.0`` for all."""
    run_store: str | None = None
    """Absolute path of the directory of runs that the server shares with Airflow."""

    def __post_init__(self) -> None:
        checks.check(_is(HOST, self.host), "server.host", self.host, "name a host or an IPv4 address")
        _check_port("server.port", self.port)
        if self.bind is not None:
            checks.check(_is(HOST, self.bind), "server.bind", self.bind, "name an IPv4 address of the server")
        absolute = self.run_store is None or (isinstance(self.run_store, str) and self.run_store.startswith("/"))
        checks.check(absolute, "server.run_store", self.run_store, "name an absolute path")


@dataclass(frozen=True, kw_only=True)
class SiteEntry:
    """One site."""

    name: str
    """In its certificate."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """By which runs select it."""
    server_address: str | None = None
    """``host`` or ``host:port`` at which this site reaches the server, if that is another one than the server's."""

    def __post_init__(self) -> None:
        check_site(self.name, "sites.name")
        where = f"sites[{self.name}]"
        object.__setattr__(self, "labels", labels.check(f"{where}.labels", self.labels))
        if self.server_address is not None:
            host, _, port = str(self.server_address).partition(":")
            good = _is(HOST, host) and (not port or (port.isdigit() and 1 <= int(port) <= 65535))
            checks.check(good, f"{where}.server_address", self.server_address, "write host or host:port")

    def reaches(self, server: Server) -> tuple[str, int]:
        """Host and port to which this site connects."""
        host, _, port = (self.server_address or server.host).partition(":")
        return host, int(port or server.port)


@dataclass(frozen=True, kw_only=True)
class Roster:
    """A whole federation."""

    server: Server
    sites: tuple[SiteEntry, ...]
    name: str = "federation"
    organisation: str = "mlscale"
    """In every certificate."""
    admin: str = "admin@mlscale.local"
    """Whose kit Airflow logs in with; an address, as NVFlare wants it."""
    encrypted: bool = False
    """Give the sites a common secret key, for runs whose weights the server must not read."""

    def __post_init__(self) -> None:
        checks.check(_is(NAME, self.name), "name", self.name, "use letters, digits, '_' and '-'")
        checks.check(_is(ORGANISATION, self.organisation), "organisation", self.organisation, "use letters and digits")
        checks.check(_is(ADMIN, self.admin), "admin", self.admin, "write an address such as ops@example.org")
        checks.check(isinstance(self.encrypted, bool), "encrypted", self.encrypted, "must be true or false")
        checks.check(len(self.sites) > 0, "sites", [], "name at least one site")
        names = [site.name.lower() for site in self.sites]
        twice = sorted({name for name in names if names.count(name) > 1})
        checks.check(not twice, "sites", ", ".join(twice), "name each site once, whatever the case of its letters")
        same = self.server.host.lower() in names
        checks.check(not same, "sites", self.server.host, "a site must not have the server's name")

    @property
    def site_names(self) -> tuple[str, ...]:
        """Names of the sites, as they are listed."""
        return tuple(site.name for site in self.sites)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `parse` reads back."""
        values = asdict(self)
        values["sites"] = [{**asdict(site), "labels": dict(site.labels)} for site in self.sites]
        return values


def parse(values: object) -> Roster:
    """The federation of a ``sites.yaml`` that was read already.

    Raises:
        InvalidInputError: something in it is wrong; names the field, its value and the fix.
    """
    found = _mapping("sites.yaml", values)
    _known("", found, ("name", "organisation", "server", "admin", "encrypted", "sites"))
    checks.check("server" in found, "server", None, "add 'server:' with its host")
    server = _mapping("server", found["server"])
    _known("server.", server, ("host", "port", "bind", "run_store"))
    checks.check("host" in server, "server.host", None, "name the host that sites and Airflow connect to")
    listed = found.get("sites")
    checks.check(isinstance(listed, Sequence) and not isinstance(listed, str), "sites", listed, "list the sites")
    assert isinstance(listed, Sequence)  # noqa: S101 (for the type checker)
    rest = {key: value for key, value in found.items() if key not in ("server", "sites")}
    return Roster(server=Server(**server), sites=tuple(_site(entry) for entry in listed), **rest)


def _site(entry: object) -> SiteEntry:
    if isinstance(entry, str):
        return SiteEntry(name=entry)
    fix = "is no name of a site; YAML reads yes, no, on, off and numbers as values: choose another name"
    checks.check(isinstance(entry, Mapping), "sites", entry, fix)
    found = _mapping("sites", entry)
    checks.check("name" in found, "sites.name", dict(found), "name the site")
    _known(f"sites[{found['name']}].", found, ("name", "labels", "server_address"))
    return SiteEntry(**{**found, "labels": {} if found.get("labels") is None else found["labels"]})


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    good = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    checks.check(good, name, value, "write names and values, 'key: value' on a line each")
    assert isinstance(value, Mapping)  # noqa: S101 (for the type checker)
    return value


def _known(prefix: str, found: Mapping[str, Any], names: Sequence[str]) -> None:
    for key in found:
        checks.check(key in names, f"{prefix}{key}", found[key], f"is unknown; use {', '.join(names)}")


def _check_port(name: str, value: object) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535
    checks.check(good, name, value, "must be a port, a whole number from 1 to 65535")


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
