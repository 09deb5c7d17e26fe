"""Who comes in: the bearer of a token with the right scope, not too often; HTTP and gRPC ask the same guard."""

from __future__ import annotations

import time
from collections.abc import Mapping

from airflow_mlscale.roma import authority, settings
from airflow_mlscale.roma.adapters import statuses, tokens

OWNER = "token-file"
"""Name of the one token of ``--token-file``, which may do everything."""


class Guard:
    """The tokens and the rates of one daemon.

    Raises:
        InvalidInputError: the file of tokens cannot be read.
    """

    def __init__(self, config: settings.GatewaySettings) -> None:
        self.file = tokens.TokenFile(config.tokens_path) if config.tokens_path else None
        self._owner: tuple[authority.Grant, ...] = ()
        if config.token:
            all_scopes = frozenset(authority.SCOPES)
            digest = authority.hashed(config.token.encode())
            self._owner = (authority.Grant(name=OWNER, sha256=digest, scopes=all_scopes),)
        self._buckets = authority.Buckets(config.rate_per_s)

    @property
    def asks(self) -> bool:
        """Whether requests need a token."""
        return bool(self._owner or self.file)

    def admit(self, client: str, authorization: bytes, needed: authority.Scopes) -> str | None:
        """Let a request in; returns the name of its token, None where none is asked for.

        Args:
            client: its address, which counts where no good token says who it is.
            authorization: the header's value, empty if there is none.
            needed: one of these scopes is enough.

        Raises:
            StatusError: it may not come in (401, 403) or not so soon (429).
        """
        if not self.asks:
            self._count(f"at {client}", None)
            return None
        grant = self._bearer(authorization)
        if grant is None:
            self._count(f"at {client}", None)
            raise statuses.StatusError(401, "give a valid token: Authorization: Bearer …")
        self._count(grant.name, grant.rate_per_s)
        if grant.scopes.isdisjoint(needed):
            wanted = " or ".join(scope for scope in authority.SCOPES if scope in needed)
            raise statuses.StatusError(403, f"the token {grant.name!r} may not do this: it needs the scope {wanted}")
        return grant.name

    def _bearer(self, authorization: bytes) -> authority.Grant | None:
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        grants = (*self._owner, *(self.file.grants if self.file else ()))
        return authority.bearer(grants, token.strip(), time.time())

    def _count(self, caller: str, rate_per_s: float | None) -> None:
        wait_s = self._buckets.take(time.monotonic(), caller, rate_per_s)
        if wait_s > 0:
            raise statuses.StatusError(429, "too many requests in a second; come back later", retry_after_s=wait_s)


def check_local(headers: Mapping[bytes, bytes]) -> None:
    """Without a token, only requests that no foreign web page can send.

    Raises:
        StatusError: the request may come from one.
    """
    host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0] or "localhost"
    if not settings.is_loopback(host) or b"origin" in headers:
        raise statuses.StatusError(403, "without a token only local programs are served, no web pages")
