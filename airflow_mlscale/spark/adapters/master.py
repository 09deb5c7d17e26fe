"""Asking a standalone master: does it answer, and which workers has it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from airflow_mlscale import errors

_STREAM_REQUEST = 6
_STREAM_FAILURE = 8


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One alive worker."""

    host: str
    cores: int
    free_cores: int
    """Those that no application has."""
    memory_mib: int


@dataclass(frozen=True, kw_only=True)
class Driver:
    """One driver that a worker runs, or ran."""

    driver_id: str
    state: str
    """In the master's words."""
    host: str | None
    """Of its worker; None before it has one."""


@dataclass(frozen=True, kw_only=True)
class Master:
    """What the master's web page says."""

    status: str
    workers: tuple[Worker, ...]
    """Those alive."""
    drivers: tuple[Driver, ...] = ()
    """Of cluster mode; of those that ended the last 200."""
    web_url: str = ""
    """Whose page this is."""

    @property
    def leads(self) -> bool:
        """Whether it knows the cluster: one in standby, or just come back, does not (yet)."""
        return self.status == "ALIVE"

    @property
    def cores(self) -> int:
        return sum(worker.cores for worker in self.workers)

    @property
    def free_cores(self) -> int:
        """Cores that no application has: the first one takes all that it may."""
        return sum(worker.free_cores for worker in self.workers)

    @property
    def is_local(self) -> bool:
        """Whether every worker runs on this host, so that this host's CPU groups reach all executors."""
        return bool(self.workers) and all(is_local(worker.host) for worker in self.workers)


def addresses(master_url: str) -> list[tuple[str, int]]:
    """Hosts and ports of ``spark://host:port[,host:port…]``.

    Raises:
        InvalidInputError: not such an address.
    """
    fix = "use spark://HOST:PORT, the address that the master's web page shows"
    if not master_url.startswith("spark://"):
        raise errors.InvalidInputError("master", master_url, fix)
    found = []
    for part in master_url.removeprefix("spark://").split(","):
        try:
            address = urlsplit(f"//{part.strip()}")
            port = address.port
        except ValueError as exc:
            raise errors.InvalidInputError("master", master_url, fix) from exc
        if not address.hostname or not port:
            raise errors.InvalidInputError("master", master_url, fix)
        found.append((address.hostname, port))
    return found


def ping(master_url: str, *, timeout_s: float = 5.0) -> None:
    """Ask each master for a file it does not have; a Spark process answers with Spark's own refusal.

    A bare TCP connection would also be content with any other service on that port.

    Raises:
        UnreachableError: none of them answers as Spark.
    """
    problems = []
    for host, port in addresses(master_url):
        try:
            if _speaks_spark(host, port, timeout_s):
                return
            problems.append("something else than Spark listens there")
        except OSError as exc:
            problems.append(exc.strerror or str(exc))
    raise errors.UnreachableError(
        "Spark master",
        master_url,
        f"{'; '.join(dict.fromkeys(problems))}. Start it (mlscale spark up) or correct host and port of the connection",
        retry_after_s=30,
    )


def pages(master_url: str) -> str:
    """Where the web pages of the masters at an address are by default, with commas between them."""
    return ",".join(f"http://{f'[{host}]' if ':' in host else host}:8080" for host, _ in addresses(master_url))


def state(web_url: str, *, timeout_s: float = 5.0) -> Master:
    """The master's state from its web page; of several pages (commas between them) that of the master that leads.

    Raises:
        UnreachableError: no page answers, or none is a master's.
    """
    found: Master | None = None
    away: errors.UnreachableError | None = None
    for page in web_url.split(","):
        try:
            asked = _state(page.strip(), timeout_s)
        except errors.UnreachableError as exc:
            away = away or exc
            continue
        if asked.leads:
            return asked
        found = found or asked
    if found is None:
        raise away or errors.UnreachableError("the Spark master's web page", web_url, "it has no address")
    return found


def _state(web_url: str, timeout_s: float) -> Master:
    try:
        reply = httpx.get(f"{web_url.rstrip('/')}/json/", timeout=timeout_s, follow_redirects=True, trust_env=False)
        reply.raise_for_status()
        page = reply.json()
        workers = tuple(
            Worker(
                host=worker["host"],
                cores=int(worker["cores"]),
                free_cores=int(worker.get("coresfree", worker["cores"])),
                memory_mib=int(worker["memory"]),
            )
            for worker in page["workers"]
            if worker["state"] == "ALIVE"
        )
        return Master(status=str(page["status"]), workers=workers, drivers=_drivers(page), web_url=web_url)
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as exc:
        raise errors.UnreachableError(
            "the Spark master's web page", web_url, "set its address in the connection's extra field master_web_url"
        ) from exc


def _drivers(page: Mapping[str, Any]) -> tuple[Driver, ...]:
    hosts = {worker["id"]: str(worker["host"]) for worker in page["workers"]}
    rows = [*page["activedrivers"], *page["completeddrivers"]]
    return tuple(
        Driver(driver_id=str(row["id"]), state=str(row["state"]), host=hosts.get(row["worker"])) for row in rows
    )


def is_local(host: str) -> bool:
    """Whether a host name or address belongs to this machine."""
    try:
        wanted = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    own = {address.address.partition("%")[0] for nic in psutil.net_if_addrs().values() for address in nic}
    return any(address in own or str(address).startswith("127.") for address in wanted)


def _speaks_spark(host: str, port: int, timeout_s: float) -> bool:
    """One frame of Spark's transport protocol (network-common): length, type, stream name; and its answer."""
    name = b"/files/is-anybody-there"
    message = struct.pack(">bi", _STREAM_REQUEST, len(name)) + name
    with socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.sendall(struct.pack(">q", 8 + len(message)) + message)
        reply = b""
        while len(reply) < 9:
            more = connection.recv(4096)
            if not more:
                return False
            reply += more
    return reply[8] == _STREAM_FAILURE and name in reply
