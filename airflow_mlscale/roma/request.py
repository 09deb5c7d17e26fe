"""One accepted request, and how it is turned away."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from math import ceil

from airflow_mlscale import errors
from airflow_mlscale.roma import model


class RefusedError(errors.TransientError):
    """A request that is not served now; ``status`` is the HTTP status it gets."""

    def __init__(self, message: str, *, status: int, retry_after_s: float) -> None:
        super().__init__(message, retry_after_s=max(1.0, retry_after_s))
        self.status = status


@dataclass(slots=True, eq=False)
class Request:
    """One accepted request; times are of the monotonic clock (uvloop's own only counts milliseconds)."""

    call: model.Call
    answer: asyncio.Future[model.Answer]
    arrived: float
    deadline: float
    give_up: float
    priority: int = 0
    retried: bool = False
    began: float | None = None
    """When its execution began, the last one if it was executed twice."""
    batch: int = 0
    """Requests executed together with it, itself included."""
    device: str = ""
    """What it was executed on: ``cpu``, ``gpu`` or ``emulated-gpu``; empty before that."""

    @property
    def size(self) -> int:
        return len(self.call.body)

    @property
    def gone(self) -> bool:
        return self.answer.done()


def retry_after(seconds: float) -> int:
    """Seconds for a Retry-After header: whole, and at least one."""
    return max(1, ceil(seconds))
