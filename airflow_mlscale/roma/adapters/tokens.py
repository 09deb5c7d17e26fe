"""The file of tokens: hashes and scopes as JSON, changed by ``mlscale roma token``, read again when it changes."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import authority

log = logging.getLogger(__name__)

FIELD = "tokens_file"


class TokenFile:
    """What a daemon knows of the file.

    Raises:
        InvalidInputError: it cannot be read or is no file of tokens.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.grants: Sequence[authority.Grant] = load(path)
        self._seen = _stamp(path)

    def refresh(self) -> None:
        """Read it again if it changed. A broken file changes nothing; without a file no token is good any more."""
        stamp = _stamp(self.path)
        if stamp == self._seen:
            return
        self._seen = stamp
        if stamp is None:
            self.grants = ()
            log.error("%s is gone: no token of it is valid any more", self.path)
            return
        try:
            self.grants = load(self.path)
        except errors.InvalidInputError as exc:
            log.error("the tokens stay as they were: %s", exc)
        else:
            log.info("%d tokens in %s", len(self.grants), self.path)


def load(path: Path) -> tuple[authority.Grant, ...]:
    """The tokens of a file.

    Raises:
        InvalidInputError: it cannot be read, or is no file of tokens.
    """
    try:
        entries = json.loads(path.read_bytes())["tokens"]
        grants = tuple(_grant(entry) for entry in entries)
    except OSError as exc:
        raise errors.InvalidInputError(FIELD, str(path), f"it cannot be read: {exc.strerror}") from exc
    except errors.InvalidInputError as exc:
        raise errors.InvalidInputError(FIELD, str(path), f"an entry is wrong: {exc}") from exc
    except (ValueError, KeyError, TypeError, RecursionError):  # what it holds must not be shown
        fix = "it is no file of tokens; make one with `mlscale roma token add`"
        raise errors.InvalidInputError(FIELD, str(path), fix) from None
    names = [grant.name for grant in grants]
    if len(set(names)) < len(names):
        raise errors.InvalidInputError(FIELD, str(path), "two tokens have the same name; rename one")
    return grants


def add(path: Path, name: str, scopes: authority.Scopes, **limits: float | None) -> str:
    """Make a token, keep its hash, and return it: it cannot be had again.

    Args:
        path: made if it does not exist.
        name: appears in logs.
        scopes: what its bearer may do.
        limits: ``rate_per_s`` and ``expires`` of the grant.

    Raises:
        InvalidInputError: the name is taken or something else is wrong.
    """
    token = authority.new_token()
    grant = authority.Grant(name=name, sha256=authority.hashed(token.encode()), scopes=scopes, **limits)
    with _changing(path) as grants:
        if any(one.name == name for one in grants):
            raise errors.InvalidInputError("name", name, "a token has this name; remove it first or take another")
        grants.append(grant)
    return token


def remove(path: Path, name: str) -> None:
    """Revoke a token.

    Raises:
        InvalidInputError: there is none of this name.
    """
    with _changing(path) as grants:
        left = [one for one in grants if one.name != name]
        if len(left) == len(grants):
            known = ", ".join(one.name for one in grants) or "none"
            raise errors.InvalidInputError("name", name, f"no such token; there are: {known}")
        grants[:] = left


@contextmanager
def _changing(path: Path) -> Iterator[list[authority.Grant]]:
    """The tokens, to be changed; nobody else changes them meanwhile, and readers see the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        grants = list(load(path)) if path.exists() else []
        yield grants
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:  # its mode is 0600
            try:
                json.dump({"tokens": [_entry(grant) for grant in grants]}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise


def _grant(entry: dict[str, Any]) -> authority.Grant:
    return authority.Grant(**{**entry, "scopes": frozenset(entry["scopes"])})


def _entry(grant: authority.Grant) -> dict[str, Any]:
    entry = {
        "name": grant.name,
        "sha256": grant.sha256,
        "scopes": sorted(grant.scopes),
        "rate_per_s": grant.rate_per_s,
        "expires": grant.expires,
    }
    return {key: value for key, value in entry.items() if value is not None}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
