"""What is written down about each request: metrics, the access log, traces."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.roma.adapters import metrics, tracing

log = logging.getLogger("roma.access")

CLIENT_LEFT = 499
"""nginx's status for a client that closed the connection."""

REQUEST_ID = b"x-request-id"
"""Names a request to its client, in the log and to feedback: the client's own, or one of ours."""

_ID = re.compile(rb"[!-~]{1,128}")
_LONGEST_PATH = 400


@dataclass(slots=True)
class Note:
    """What is learned of a request on its way."""

    id: str
    headers: Mapping[bytes, bytes]
    token: str | None = None
    """Name of the token that it came with."""
    version: str | None = None
    """Of the model, that was asked last."""
    request: replicas.Request | None = None
    """As it stood in that version's line."""

    @property
    def queue_s(self) -> float | None:
        """Seconds it waited in the line; None if it was never executed."""
        request = self.request
        return request.began - request.arrived if request and request.began is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request that has ended."""

    protocol: str
    """``v2``, ``tfs``, ``v2-grpc``, ``tfs-grpc`` or ``http``."""
    client: str
    method: str
    path: str
    status: int
    seconds: float
    size: int
    """Bytes of the request's body."""
    sent: int = 0
    """Bytes of the answer's."""
    model: str | None
    """Whose inference was asked for."""
    note: Note = field(repr=False)


_current: ContextVar[Note | None] = ContextVar("ROMA request", default=None)


def begin(headers: Mapping[bytes, bytes]) -> Note:
    """A note about the request that this task has begun to answer."""
    given = headers.get(REQUEST_ID)
    name = given.decode("ascii") if given is not None and _ID.fullmatch(given) else secrets.token_hex(8)
    note = Note(name, headers)
    _current.set(note)
    return note


def routed(version: str) -> None:
    """The request of this task is put to a version of its model."""
    if note := _current.get():
        note.version, note.request = version, None


def request_id() -> str | None:
    """Of the request of this task."""
    note = _current.get()
    return note.id if note else None


def accepted(request: replicas.Request) -> None:
    """It stands in that version's line."""
    if note := _current.get():
        note.request = request


class AccessBook:
    """Counts inference, and logs and traces where that is wanted.

    Args:
        counted: for Prometheus.
        logged: whether to log every request.
        path: file for that; None for the logger ``roma.access``.
        tracer: None for no traces.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(
        self,
        counted: metrics.Metrics,
        *,
        logged: bool,
        path: Path | None = None,
        tracer: tracing.Tracer | None = None,
    ) -> None:
        self._metrics = counted
        self._logged = logged
        self._file = _LogFile(path) if logged and path else None
        self._tracer = tracer

    def enter(self, entry: Entry) -> None:
        """One request ended."""
        self._count(entry)
        if self._tracer and entry.model is not None:
            self._tracer.record(_Traced(entry))
        if self._logged:
            line = json.dumps(_document(entry))
            if self._file:
                self._file.write(line)
            else:
                log.info(line)

    def close(self) -> None:
        if self._file:
            self._file.close()
        if self._tracer:
            self._tracer.close()

    def _count(self, entry: Entry) -> None:
        if entry.status == CLIENT_LEFT:
            return
        if entry.model is None or entry.status in (404, 405):  # names that do not exist must not become series
            if entry.status >= 400:
                self._metrics.refused(entry.protocol, entry.status)
        elif entry.method == "POST":
            note = entry.note
            version = note.version or ""
            self._metrics.observe(entry.model, version, entry.protocol, entry.status, entry.seconds)
            if (queue_s := note.queue_s) is not None:
                self._metrics.waited(entry.model, version, queue_s)


class _Traced:
    """An entry as `tracing` wants it: on the clock of `time.time_ns`."""

    def __init__(self, entry: Entry) -> None:
        now_ns, now = time.time_ns(), time.monotonic()

        def at(monotonic: float) -> int:
            return now_ns - round(1e9 * (now - monotonic))

        note, request = entry.note, entry.note.request
        self.name = f"{entry.method} {entry.path[:_LONGEST_PATH]}" if entry.protocol in ("v2", "tfs") else entry.path
        self.headers = note.headers
        self.failed = entry.status >= 500
        # A little time has passed since the seconds were counted; the steps still lie within the whole.
        arrived_ns = at(request.arrived) if request else now_ns
        self.begin_ns, self.end_ns = min(arrived_ns, now_ns - round(1e9 * entry.seconds)), now_ns
        self.steps: Sequence[tuple[str, int, int]] = []
        if request is not None and request.began is not None:
            began = at(request.began)
            self.steps = [("queue", arrived_ns, began), ("execute", began, now_ns)]
        elif request is not None:
            self.steps = [("queue", arrived_ns, now_ns)]
        self.attributes: Mapping[str, Any] = {
            "mlscale.model": entry.model or "",
            "mlscale.version": note.version or "",
            "mlscale.protocol": entry.protocol,
            "mlscale.request_id": note.id,
            "mlscale.batch": request.batch if request else 0,
            "mlscale.status": entry.status,
        }


class _LogFile:
    """Lines in a file, which is opened anew once it was moved away, as logrotate does."""

    def __init__(self, path: Path) -> None:
        self._handler = _Handler(path, encoding="utf-8")

    def write(self, line: str) -> None:
        self._handler.handle(logging.LogRecord("roma.access", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what a full disk did not take was told of
            self._handler.close()


class _Handler(logging.handlers.WatchedFileHandler):
    """Tells once of a file that cannot be written (a full disk), not for every request."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._told:
            self._told = True
            logging.getLogger(__name__).error("the access log cannot be written: %s", sys.exc_info()[1])


def _document(entry: Entry) -> dict[str, Any]:
    note = entry.note
    queue_s = note.queue_s
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": note.id,
        "client": entry.client,
        "token": note.token,
        "protocol": entry.protocol,
        "method": entry.method,
        "path": entry.path[:_LONGEST_PATH],
        "model": entry.model,
        "version": note.version,
        "status": entry.status,
        "ms": round(1000 * entry.seconds, 3),
        "queue_ms": None if queue_s is None else round(1000 * queue_s, 3),
        "batch": note.request.batch if note.request else None,
        "device": note.request.device or None if note.request else None,
        "bytes": entry.size,
        "sent": entry.sent,
    }
