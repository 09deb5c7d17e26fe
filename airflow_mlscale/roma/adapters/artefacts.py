"""Models on the local disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.roma import model


class LocalArtefacts:
    """SavedModel directories, optionally confined to one root."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root.resolve() if root else None

    def check(self, artefact: str) -> tuple[Path, str]:
        """The resolved path and a fingerprint of names, sizes and modification times.

        Raises:
            ModelArtefactError: it is no path of a SavedModel, lies outside the root or cannot be read.
        """
        if "://" in artefact:
            raise errors.ModelArtefactError("artefact", artefact, "give a directory on ROMA's own host, not a URL")
        with _readable("artefact", artefact):
            path = self._resolved(artefact)
            if not path.is_dir():
                fix = "no such directory; give the path of a SavedModel"
                raise errors.ModelArtefactError("artefact", artefact, fix)
            if not _is_saved_model(path):
                raise errors.ModelArtefactError("artefact", artefact, _not_a_model(path))
            return path, _fingerprint(path)

    def find(self, name: str) -> tuple[Path, str] | None:
        """``<root>/<name>`` itself (version 1), or the highest of its numbered version directories.

        Raises:
            ModelArtefactError: it cannot be read.
        """
        if self.root is None or not model.NAME.fullmatch(name):
            return None
        with _readable("model", name):
            path = (self.root / name).resolve()
            if not path.is_relative_to(self.root) or not path.is_dir():
                return None
            if _is_saved_model(path):
                return path, "1"
            versions = _versions(path)
            return (path / versions[-1], versions[-1]) if versions else None

    def _resolved(self, artefact: str) -> Path:
        path = Path(artefact).expanduser()
        if not path.is_absolute():
            if self.root is None:
                raise errors.ModelArtefactError("artefact", artefact, "give an absolute path (no model root is set)")
            path = self.root / path
        path = path.resolve()  # before the check, so that neither '..' nor a link leads out of the root
        if self.root and not path.is_relative_to(self.root):
            raise errors.ModelArtefactError("artefact", artefact, f"it lies outside the model root {self.root}")
        return path


@contextmanager
def _readable(field: str, value: str) -> Iterator[None]:
    """What Python says of paths that the system refuses: errors of the system, of encodings and of user names."""
    try:
        yield
    except errors.ModelArtefactError:
        raise
    except (OSError, ValueError, RuntimeError) as exc:
        fix = f"it cannot be read ({exc}); give the path of a SavedModel that ROMA may read"
        raise errors.ModelArtefactError(field, value, fix) from exc


def _is_saved_model(path: Path) -> bool:
    return (path / "saved_model.pb").is_file() or (path / "saved_model.pbtxt").is_file()


def _versions(path: Path) -> list[str]:
    names = [one.name for one in path.iterdir() if one.name.isdecimal() and _is_saved_model(one)]
    return sorted(names, key=int)


def _not_a_model(path: Path) -> str:
    if versions := _versions(path):
        return f"it holds version directories ({', '.join(versions)}): give one of them, such as {path / versions[-1]}"
    return "it is not a TensorFlow SavedModel (no saved_model.pb); write one with keras.Model.export(path)"


def _fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        status = file.stat()
        digest.update(f"{file.relative_to(path)}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]
