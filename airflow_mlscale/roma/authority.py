"""Who may do what: tokens with scopes, what each request needs, and how often each caller may ask.

Pure: the time is an argument. Files, headers and statuses are the adapters' business.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal, get_args

from airflow_mlscale import errors

Scope = Literal["read", "infer", "admin"]
Scopes = frozenset[Scope]

SCOPES: tuple[Scope, ...] = get_args(Scope)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,79}")

_LOOK: Scopes = frozenset({"read", "admin"})
_DESCRIBE: Scopes = frozenset({"read", "infer", "admin"})
"""What clients ask before they infer: metadata, readiness, versions."""
_INFER: Scopes = frozenset({"infer", "admin"})
_CHANGE: Scopes = frozenset({"admin"})

_RPC: Mapping[str, Scopes] = {
    **dict.fromkeys(("ModelInfer", "ModelStreamInfer", "Predict", "Classify", "Regress"), _INFER),
    **dict.fromkeys(("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata"), _DESCRIBE),
    **dict.fromkeys(("GetModelMetadata", "GetModelStatus", "RepositoryIndex", "Check"), _DESCRIBE),
}


@dataclass(frozen=True, kw_only=True)
class Grant:
    """One token as it is kept: its hash, and what its bearer may do."""

    name: str
    """Appears in logs; the token itself never does."""
    sha256: str
    """Hexadecimal. Tokens are 256 random bits, so guessing is hopeless and a slow hash would add nothing."""
    scopes: Scopes
    rate_per_s: float | None = None
    """Requests a second; None for the daemon's own limit."""
    expires: float | None = None
    """Seconds since the epoch."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise errors.InvalidInputError("name", self.name, "use 1 to 80 letters, digits and any of . _ @ -")
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            # What was given here by mistake may be the token itself.
            raise errors.InvalidInputError("sha256", "…", "give the SHA-256 of the token as 64 hexadecimal digits")
        if not self.scopes or not self.scopes <= frozenset(SCOPES):
            fix = f"give at least one of {', '.join(SCOPES)}"
            raise errors.InvalidInputError("scopes", sorted(map(str, self.scopes)), fix)
        if self.rate_per_s is not None and not (_is_number(self.rate_per_s) and 0 < self.rate_per_s < inf):
            raise errors.InvalidInputError("rate_per_s", self.rate_per_s, "give a number of requests above 0")
        if self.expires is not None and not _is_number(self.expires):
            raise errors.InvalidInputError("expires", self.expires, "give seconds since the epoch")

    def valid(self, now: float) -> bool:
        """Whether it still holds at this wall time."""
        return self.expires is None or now < self.expires


def new_token() -> str:
    """A token to give away: 256 random bits."""
    return f"roma_{secrets.token_urlsafe(32)}"


def hashed(token: bytes) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token).hexdigest()


def bearer(grants: Iterable[Grant], token: bytes, now: float) -> Grant | None:
    """The grant of a token; None for unknown and expired ones.

    Every grant is compared, in constant time each: how long it takes tells nothing about any token.
    """
    given = hashed(token)
    found = None
    for grant in grants:
        if hmac.compare_digest(grant.sha256, given):
            found = grant
    return found if found and found.valid(now) else None


def needed(method: str, parts: Sequence[str]) -> Scopes:
    """The scopes of which one suffices for an HTTP request; ``parts`` is its path. What is unknown needs most."""
    match parts:
        case ["v2", "models", _, *_] if parts[-1] in ("infer", "feedback") and method == "POST":
            return _INFER
        case ["v2", "repository", "index"]:
            return _DESCRIBE
        case ["v1", "models", *_] if method == "POST":
            return _INFER
        case ["v2"] | ["v2", "models" | "health", *_] | ["v1", *_] | ["openapi.json"]:
            return _DESCRIBE if method in ("GET", "HEAD") else _CHANGE
    return _LOOK if method in ("GET", "HEAD") else _CHANGE


def needed_for_rpc(method: str) -> Scopes:
    """As `needed`, for a gRPC method of any service."""
    return _RPC.get(method, _CHANGE)


@dataclass
class Buckets:
    """A token bucket for each caller: ``burst`` requests at once, refilled at a rate.

    Those unseen for longest are forgotten, so that made-up callers do not fill the memory. They come back with a
    full bucket.
    """

    rate_per_s: float | None
    """None: no limit but those of single tokens."""
    burst_s: float = 1.0
    """A full bucket lasts for so many seconds' worth of requests, and for at least one."""
    keep: int = 10_000
    _levels: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def take(self, now: float, caller: str, rate_per_s: float | None = None) -> float:
        """Let one request of a caller in; returns 0, or the seconds to wait before the next can come in.

        Args:
            now: of a clock that never goes back.
            caller: any name.
            rate_per_s: this caller's own limit.
        """
        rate = self.rate_per_s if rate_per_s is None else rate_per_s
        if rate is None:
            return 0.0
        full = max(1.0, rate * self.burst_s)
        level, then = self._levels.pop(caller, (full, now))
        level = min(full, level + (now - then) * rate)
        wait_s = 0.0 if level >= 1 else (1 - level) / rate
        self._levels[caller] = (level if wait_s else level - 1, now)
        if len(self._levels) > self.keep:
            self._levels.popitem(last=False)
        return wait_s


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
