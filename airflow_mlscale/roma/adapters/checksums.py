"""Checksums of models, as anybody can work them out with ``sha256sum``."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def of(path: Path) -> str:
    """Of a single file, its sha256. Of several, the sha256 of the lines ``sha256sum`` writes of them, by path.

    In a shell: ``find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum``.
    """
    if path.is_file():
        return _of_file(path)
    names = sorted(files(path), key=os.fsencode)
    if len(names) == 1:
        return _of_file(path / names[0])
    lines = [f"{_of_file(path / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def files(directory: Path) -> list[str]:
    """The paths of all files in a directory, relative to it."""
    return [one.relative_to(directory).as_posix() for one in directory.rglob("*") if one.is_file()]


def _of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
