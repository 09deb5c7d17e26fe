"""Where models come from, and the daemon's own copies of them.

A model is copied, downloaded or unpacked into ``<cache>/<checksum>/`` when it is deployed, in one step or not at all;
workers read that copy. So a deployed version stays what it was, whatever becomes of the place it came from, and the
same files are kept once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from airflow_mlscale import errors
from airflow_mlscale.roma import model, ports, settings
from airflow_mlscale.roma.adapters import archives, checksums, downloads, formats, intake

log = logging.getLogger(__name__)

_INCOMING = ".incoming-"
_YOUNG_S = 3600.0
"""A copy that was asked for this lately is kept, wanted or not: its deployment may be under way."""


class ArtefactStore:
    """A `ports.ArtefactPort` over a directory that no other daemon uses."""

    def __init__(self, cache: Path, root: Path | None = None, limits: settings.ArtefactSettings | None = None) -> None:
        self.root = root.resolve() if root else None
        self._cache = cache
        self._limits = limits or settings.ArtefactSettings()

    def fetch(self, artefact: str, checksum: str | None = None) -> ports.Artefact:
        if downloads.is_url(artefact):
            return self._fetch_url(artefact, checksum)
        with _readable("artefact", artefact):
            path = self._resolved(artefact)
            return self._fetch_path(path, checksum)

    def find(self, name: str) -> tuple[Path, str] | None:
        if self.root is None or not model.NAME.fullmatch(name):
            return None
        with _readable("model", name):
            path = (self.root / name).resolve()
            if not path.is_relative_to(self.root) or not path.is_dir():
                return None
            if formats.find(path):
                return path, "1"
            versions = _versions(path)
            return (path / versions[-1], versions[-1]) if versions else None

    def listed(self) -> dict[str, str]:
        if self.root is None or not self.root.is_dir():
            return {}
        found = {}
        for name in sorted(os.listdir(self.root)):
            with contextlib.suppress(errors.ModelArtefactError):
                if place := self.find(name):
                    found[name] = place[1]
        return found

    def prune(self, keep: Collection[str]) -> None:
        if not self._cache.is_dir():
            return
        young = time.time() - _YOUNG_S
        for entry in self._cache.iterdir():
            if entry.name in keep or not model.CHECKSUM.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime < young:
                    shutil.rmtree(entry)
                    log.info("removed %s: no version needs it", entry)

    def sweep(self) -> None:
        """Remove what a crash left half-done; only before anything is fetched."""
        for entry in self._cache.glob(f"{_INCOMING}*"):
            shutil.rmtree(entry, ignore_errors=True)

    def _fetch_path(self, path: Path, checksum: str | None) -> ports.Artefact:
        source = str(path)
        if path.is_file() and archives.is_archive(path.name):
            with self._incoming(source) as incoming:
                return self._unpacked(path, source, incoming, checksum, checksums.of(path))
        if not path.exists():
            raise errors.ModelArtefactError("artefact", source, f"no such directory or file; give {formats.KNOWN}")
        if path.suffix == ".xml":
            raise errors.ModelArtefactError("artefact", source, "give the directory that holds it and its .bin file")
        if formats.find(path) is None:
            raise errors.ModelArtefactError("artefact", source, _not_a_model(path))
        found = checksums.of(path)
        _compare(source, checksum, found)
        if kept := self._kept(source, found):
            return kept
        with self._incoming(source, limited=False) as incoming:
            self._copy(path, incoming)
            return self._keep(source, incoming, incoming.directory)

    def _fetch_url(self, url: str, checksum: str | None) -> ports.Artefact:
        allowed = self._limits.urls if self._limits.urls or self.root else None
        downloads.check(url, allowed)
        source = downloads.shown(url)
        if checksum and (kept := self._kept(source, checksum)):
            return kept
        with self._incoming(source) as incoming:
            downloads.download(url, incoming)
            inside = list(incoming.directory.iterdir())
            if len(inside) == 1 and inside[0].is_file() and archives.is_archive(inside[0].name):
                packed = checksums.of(inside[0])
                with self._incoming(source) as unpacked:
                    return self._unpacked(inside[0], source, unpacked, checksum, packed)
            return self._keep(source, incoming, incoming.directory, checksum)

    def _unpacked(
        self, archive: Path, source: str, incoming: intake.Intake, checksum: str | None, packed: str
    ) -> ports.Artefact:
        if checksum == packed:
            checksum = None  # it is the archive's own
        archives.extract(archive, archive.name, incoming)
        return self._keep(source, incoming, _inside(incoming.directory), checksum)

    def _keep(
        self, source: str, incoming: intake.Intake, directory: Path, checksum: str | None = None
    ) -> ports.Artefact:
        """Make what came in an entry of the cache."""
        found = formats.find(directory)
        if found is None:
            raise errors.ModelArtefactError("artefact", source, _not_a_model(directory))
        total = checksums.of(directory)
        _compare(source, checksum, total)
        if kept := self._kept(source, total):
            return kept
        with intake.storing(self._cache):
            directory.rename(self._cache / total)
            _sync(self._cache)
        kept = self._kept(source, total)
        if kept is None:
            raise AssertionError("what was just put there is gone")
        return kept

    def _kept(self, source: str, checksum: str) -> ports.Artefact | None:
        entry = self._cache / checksum
        if not entry.is_dir() or (found := formats.find(entry)) is None:
            return None
        os.utime(entry)
        return ports.Artefact(source=source, files=found[1], checksum=checksum)

    @contextlib.contextmanager
    def _incoming(self, source: str, *, limited: bool = True) -> Iterator[intake.Intake]:
        limits = self._limits if limited else settings.ArtefactSettings(max_bytes=2**63, max_files=2**31)
        incoming = intake.Intake(self._cache / f"{_INCOMING}{secrets.token_hex(8)}", source, limits)
        try:
            yield incoming
        finally:
            incoming.discard()

    def _copy(self, path: Path, incoming: intake.Intake) -> None:
        names = checksums.files(path) if path.is_dir() else [path.name]
        base = path if path.is_dir() else path.parent
        for name in names:
            if self.root and not (base / name).resolve().is_relative_to(self.root):
                raise incoming.refusal(f"{name!r} in it is a link out of the model root {self.root}")
            with (base / name).open("rb") as stream:
                incoming.take(PurePosixPath(name), stream)

    def _resolved(self, artefact: str) -> Path:
        path = Path(artefact).expanduser()
        if not path.is_absolute():
            if self.root is None:
                fix = "give an absolute path (no model root is set) or a URL"
                raise errors.ModelArtefactError("artefact", artefact, fix)
            path = self.root / path
        path = path.resolve()  # before the check, so that neither '..' nor a link leads out of the root
        if self.root and not path.is_relative_to(self.root):
            raise errors.ModelArtefactError("artefact", artefact, f"it lies outside the model root {self.root}")
        return path


@contextlib.contextmanager
def _readable(field: str, value: str) -> Iterator[None]:
    """What Python says of paths that the system refuses: errors of the system, of encodings and of user names."""
    try:
        yield
    except errors.MlscaleError:
        raise
    except (OSError, ValueError, RuntimeError) as exc:
        fix = f"it cannot be read ({exc}); give the path of a model that ROMA may read"
        raise errors.ModelArtefactError(field, value, fix) from exc


def _compare(source: str, wanted: str | None, found: str) -> None:
    if wanted and wanted != found:
        fix = f"the files of {source} have {found}; the model is another one, or was damaged on its way"
        raise errors.ModelArtefactError("checksum", wanted, fix)


def _inside(directory: Path) -> Path:
    """Where the model is: archives often hold a single directory that holds everything."""
    while formats.find(directory) is None:
        inside = list(directory.iterdir())
        if len(inside) != 1 or not inside[0].is_dir():
            break
        directory = inside[0]
    return directory


def _versions(path: Path) -> list[str]:
    names = [one.name for one in path.iterdir() if one.name.isdecimal() and one.is_dir() and formats.find(one)]
    return sorted(names, key=int)


def _not_a_model(path: Path) -> str:
    if path.is_dir() and (versions := _versions(path)):
        return f"it holds version directories ({', '.join(versions)}): give one of them, such as {path / versions[-1]}"
    return f"it is not {formats.KNOWN}; keras.Model.export(path) writes the first"


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
