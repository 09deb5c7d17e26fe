"""The decision journal: one record for each control step, read by logs, UI, benchmarks and restarts.

Belongs here: recording, thinning and reading back. What a record means belongs to the engine that wrote it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import IO, Any

log = logging.getLogger(__name__)

Value = float | int | str | bool | None


@dataclass(frozen=True, kw_only=True)
class Record:
    """One control step."""

    at: float
    """Wall time, seconds since the epoch."""
    subject: str
    """Who was controlled: an application, a run, a model."""
    seen: Mapping[str, Value]
    """What was measured."""
    decided: Mapping[str, Value]
    """What was done about it."""
    reason: str
    """Why, in words a person understands."""
    changed: bool = True
    """Whether this step changed something; logs show only those."""


RECORD_BYTES = 1024
"""More than a record takes in a file, on average."""
LEAST_BYTES = 2**20
"""Of an earlier journal are read at least."""


@dataclass
class Journal:
    """Keeps the latest records in memory, appends all of them to a file if one is given, tells listeners.

    A file that cannot be written any more (a full disk) is told of once and given up: who controls goes on.

    Raises:
        OSError: the file cannot be opened.
    """

    path: Path | None = None
    keep: int = 5000
    _records: deque[Record] = field(init=False)
    _listeners: list[Callable[[Record], None]] = field(default_factory=list, init=False)
    _file: IO[str] | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self._records = deque(maxlen=self.keep)
        if self.path is not None:
            self._open(self.path)

    def _open(self, path: Path) -> None:
        self._records.extend(read(path, last_bytes=max(LEAST_BYTES, self.keep * RECORD_BYTES)))
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = _ends_whole(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        if not whole:  # a crash cut the last line short: the next record must not join it
            self._file.write("\n")

    def append(self, record: Record) -> None:
        """Keep, write and announce one record; a listener that raises is reported and passed over."""
        line = json.dumps(vars(record))
        with self._lock:
            self._records.append(record)
            self._write(line)
        for listener in self._listeners:
            try:
                listener(record)
            except Exception:  # who listens must not stop who controls
                log.exception("a listener of the decision journal failed")

    def _write(self, line: str) -> None:
        try:
            if self._file:
                self._file.write(line + "\n")
        except OSError as exc:
            log.warning("the decision journal %s ends here: %s", self.path, exc)
            self._drop_file()

    def _drop_file(self) -> None:
        file, self._file = self._file, None
        with contextlib.suppress(OSError):  # what is still buffered cannot be written either
            if file:
                file.close()

    def listen(self, listener: Callable[[Record], None]) -> None:
        """Call ``listener`` with each new record, in the thread that appends it."""
        self._listeners.append(listener)

    def records(self) -> list[Record]:
        return list(self._records)

    def last(self) -> Record | None:
        return self._records[-1] if self._records else None

    def close(self) -> None:
        with self._lock:
            self._drop_file()


def read(path: Path, *, last_bytes: int | None = None) -> list[Record]:
    """Records of a journal file; a last line cut short by a crash is dropped, a missing file is empty.

    Args:
        path: the file.
        last_bytes: read no more than these, of a file that may have grown for months; None for all of it.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        skipped = 0 if last_bytes is None else max(0, path.stat().st_size - last_bytes)
        file.seek(skipped)
        content = file.read()
    if skipped:  # the first line is probably cut
        content = content.partition(b"\n")[2]
    records = []
    for line in content.decode("utf-8").splitlines():
        try:
            records.append(Record(**json.loads(line)))
        except (json.JSONDecodeError, TypeError):
            continue
    return records


def from_rows(rows: Iterable[Mapping[str, Any]]) -> list[Record]:
    """The records that `thin` turned into JSON-able rows."""
    return [Record(**row) for row in rows]


def thin(records: Iterable[Record], *, points: int = 500, size_bytes: int = 60_000) -> list[dict[str, object]]:
    """At most ``points`` JSON-able records, evenly spread and always with the last, within ``size_bytes`` as JSON.

    Numbers that JSON does not know (infinite, not a number) become None. A single record larger than
    ``size_bytes`` is returned all the same.
    """
    kept = _spread(list(records), points)
    while True:
        rows = [_jsonable(record) for record in kept]
        size = len(json.dumps(rows))
        if size <= size_bytes or len(kept) <= 1:
            return rows
        kept = _spread(kept, max(1, int(len(kept) * size_bytes / size * 0.95)))


def _spread(records: list[Record], points: int) -> list[Record]:
    if len(records) <= points:
        return records
    return [records[(i + 1) * len(records) // points - 1] for i in range(points)]


def _jsonable(record: Record) -> dict[str, object]:
    return {
        **vars(record),
        **{
            name: {
                key: None if isinstance(value, float) and not isfinite(value) else value for key, value in part.items()
            }
            for name, part in (("seen", record.seen), ("decided", record.decided))
        },
    }


def _ends_whole(path: Path) -> bool:
    """Whether the file is empty, missing, or ends with a line break."""
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"
