"""Archives that strangers made: only plain files come out, inside one directory, and no more than was allowed.

Neither paths that climb, nor links, nor devices, nor a few bytes that unfold to terabytes.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from airflow_mlscale import errors
from airflow_mlscale.roma.adapters import intake

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SUFFIXES = (".zip", *_TAR)

_MAX_HEADER_BYTES = 2**20
"""Of a tar member: the library would hold a longer one in memory."""

_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What the libraries raise for what is no archive, or is encrypted, or packed in another way than they know."""


_PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
"""How a tar file may be packed, by its first bytes."""


def is_archive(name: str) -> bool:
    """Whether a file is one, by its name."""
    return name.endswith(SUFFIXES)


def extract(archive: Path, name: str, intake_: intake.Intake) -> None:
    """Unpack into an intake.

    Args:
        archive: the file.
        name: what it was called, which tells its kind.
        intake_: where the files go.

    Raises:
        ModelArtefactError: it is no archive, or holds what is not allowed.
        StorageError: the disk refuses.
    """
    try:
        if name.endswith(".zip"):
            _extract_zip(archive, intake_)
        else:
            _extract_tar(archive, intake_)
    except errors.MlscaleError:
        raise
    except _BROKEN as exc:
        raise intake_.refusal(f"it cannot be unpacked: {exc}") from exc


def _extract_zip(archive: Path, intake_: intake.Intake) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if member.is_dir():
                continue
            if kind not in (0, stat.S_IFREG):
                raise intake_.refusal(f"{member.filename!r} in it is a link or a device")
            with opened.open(member) as stream:
                intake_.take(PurePosixPath(member.filename), stream)


def _extract_tar(archive: Path, intake_: intake.Intake) -> None:
    with _bounded(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as opened:
        for member in opened:
            if member.isdir():
                continue
            if not member.isreg():
                raise intake_.refusal(f"{member.name!r} in it is a link or a device")
            content = opened.extractfile(member)
            if content is None:
                raise AssertionError("a plain file without content")
            with content:
                intake_.take(PurePosixPath(member.name), content)


@contextmanager
def _bounded(archive: Path) -> Iterator[IO[bytes]]:
    """The unpacked stream; a single read of more than a header may have is refused."""
    with archive.open("rb") as raw:
        magic = raw.read(6)
    opener: Any = next((one for start, one in _PACKED.items() if magic.startswith(start)), open)
    with opener(archive, "rb") as stream:
        yield cast("IO[bytes]", _Bounded(stream))


class _Bounded:
    """What ``tarfile`` needs of a file. It reads contents in small pieces, and a header's text in one."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.seek = stream.seek
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header is too long")
        return self._stream.read(size)
