"""The dashboard page: files of this package, with headers that let them ask this daemon and nobody else.

The page itself holds nothing secret and is given to everybody; what it shows it asks for with the reader's token.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources

from airflow_mlscale.roma.adapters import http

PATHS = ("/", "/dashboard", "/dashboard/dashboard.css", "/dashboard/dashboard.js")
"""Everything that can be had here, without a token."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)
_TYPES: Mapping[str, bytes] = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
}


def reply(exchange: http.Exchange) -> http.Reply:
    """The page or one of its files; the path must be one of `PATHS`."""
    exchange.allow("GET")
    if exchange.path == "/":
        return http.Reply(307, b"", ((b"location", b"dashboard"),), b"text/plain")
    name = exchange.path.removeprefix("/dashboard").removeprefix("/") or "index.html"
    return http.Reply(200, _file(name), _HEADERS, _TYPES[name.rpartition(".")[2]])


@functools.cache
def _file(name: str) -> bytes:
    return resources.files("airflow_mlscale.roma").joinpath("dashboard", name).read_bytes()
