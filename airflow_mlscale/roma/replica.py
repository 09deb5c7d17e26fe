"""One version of one model: its waiting line and the way of a request through it.

Event-driven: `Replica.pump` moves requests from the line to the worker whenever something may have changed
(an arrival, an answer, a new worker, a deadline) and never waits.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections import deque
from dataclasses import dataclass
from math import ceil, inf

from airflow_mlscale import errors
from airflow_mlscale.roma import cores, measurement, model, policy, ports, queueing, settings, supervision

log = logging.getLogger(__name__)

Outcome = measurement.Outcome


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
    retried: bool = False

    @property
    def size(self) -> int:
        return len(self.call.body)

    @property
    def gone(self) -> bool:
        return self.answer.done()


class Replica:
    """Serves one version with one worker at a time."""

    def __init__(
        self,
        spec: model.ModelSpec,
        *,
        group: str,
        launcher: ports.LauncherPort,
        groups: cores.CoreGroups,
        config: settings.Settings,
    ) -> None:
        self.spec = spec
        self.group = group
        self.threads = spec.threads(groups.host_cores)
        self.meter = measurement.Meter(lost_s=config.queue.lost_s(spec.objective.seconds))
        self.times = policy.ServiceTimes()
        self.queue: queueing.DeadlineQueue[Request] = queueing.DeadlineQueue()
        self.loaded: ports.Loaded | None = None
        self.executed = 0
        """Requests answered by workers."""
        self.cpu_s = 0.0
        """CPU seconds that cost."""
        self.supervisor = supervision.Supervisor(
            ports.LoadOrder(
                name=spec.name,
                version=spec.version,
                artefact=spec.artefact,
                threads=self.threads,
                max_batch=spec.max_batch,
                objective_s=spec.objective.seconds,
            ),
            group=group,
            launcher=launcher,
            groups=groups,
            timing=config.worker,
            on_up=self._up,
            on_down=self._down,
        )
        self._config = config
        self._worker: ports.WorkerPort | None = None
        self._worker_cpu_s: float | None = None
        self._executing: dict[asyncio.Future[ports.Served], list[Request]] = {}
        self._hung: set[asyncio.Task[None]] = set()
        self._left: deque[Request] = deque()
        """What a dead worker left: each runs alone, since one of them may have killed it."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = inf
        self._drained = asyncio.Event()

    @property
    def waiting(self) -> int:
        return len(self.queue) + len(self._left)

    @property
    def executing(self) -> int:
        return sum(len(batch) for batch in self._executing.values())

    async def start(self) -> None:
        """Start, load, warm up; raises what `Supervisor.start` raises."""
        await self.supervisor.start()

    def update(self, spec: model.ModelSpec) -> None:
        """Serve the same files under other settings from now on."""
        self.spec = spec
        self.meter.lost_s = self._config.queue.lost_s(spec.objective.seconds)

    def accept(self, call: model.Call, deadline_s: float | None) -> Request:
        """Put a call in the line; ``deadline_s`` from now as the client set it, or None for the objective.

        Raises:
            RefusedError: the line is full (429), or no worker will be back in time (503).
        """
        now = time.monotonic()
        self.meter.arrive(now)
        budget_s = deadline_s or self._config.queue.give_up_factor * self.spec.objective.seconds
        self._refuse_if_full(now, budget_s, len(call.body))
        back_s = self.supervisor.back_in_s()
        if back_s > budget_s:
            self.meter.record(now, Outcome.SHED, budget_s)
            raise RefusedError(
                f"model {self.spec.name!r} is {self.supervisor.state}: {self.supervisor.reason}",
                status=503,
                retry_after_s=back_s,
            )
        request = Request(
            call,
            asyncio.get_running_loop().create_future(),
            arrived=now,
            deadline=now + (deadline_s or self.spec.objective.seconds),
            give_up=now + budget_s,
        )
        self.queue.push(request)
        self.pump()
        return request

    def _refuse_if_full(self, now: float, budget_s: float, size: int) -> None:
        limits = self._config.queue
        if len(self.queue) < limits.max_requests and self.queue.size + size <= limits.max_bytes:
            return
        self.meter.record(now, Outcome.SHED, budget_s)
        raise RefusedError(
            f"model {self.spec.name!r} is overloaded: {len(self.queue)} requests ({self.queue.size} bytes) are waiting",
            status=429,
            retry_after_s=len(self.queue) * self.times.of(1) / self.threads,
        )

    def forget(self, request: Request) -> None:
        """The client went away: what has not begun is not computed."""
        if not request.gone:
            request.answer.cancel()
            self.meter.record(time.monotonic(), Outcome.CANCELLED, 0.0)

    def pump(self) -> None:
        """Give up what is hopeless and fill the free places at the worker."""
        now = time.monotonic()
        for request in self.queue.sort_out(now, self.times.of(1)):
            self._shed(request, now)
        while self._worker and self.waiting and len(self._executing) < self.threads:
            batch = self._next_batch(now)
            if not batch:
                break
            future = self._worker.infer([request.call for request in batch])
            self._executing[future] = batch
            watch = asyncio.get_running_loop().call_later(
                self._config.worker.execution_timeout_s, self._replace_worker, self._worker
            )
            future.add_done_callback(functools.partial(self._executed, watch))
        self._set_timer()
        if not self.waiting and not self._executing:
            self._drained.set()

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything accepted is answered; False if time ran out."""
        self._drained.clear()
        self.pump()
        if self._drained.is_set():  # even with no time at all
            return True
        try:
            await asyncio.wait_for(self._drained.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def end(self) -> None:
        """End the worker; whatever still waits is told to try again."""
        self._worker = None
        if self._timer:
            self._timer.cancel()
        now = time.monotonic()
        left = [*self._left, *self.queue.take(len(self.queue)), *(r for b in self._executing.values() for r in b)]
        for request in left:
            self._shed(request, now, "it is being shut down")
        self._left.clear()
        await self.supervisor.end()

    def _next_batch(self, now: float) -> list[Request]:
        while self._left:
            if not (request := self._left.popleft()).gone:
                return [request]
        most = self.spec.max_batch if self.loaded and self.loaded.batchable else 1
        count = policy.batch_size(
            self.times,
            waiting=len(self.queue),
            slack_s=self.queue.slack_s(now),
            max_batch=most,
            min_gain=self._config.batch.min_gain,
        )
        return self.queue.take(count)

    def _replace_worker(self, worker: ports.WorkerPort) -> None:
        """Its supervisor starts another once it has ended."""
        log.error("%s: worker %d hangs in an execution; ending it", self.spec.name, worker.pid)
        task = asyncio.ensure_future(worker.end())
        self._hung.add(task)
        task.add_done_callback(self._hung.discard)

    def _executed(self, watch: asyncio.TimerHandle, future: asyncio.Future[ports.Served]) -> None:
        watch.cancel()
        batch = self._executing.pop(future)
        now = time.monotonic()
        if future.cancelled() or future.exception():
            self._recover(batch, now)
        else:
            served = future.result()
            self.times.learn(len(batch), served.service_s)
            self.executed += len(batch)
            if self._worker_cpu_s is not None:
                self.cpu_s += max(0.0, served.cpu_s - self._worker_cpu_s)
            self._worker_cpu_s = served.cpu_s
            for request, answer in zip(batch, served.answers, strict=True):
                self._answer(request, answer, now)
        self.pump()

    def _answer(self, request: Request, answer: model.Answer, now: float) -> None:
        if request.gone:
            return
        latency_s = now - request.arrived
        if answer.status < 400:
            self.meter.record(now, Outcome.SERVED, latency_s)
        elif answer.status < 500:
            self.meter.record(now, Outcome.INVALID, latency_s)
        else:
            self.meter.record(now, Outcome.FAILED, max(latency_s, request.give_up - request.arrived))
        request.answer.set_result(answer)

    def _recover(self, batch: list[Request], now: float) -> None:
        """Inference has no side effects, so a call whose worker died is asked once more if there is time."""
        ready = now + self.supervisor.back_in_s() + self.times.of(1)
        for request in batch:
            if request.gone:
                continue
            if request.retried or ready > request.give_up:
                self._shed(request, now, "its worker ended", Outcome.FAILED)
            else:
                request.retried = True
                self._left.append(request)

    def _shed(self, request: Request, now: float, why: str = "", outcome: Outcome = Outcome.SHED) -> None:
        if request.gone:
            return
        budget_ms = 1000 * (request.give_up - request.arrived)
        why = why or f"it cannot be answered within {budget_ms:.0f} ms"
        self.meter.record(now, outcome, request.give_up - request.arrived)
        request.answer.set_exception(
            RefusedError(
                f"model {self.spec.name!r} gave the request up after {1000 * (now - request.arrived):.0f} ms: {why}",
                status=503,
                retry_after_s=self.supervisor.back_in_s(),
            )
        )

    def _up(self, worker: ports.WorkerPort, loaded: ports.Loaded) -> None:
        self._worker, self._worker_cpu_s, self.loaded = worker, None, loaded
        for size, seconds in loaded.service_s.items():
            self.times.means.setdefault(size, seconds)
        self.pump()

    def _down(self) -> None:
        self._worker = None
        self.pump()

    def _set_timer(self) -> None:
        """Wake up for the next deadline in the line, in case nothing else happens before it."""
        due = min(self.queue.next_check() - self.times.of(1), self._left[0].give_up if self._left else inf)
        if self._timer and self._timer_due <= due:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if due < inf:
            wait_s = max(0.005, due - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._timed_out)
            self._timer_due = due

    def _timed_out(self) -> None:
        self._timer = None
        now = time.monotonic()
        for request in [request for request in self._left if request.give_up <= now]:
            self._left.remove(request)
            self._shed(request, now, "its worker ended and none came back in time", Outcome.FAILED)
        self.pump()


def retry_after(seconds: float) -> int:
    """Seconds for a Retry-After header: whole, and at least one."""
    return max(1, ceil(seconds))
