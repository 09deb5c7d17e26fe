"""A directory that is being filled with a model from outside: what may go in, and how much.

It either becomes an entry of the cache in one step, or leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from airflow_mlscale import errors
from airflow_mlscale.roma import settings

_CHUNK_BYTES = 2**20


class StorageError(errors.TransientError):
    """The daemon's own disk refuses: it is full, or not writable."""


@contextmanager
def storing(directory: Path) -> Iterator[None]:
    """Errors of the disk as what they are.

    Raises:
        StorageError: the disk refuses.
    """
    try:
        yield
    except OSError as exc:
        told = f"the model cannot be kept in {directory} ({exc.strerror or exc}); make room there"
        raise StorageError(told, retry_after_s=60) from exc


class Intake:
    """Files under one directory, within limits."""

    def __init__(self, directory: Path, source: str, limits: settings.ArtefactSettings) -> None:
        self.directory = directory
        self._source = source
        self._limits = limits
        self._files = 0
        self._bytes = 0
        with storing(directory):
            directory.mkdir(parents=True)

    @property
    def empty(self) -> bool:
        """Whether nothing was taken in."""
        return self._files == 0

    def take(self, name: PurePosixPath, stream: IO[bytes]) -> Path:
        """Write one file.

        Raises:
            ModelArtefactError: its path leads elsewhere or is taken, or it is one too many, or too large.
            StorageError: the disk refuses.
        """
        path = self._place(name)
        with storing(self.directory):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb", buffering=0)
        with file:
            while chunk := stream.read(_CHUNK_BYTES):  # its errors are the stream's
                self._bytes += len(chunk)
                if self._bytes > self._limits.max_bytes:
                    raise self.refusal(f"it is larger than {self._limits.max_bytes} bytes; see --max-artefact-gb")
                with storing(self.directory):
                    left = memoryview(chunk)
                    while left:
                        left = left[file.write(left) :]
            with storing(self.directory):
                os.fsync(file.fileno())
        return path

    def refusal(self, why: str) -> errors.ModelArtefactError:
        """The error for something about it that is not allowed."""
        return errors.ModelArtefactError("artefact", self._source, why)

    def discard(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _place(self, name: PurePosixPath) -> Path:
        parts = [part for part in name.parts if part != "."]
        bad = name.is_absolute() or not parts or ".." in parts or any("\\" in part or "\0" in part for part in parts)
        if bad:
            raise self.refusal(f"{str(name)!r} in it leads elsewhere")
        self._files += 1
        if self._files > self._limits.max_files:
            raise self.refusal(f"it has more than {self._limits.max_files} files")
        path = self.directory.joinpath(*parts)
        above = path.parents[: len(parts) - 1]
        if os.path.lexists(path) or any(one.is_file() for one in above):
            raise self.refusal(f"{str(name)!r} in it is there twice")
        return path
