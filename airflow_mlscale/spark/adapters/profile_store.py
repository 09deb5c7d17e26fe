"""Profiles as JSON files in any folder that fsspec reaches: local, s3://, gs://, …"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from hashlib import sha256

from airflow_mlscale import errors
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark import profile as profiles
from airflow_mlscale.spark.model import Profile

log = logging.getLogger(__name__)


class ProfileFiles:
    """`ProfileStore` over fsspec: one file for each application."""

    def __init__(self, folder: str | None = None) -> None:
        """Keep profiles in ``folder``; default is ``profiles`` in the home directory of local services.

        Raises:
            InvalidInputError: no installed file system serves that address.
        """
        import fsspec

        self.folder = (folder or str(processes.home() / "profiles")).rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.folder)
        except (ValueError, ImportError) as exc:
            raise errors.InvalidInputError("profile_store", folder, f"{exc}; use a path or an fsspec address") from exc

    def load(self, key: str) -> Profile | None:
        path = self._path(key)
        try:
            text = self._files.cat_file(path)
        except FileNotFoundError:
            return None
        except OSError as exc:
            # The job matters more than its profile: it runs as if for the first time.
            log.warning("cannot read the profile %s, going without: %s", path, exc)
            return None
        try:
            return profiles.from_json(json.loads(text))
        except ValueError as exc:  # includes text that is neither JSON nor UTF-8
            self._set_aside(path, exc)
            return None

    def save(self, profile: Profile) -> None:
        path = self._path(profile.key)
        partial = f"{path}.{uuid.uuid4().hex[:8]}.partial"
        try:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(partial, json.dumps(profiles.to_json(profile), indent=1).encode())
            self._files.mv(partial, path)
        except OSError as exc:
            raise errors.TransientError(f"cannot write the profile {path}: {exc}") from exc

    def _set_aside(self, path: str, why: ValueError) -> None:
        aside = f"{path}.corrupt-{int(time.time())}"
        try:
            self._files.mv(path, aside)
            log.warning("the profile %s cannot be read (%s); set aside as %s, learning anew", path, why, aside)
        except OSError as exc:
            log.warning("the profile %s cannot be read (%s) nor moved (%s); learning anew", path, why, exc)

    def _path(self, key: str) -> str:
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", key).strip("-.")[:80] or "profile"
        # Two keys must never share a file, however similar they look once they are made readable.
        return f"{self._root}/{readable}-{sha256(key.encode()).hexdigest()[:8]}.json"
