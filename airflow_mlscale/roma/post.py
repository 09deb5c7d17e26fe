"""Where the batches of one replica run: at its worker process, or at a session on a GPU.

Sends a batch off, watches that it does not hang, and hands back what came of it. Which batch, and when, is
decided by the `replica` and the dispatcher of the device.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Protocol

from airflow_mlscale.roma import dispatch, model, ports, request

_tokens = count(1)

HUNG_FACTOR = 50.0
HUNG_LEAST_S = 30.0
"""An execution that takes at least this long, and so many times what was expected, hangs once nobody waits for it."""


def hung_after_s(expected_s: float, limit_s: float) -> float:
    """Seconds after which an execution that nobody waits for hangs; ``limit_s`` where nothing is expected yet."""
    return min(limit_s, max(HUNG_LEAST_S, HUNG_FACTOR * expected_s)) if expected_s else limit_s


class Worker(Protocol):
    """What runs batches; see `ports.WorkerPort`."""

    def infer(self, calls: Sequence[model.Call]) -> asyncio.Future[ports.Served]: ...


class Owner(Protocol):
    """Who is told how executions end."""

    def served(self, post: Post, batch: list[request.Request], served: ports.Served, beside: int) -> None:
        """A batch was answered; it ran beside ``beside - 1`` others."""

    def dropped(self, post: Post, batch: list[request.Request]) -> None:
        """Its worker ended before it answered."""


@dataclass(frozen=True, slots=True)
class _Execution:
    token: int
    """Names it to the dispatcher."""
    batch: list[request.Request]
    began: float
    expected_s: float
    worker: Worker

    def waited_until(self) -> float:
        """When the last one in it gives up; infinitely long ago if all have."""
        return max((one.give_up for one in self.batch if not one.gone), default=-inf)


class Post:
    """One worker's executions for one replica."""

    def __init__(
        self,
        group: str,
        *,
        device: str,
        owner: Owner,
        dispatcher: dispatch.Dispatcher,
        execution_timeout_s: float,
        hung: Callable[[Worker], None],
    ) -> None:
        self.group = group
        self.device = device
        """``cpu``, ``gpu`` or ``emulated-gpu``."""
        self.executed = 0
        """Requests answered."""
        self.cpu_s = 0.0
        """CPU seconds that cost."""
        self.worker: Worker | None = None
        self._worker_cpu_s: float | None = None
        self._owner = owner
        self._dispatcher = dispatcher
        self._execution_timeout_s = execution_timeout_s
        self._hung = hung
        self._executing: dict[asyncio.Future[ports.Served], _Execution] = {}
        self._watches: dict[asyncio.Future[ports.Served], asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """Executions under way."""
        return len(self._executing)

    def requests(self) -> Iterator[request.Request]:
        """Those in them."""
        for execution in self._executing.values():
            yield from execution.batch

    def ends(self) -> list[float]:
        """When the executions under way should be over."""
        return [execution.began + execution.expected_s for execution in self._executing.values()]

    def hangs_at(self) -> float:
        """When the first of them takes too long to be counted on; infinite without any."""
        return min((dispatch.overdue_at(one.began, one.expected_s) for one in self._executing.values()), default=inf)

    def staff(self, worker: Worker | None) -> None:
        """Run at this worker from now on."""
        self.worker, self._worker_cpu_s = worker, None

    def run(self, now: float, batch: list[request.Request], *, expected_s: float) -> None:
        """Send a batch off; there must be a worker."""
        if self.worker is None:
            raise AssertionError("a batch without a worker")
        future = self.worker.infer([one.call for one in batch])
        for one in batch:
            one.began, one.batch, one.device = now, len(batch), self.device
        execution = self._executing[future] = _Execution(next(_tokens), batch, now, expected_s, self.worker)
        self._dispatcher.began(now, execution.token, self.group, expected_s=expected_s)
        future.add_done_callback(self._executed)
        self._watch(future, hung_after_s(expected_s, self._execution_timeout_s))

    def close(self) -> list[request.Request]:
        """Nothing runs here any more; what was under way comes out, and its answers go nowhere."""
        left = list(self.requests())
        self.worker = None
        for execution in self._executing.values():
            self._dispatcher.ended(time.monotonic(), execution.token)
        self._executing.clear()
        return left

    def _watch(self, future: asyncio.Future[ports.Served], after_s: float) -> None:
        self._watches[future] = asyncio.get_running_loop().call_later(after_s, self._look, future)

    def _look(self, future: asyncio.Future[ports.Served]) -> None:
        """It hangs, unless somebody waits for it: they may know that it takes long."""
        if (execution := self._executing.get(future)) is None:
            return
        now = time.monotonic()
        until = min(execution.waited_until(), execution.began + self._execution_timeout_s)
        if until > now:
            self._watch(future, until - now)
        else:
            self._hung(execution.worker)

    def _executed(self, future: asyncio.Future[ports.Served]) -> None:
        if watch := self._watches.pop(future, None):
            watch.cancel()
        beside = len(self._executing)
        execution = self._executing.pop(future, None)
        if execution is None:  # closed meanwhile
            if not future.cancelled():
                future.exception()  # it is known why
            return
        now = time.monotonic()
        if future.cancelled() or future.exception():
            self._dispatcher.ended(now, execution.token)
            self._owner.dropped(self, execution.batch)
        else:
            spent_core_s = self._count(execution, future.result())
            self._dispatcher.ended(now, execution.token, spent_core_s=spent_core_s)
            self._owner.served(self, execution.batch, future.result(), beside)
        self._dispatcher.run(time.monotonic())  # the place is free for another model too

    def _count(self, execution: _Execution, served: ports.Served) -> float | None:
        """CPU seconds since the worker's answer before: on average what one execution costs; None if not known."""
        self.executed += len(execution.batch)
        if execution.worker is not self.worker:  # a replaced one: its clock is another
            return None
        before, self._worker_cpu_s = self._worker_cpu_s, served.cpu_s
        if before is None:
            return None
        spent_s = max(0.0, served.cpu_s - before)
        self.cpu_s += spent_s
        return spent_s if self.device == "cpu" else None
