"""Profiles as JSON files in any folder that fsspec reaches: local, s3://, gs://, …

What a file system of fsspec raises is its own library's matter (``HttpError`` of gcsfs, ``NoCredentialsError`` of
botocore), and no `OSError` for the most part: here all of it becomes a `TransientError`.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import re
import time
import uuid
from dataclasses import dataclass
from hashlib import sha256

from airflow_mlscale import errors
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark import profile as profiles
from airflow_mlscale.spark.model import Profile

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of a store."""

    path: str
    profile: Profile | None
    """None when it cannot be read."""
    problem: str = ""
    """Why it cannot."""


class ProfileFiles:
    """`ProfileStore` over fsspec: one file for each application."""

    def __init__(self, folder: str | None = None) -> None:
        """Keep profiles in ``folder``; default is ``profiles`` in the home directory of local services.

        Raises:
            InvalidInputError: no installed file system serves that address.
            TransientError: the file system that does cannot be opened.
        """
        import fsspec

        self.folder = (folder or str(processes.home() / "profiles")).rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.folder)
        except (ValueError, ImportError) as exc:
            raise errors.InvalidInputError("profile_store", folder, f"{exc}; use a path or an fsspec address") from exc
        except Exception as exc:
            raise _failed(f"open the profile store {self.folder}", exc) from exc

    def load(self, key: str) -> Profile | None:
        try:
            return self.latest(key)
        except errors.TransientError as exc:
            # The job matters more than its profile: it runs as if for the first time.
            log.warning("%s; going without", exc)
            return None

    def latest(self, key: str) -> Profile | None:
        """As `load`, for who is going to write it: a store that cannot be read now may hold one.

        Raises:
            TransientError: the store cannot be read.
        """
        path = self._path(key)
        try:
            text = self._text(path)
        except FileNotFoundError:
            return None
        try:
            return _parsed(text, key)
        except ValueError as exc:
            self._set_aside(path, exc)
            return None

    def entries(self) -> list[Entry]:
        """Every profile there is, by application; nothing is moved.

        Raises:
            TransientError: the store cannot be read.
        """
        try:
            paths = sorted(self._files.glob(f"{self._root}/*.json"))
        except Exception as exc:
            raise _failed(f"read the profiles in {self.folder}", exc) from exc
        found = [self._entry(path) for path in paths]
        return sorted(found, key=lambda entry: entry.profile.key if entry.profile else entry.path)

    def read(self, key: str) -> Profile:
        """The profile of an application; unlike `load`, it has to be there and to be readable.

        Raises:
            InvalidInputError: there is none, or it cannot be read; it stays where it is.
            TransientError: the store cannot be read.
        """
        path = self._path(key)
        try:
            return _parsed(self._text(path), key)
        except FileNotFoundError as exc:
            known = [entry.profile.key for entry in self.entries() if entry.profile]
            near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
            fix = f"there is no such profile in {self.folder}; "
            fix += f"did you mean {' or '.join(near)}?" if near else "mlscale spark profile list shows what there is"
            raise errors.InvalidInputError("KEY", key, fix) from exc
        except ValueError as exc:
            fix = f"{path} cannot be read ({exc}); forget it, or let the next run set it aside and learn anew"
            raise errors.InvalidInputError("KEY", key, fix) from exc

    def forget(self, key: str) -> bool:
        """Remove a profile, readable or not; returns whether there was one.

        Raises:
            TransientError: it cannot be removed.
        """
        path = self._path(key)
        try:
            self._files.rm_file(path)
        except FileNotFoundError:
            return False
        except Exception as exc:
            raise _failed(f"remove the profile {path}", exc) from exc
        return True

    def save(self, profile: Profile) -> None:
        path = self._path(profile.key)
        partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
        try:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(partial, json.dumps(profiles.to_json(profile), indent=1).encode())
            self._files.mv(partial, path)
        except Exception as exc:
            with contextlib.suppress(Exception):  # a full disk takes a part of it
                self._files.rm_file(partial)
            raise _failed(f"write the profile {path}", exc) from exc

    def _text(self, path: str) -> bytes:
        try:
            found: bytes = self._files.cat_file(path)
        except FileNotFoundError:
            raise
        except Exception as exc:
            raise _failed(f"read the profile {path}", exc) from exc
        return found

    def _entry(self, path: str) -> Entry:
        try:
            return Entry(path=path, profile=_parsed(self._text(path)))
        except (ValueError, FileNotFoundError) as exc:  # also one that was removed in between
            return Entry(path=path, profile=None, problem=str(exc))

    def _set_aside(self, path: str, why: ValueError) -> None:
        aside = f"{path}.corrupt-{int(time.time())}"
        try:
            self._files.mv(path, aside)
            log.warning("the profile %s cannot be read (%s); set aside as %s, learning anew", path, why, aside)
        except Exception as exc:
            log.warning("the profile %s cannot be read (%s) nor moved (%s); learning anew", path, why, exc)

    def _path(self, key: str) -> str:
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", key).strip("-.")[:80] or "profile"
        # Two keys must never share a file, however similar they look once they are made readable.
        return f"{self._root}/{readable}-{sha256(key.encode()).hexdigest()[:8]}.json"


def _failed(what: str, why: Exception) -> errors.TransientError:
    return errors.TransientError(f"cannot {what}: {type(why).__name__}: {why}")


def _parsed(text: bytes, key: str | None = None) -> Profile:
    """The profile in a file.

    Raises:
        ValueError: it is none, or another application's than ``key``; also text that is neither JSON nor UTF-8.
    """
    found = profiles.from_json(json.loads(text))
    if key is not None and found.key != key:
        raise ValueError(f"it is the profile of {found.key!r}, not of {key!r}")
    return found
