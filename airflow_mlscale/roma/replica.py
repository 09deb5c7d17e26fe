"""One version of one model: the way of a request from its line through its worker.

Event-driven: `Replica.pump` gives up what is hopeless and asks the dispatcher for a place whenever something may
have changed (an arrival, an answer, a new worker, a deadline), and never waits. Who may join the line, and what
runs together, is `line`'s choice; whose turn it is on a busy host `dispatch`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain
from math import ceil, inf

from airflow_mlscale import errors
from airflow_mlscale.roma import (
    answering,
    cores,
    dispatch,
    line,
    measurement,
    model,
    ports,
    post,
    queueing,
    seats,
    service_time,
    settings,
    supervision,
)
from airflow_mlscale.roma import request as requests

log = logging.getLogger(__name__)

Outcome = measurement.Outcome


Request = requests.Request
RefusedError = requests.RefusedError


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
        dispatcher: dispatch.Dispatcher | None = None,
    ) -> None:
        self.group = group
        self.line: line.Line[Request] = line.Line(spec, queue=config.queue, batch=config.batch)
        self.line.places = spec.threads(groups.host_cores)
        self.loaded: ports.Loaded | None = None
        self.supervisor = supervision.Supervisor(
            ports.LoadOrder(
                name=spec.name,
                version=spec.version,
                artefact=spec.files or spec.artefact,
                # As many as the host has cores: a model's bounds may change while its worker lives.
                threads=max(1, ceil(groups.host_cores)),
                max_batch=spec.max_batch,
                objective_s=spec.objective.seconds,
                runtime=spec.runtime,
            ),
            group=group,
            launcher=launcher,
            groups=groups,
            timing=config.worker,
            on_up=self._up,
            on_down=self._down,
        )
        self._config = config
        self._dispatcher = dispatcher or dispatch.Dispatcher(host_places=inf)
        self._host_cores = groups.host_cores
        self._answering = answering.Answering(self.line, lambda: max(self.back_in_s(), self.line.backlog_s()))
        self._cpu = post.Post(
            group,
            device="cpu",
            owner=self,
            dispatcher=self._dispatcher,
            execution_timeout_s=config.worker.execution_timeout_s,
            hung=self._replace_worker,
        )
        self.seats = seats.Table(self, self._cpu)
        """On GPUs; none for a model that runs on the CPU alone."""
        self._hung: set[asyncio.Task[None]] = set()
        self._left: deque[Request] = deque()
        """What a dead worker left: each runs alone, since one of them may have killed it."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = inf
        self._drained = asyncio.Event()

    @property
    def executions(self) -> int:
        """Batches at the CPU worker."""
        return len(self._cpu)

    @property
    def executed(self) -> int:
        """Requests answered by CPU workers."""
        return self._cpu.executed

    @property
    def cpu_s(self) -> float:
        """CPU seconds that cost."""
        return self._cpu.cpu_s

    def deadlines(self) -> list[float]:
        """Of what is at the CPU worker and of what waits and can still be in time, rising."""
        return sorted([*(request.deadline for request in self._cpu.requests()), *self.queue.deadlines()])

    @property
    def spec(self) -> model.ModelSpec:
        return self.line.spec

    @property
    def meter(self) -> measurement.Meter:
        return self.line.meter

    @property
    def times(self) -> service_time.ServiceTimes:
        return self.line.times

    @property
    def queue(self) -> queueing.DeadlineQueue[Request]:
        return self.line.queue

    @property
    def threads(self) -> int:
        """Executions that may run side by side now."""
        return self.line.places

    @property
    def waiting(self) -> int:
        return len(self.queue) + len(self._left)

    @property
    def executing(self) -> int:
        """Requests being executed, on whatever device."""
        return sum(1 for _ in chain(self._cpu.requests(), self.seats.executing()))

    async def start(self) -> None:
        """Start, load, warm up; raises what `Supervisor.start` raises."""
        await self.supervisor.start()

    def update(self, spec: model.ModelSpec) -> None:
        """Serve the same files under other settings from now on; what waits keeps its deadline."""
        self.line.update(spec)
        self.line.places = spec.threads(self._host_cores)
        self.pump()

    def allow(self, places: int, cores: float) -> None:
        """Run so many executions side by side from now on, on so many cores at most."""
        grown = places > self.line.places
        self.line.places, self.line.cores = places, cores
        if grown:
            self.pump()

    def accept(self, call: model.Call, deadline_s: float | None, priority: int = 0) -> Request:
        """Put a call in the line.

        Args:
            call: what to compute.
            deadline_s: from now, as the client set it; None for the objective.
            priority: a higher one goes first, from -`queueing.MAX_PRIORITY` to `queueing.MAX_PRIORITY`.

        Raises:
            InvalidInputError: the priority is out of range, or the deadline shorter than any execution was.
            RefusedError: the line is full or would be too slow (429), or no worker will be back in time (503).
        """
        if abs(priority) > queueing.MAX_PRIORITY:
            fix = f"give an integer between -{queueing.MAX_PRIORITY} and {queueing.MAX_PRIORITY}"
            raise errors.InvalidInputError("priority", priority, fix)
        if deadline_s is not None and deadline_s < (least_s := self.line.least_s()):
            # Nobody's overload: it must not count against the model.
            fix = f"the quickest execution of model {self.spec.name!r} took {1000 * least_s:.3g} ms; give more, or none"
            raise errors.InvalidInputError("deadline_ms", f"{1000 * deadline_s:g}", fix)
        now = time.monotonic()
        self.meter.arrive(now)
        budget_s = deadline_s or self._config.queue.give_up_factor * self.spec.objective.seconds
        request = Request(
            call,
            asyncio.get_running_loop().create_future(),
            arrived=now,
            deadline=now + (deadline_s or self.spec.objective.seconds),
            give_up=now + budget_s,
            priority=priority,
        )
        back_s = self.back_in_s()
        if back_s > budget_s:
            self.meter.record(now, Outcome.SHED, budget_s, "no_worker")
            why = f"model {self.spec.name!r} is {self.supervisor.state}: {self.supervisor.reason}"
            raise RefusedError(why, status=503, retry_after_s=back_s)
        refusal, displaced = self.line.join(now, request, executing=len(self._cpu))
        for other in displaced:
            self._answering.give_up(
                other, now, "more important requests took its place", status=429, reason="displaced"
            )
        if refusal:
            self.meter.record(now, Outcome.SHED, budget_s, refusal.reason)
            why = f"model {self.spec.name!r} is overloaded: {refusal.why}"
            raise RefusedError(why, status=429, retry_after_s=refusal.retry_after_s)
        self.pump()
        return request

    def forget(self, request: Request) -> None:
        """The client went away: what has not begun is not computed."""
        if not request.gone:
            request.answer.cancel()
            self.queue.remove(request)
            self.meter.record(time.monotonic(), Outcome.CANCELLED, 0.0)

    def back_in_s(self) -> float:
        """Expected seconds until something answers again; 0 when something does."""
        return 0.0 if self.seats.open else self.supervisor.back_in_s()

    def pump(self) -> None:
        """Give up what is hopeless and let begin what may begin."""
        now = time.monotonic()
        for request in [request for request in self._under_way() if request.give_up <= now]:
            why = "it is still being executed"
            self._answering.give_up(request, now, why, outcome=Outcome.FAILED, reason="executing")
        for request in self.line.give_up(now, executing=len(self._cpu)):
            self._answering.give_up(request, now)
        self._dispatcher.offer(now, self)
        self.seats.offer(now)
        self._set_timer(now)
        if not self.waiting and not self.executing:
            self._drained.set()

    def standing(self, now: float) -> dispatch.Standing | None:
        """For the dispatcher: how urgent the next execution is; None without work, worker or free place."""
        if not self._cpu.worker or not self.waiting or len(self._cpu) >= self.line.places:
            return None
        if self.seats and not self._left and not self.seats.leaves(now):
            return None
        urgent = min((request.give_up for request in self._left), default=inf)
        return dispatch.Standing(
            name=self.group,
            deadline=min(urgent, self.queue.deadline()),
            oldest=self._oldest() if self._dispatcher.order == "arrival" else 0.0,
            service_s=self.times.of(1, cores=self.line.cores_each),
            executing=len(self._cpu),
            priority=self.spec.priority,
            entitled=self._dispatcher.entitled(now, self.group),
            need_s=self._need_s(now) if self._dispatcher.order == "h1" else 0.0,
        )

    def begin(self, now: float) -> None:
        """For the dispatcher: run the next batch on the CPU."""
        batch = self.next_left() or self.line.next_batch(now, executing=len(self._cpu))
        if batch and self._cpu.worker:
            self.meter.batches[len(batch)] += 1
            self._cpu.run(now, batch, expected_s=self.times.of(len(batch), cores=self.line.cores_each))

    def nudge(self, now: float) -> None:
        """For a seat: look again whether the CPU should take the next batch."""
        self._dispatcher.offer(now, self)
        self._set_timer(now)

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
        if self._timer:
            self._timer.cancel()
        now = time.monotonic()
        left = [*self._left, *self.queue.take(len(self.queue)), *self._cpu.close(), *self.seats.clear()]
        for request in left:
            self._answering.give_up(request, now, "it is being shut down", reason="shutdown")
        self._left.clear()
        self._dispatcher.forget(self.group)
        await self.supervisor.end()

    def next_left(self) -> list[Request]:
        """One that a dead worker left, alone; empty if there is none."""
        while self._left:
            if not (request := self._left.popleft()).gone:
                return [request]
        return []

    def _oldest(self) -> float:
        return min((request.arrived for request in (*self._left, *self.queue)), default=inf)

    def _need_s(self, now: float) -> float:
        waits = [now - request.arrived for request in self.queue]
        recent = self._answering.recent
        return dispatch.need_s(
            waited_s=sum(waits) / len(waits) if waits else 0.0,
            recent_s=sum(recent) / len(recent) if recent else 0.0,
            service_s=self.times.of(1, cores=self.line.cores_each),
            sla_s=self.spec.objective.seconds,
            alpha=self._config.control.paper.alpha,
        )

    def _replace_worker(self, hung: post.Worker) -> None:
        """Its supervisor starts another once it has ended."""
        for worker in (self.supervisor.outgoing, self.supervisor.worker):
            if worker and worker is hung:
                log.error("%s: worker %d hangs in an execution; ending it", self.spec.name, worker.pid)
                task = asyncio.ensure_future(worker.end())
                self._hung.add(task)
                task.add_done_callback(self._hung.discard)

    def served(self, at: post.Post, batch: list[Request], served: ports.Served, beside: int) -> None:
        """For a post: a batch was answered; it ran beside ``beside - 1`` others."""
        now = time.monotonic()
        if at is self._cpu and any(answer.status < 400 for answer in served.answers):  # refusing takes no time
            self.line.learn(now, len(batch), served.service_s, executing=beside)
        self.seats.count(at, len(batch))
        for request, answer in zip(batch, served.answers, strict=True):
            self._answering.answer(request, answer, now)
        self.pump()

    def dropped(self, at: post.Post, batch: list[Request]) -> None:
        """For a post: its worker ended before it answered."""
        self._recover(batch, time.monotonic())
        self.pump()

    def _recover(self, batch: list[Request], now: float) -> None:
        """Inference has no side effects, so a call whose worker died is asked once more if there is time."""
        ready = now + self.back_in_s() + self.times.of(1)
        for request in batch:
            if request.gone:
                continue
            if request.retried or ready > request.give_up:
                self._answering.fail(request, now, "its worker ended")
            else:
                request.retried = True
                self._left.append(request)

    def _up(self, worker: ports.WorkerPort, loaded: ports.Loaded) -> None:
        self._cpu.staff(worker)
        self.loaded = loaded
        self.line.batchable = loaded.batchable
        for size, seconds in loaded.service_s.items():
            self.times.start(size, seconds)
        self.pump()

    def _down(self) -> None:
        self._cpu.staff(None)
        self.pump()

    def _set_timer(self, now: float) -> None:
        """Wake up for the next deadline in the line, in case nothing else happens before it."""
        check = self.line.next_check(time.monotonic(), executing=len(self._cpu))
        due = min(check, self._left[0].give_up if self._left else inf)
        if self._cpu.worker and self.waiting and len(self._cpu) < self.line.places:
            due = min(due, self._dispatcher.looks_again_at(now, self.times.of(1, cores=self.line.cores_each)))
        due = min(due, self.seats.looks_again_at(now) if self.waiting else inf)
        due = min(due, min((request.give_up for request in self._under_way()), default=inf))
        if self._timer and self._timer_due <= due:
            return
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if due < inf:
            wait_s = max(0.005, due - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._timed_out)
            self._timer_due = due

    def _under_way(self) -> Iterator[Request]:
        """What is executed somewhere, and still waited for."""
        return (request for request in chain(self._cpu.requests(), self.seats.executing()) if not request.gone)

    def _timed_out(self) -> None:
        self._timer = None
        now = time.monotonic()
        for request in [request for request in self._left if request.give_up <= now]:
            self._left.remove(request)
            self._answering.fail(request, now, "its worker ended and none came back in time")
        self.pump()
