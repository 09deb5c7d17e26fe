"""One model's line as a whole: who may join it, who leaves it unanswered, and which requests run together next.

Pure: the time is an argument; whoever drives it (a `replica`, a simulation) runs the batches and answers.
Every request that was let in comes out exactly once: in a batch, given up, or displaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

from airflow_mlscale.roma import batching, measurement, model, queueing, service_time, settings

RequestT = TypeVar("RequestT", bound=queueing.Waiting)

TRUSTED_SAMPLES = 8
"""Executions that must have been seen before a prediction turns a request away."""

TRUSTED_FOR_S = 1.0
"""A prediction turns nobody away once nothing has been executed for this long: the machine may be faster again,
and a line that refuses everybody would never learn it."""


CAUTIOUS_PART = 0.5
"""Most of the objective that an execution is cautiously taken to need."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a request is not let in, and when another try may be."""

    why: str
    retry_after_s: float
    reason: str
    """In one word, for counting: ``late`` or ``full``."""


@dataclass(frozen=True, slots=True)
class Beside:
    """A device that works the line off beside the CPU."""

    times: service_time.ServiceTimes
    places: int


class Line(Generic[RequestT]):
    """The waiting requests of one version of a model, what was learned of it, and its meter."""

    def __init__(self, spec: model.ModelSpec, *, queue: settings.QueueSettings, batch: settings.BatchSettings) -> None:
        self.spec = spec
        self.limits = queue
        self.batch = batch
        self.queue: queueing.DeadlineQueue[RequestT] = queueing.DeadlineQueue()
        self.times = service_time.ServiceTimes()
        self.meter = measurement.Meter(lost_s=queue.lost_s(spec.objective.seconds))
        self.places = 1
        """Executions that may run side by side."""
        self.cores = inf
        """Cores they share; infinite without a ceiling."""
        self.batchable = True
        self.beside: list[Beside] = []
        """GPUs that take from the line too."""
        self._learned_at = -inf

    @property
    def cores_each(self) -> float:
        """Cores for one execution when every place is taken; never more than one thread can use."""
        return min(1.0, self.cores / self.places)

    def update(self, spec: model.ModelSpec) -> None:
        """Another objective, priority or limit from now on; what waits keeps its deadline."""
        self.spec = spec
        self.meter.lost_s = self.limits.lost_s(spec.objective.seconds)

    def join(self, now: float, request: RequestT, *, executing: int) -> tuple[Refusal | None, list[RequestT]]:
        """Let a request in, or say why not; the requests that had to make room for it come out.

        Refused are requests for which there is no room and those that, going by what was learned, would be
        given up anyway: their clients can still try elsewhere.

        Args:
            now: on the clock of the deadlines.
            request: the newcomer.
            executing: executions under way.
        """
        late_s = self._lateness_s(now, request, executing)
        if late_s > 0:
            why = f"it would be answered {1000 * late_s:.0f} ms too late behind {len(self.queue)} others"
            return Refusal(why=why, retry_after_s=late_s, reason="late"), []
        displaced = []
        while self._full(request):
            victim = self.queue.last_below(request.priority) if request.size <= self.limits.max_bytes else None
            if victim is None:
                break
            displaced.append(victim)
        if self._full(request):  # then nobody who had to go was let go for nothing: all below were not enough
            for victim in displaced:
                self.queue.push(victim)
            why = f"{len(self.queue)} requests ({self.queue.size} bytes) are waiting"
            return Refusal(why=why, retry_after_s=self.backlog_s(), reason="full"), []
        self.queue.push(request)
        return None, [victim for victim in displaced if not victim.gone]

    def give_up(self, now: float, *, executing: int) -> list[RequestT]:
        """Take out those whose answer would come after their give-up time even if they were next."""
        if not self._trusts(now, executing):
            return self.queue.sort_out(now, 0.0, 0.0)
        return self.queue.sort_out(now, self._alone_s(), self._cautious_s())

    def next_batch(self, now: float, *, executing: int) -> list[RequestT]:
        """The requests that run together next on the CPU, with a place free; empty if none waits."""
        return self.queue.take(self.batch_size(now, executing=executing))

    def batch_size(self, now: float, *, executing: int, device: Beside | None = None) -> int:
        """How many requests would run together next, on the CPU or on a device beside it; 0 if none waits."""
        if not len(self.queue):
            return 0
        count = batching.size(
            device.times if device else self.times,
            waiting=len(self.queue),
            # Where nothing can be in time any more, or has long, it must still not keep others from a core for long.
            slack_s=min(self.queue.slack_s(now), self.spec.objective.seconds),
            max_batch=self.most,
            min_gain=self.batch.min_gain,
            free=(device.places if device else self.places) - executing,
            cores=1.0 if device else self.cores_each,
        )
        return max(1, count)

    @property
    def most(self) -> int:
        """Most requests in one execution."""
        return self.spec.max_batch if self.batchable else 1

    def learn(self, now: float, size: int, seconds: float, *, executing: int) -> None:
        """An execution ended that ran beside ``executing - 1`` others."""
        self._learned_at = now
        self.times.learn(size, seconds, cores=min(1.0, self.cores / max(1, executing)))

    def heard(self, now: float) -> None:
        """A device beside the CPU has answered: predictions are fresh."""
        self._learned_at = now

    def next_check(self, now: float, *, executing: int) -> float:
        """When `give_up` may next have something to do."""
        if not self._trusts(now, executing):
            return self.queue.next_check(0.0, 0.0)
        return self.queue.next_check(self._alone_s(), self._cautious_s())

    def least_s(self) -> float:
        """Seconds of the quickest execution seen on any device; 0 if one of them was never timed."""
        return min(times.least_s for times in (self.times, *(one.times for one in self.beside)))

    def backlog_s(self) -> float:
        """Seconds to work off everything that waits."""
        return len(self.queue) * self._each_s()

    def _full(self, request: RequestT) -> bool:
        return len(self.queue) >= self.limits.max_requests or self.queue.size + request.size > self.limits.max_bytes

    def _trusts(self, now: float, executing: int) -> bool:
        """Whether what was learned is worth turning somebody away for."""
        lately = executing > 0 or now - self._learned_at <= TRUSTED_FOR_S
        return lately and all(one.samples >= TRUSTED_SAMPLES for one in (self.times, *(b.times for b in self.beside)))

    def _alone_s(self) -> float:
        """Seconds for one request on the fastest device."""
        return min((self.times.of(1, cores=self.cores_each), *(one.times.of(1) for one in self.beside)))

    def _cautious_s(self) -> float:
        """Seconds for one request on the fastest device that it hardly exceeds, but never most of the objective: where
        that is tight, caution would give up what may well be in time."""
        own_s = self.times.cautious(1, cores=self.cores_each)
        least_s = min((own_s, *(one.times.cautious(1) for one in self.beside)))
        return max(self._alone_s(), min(least_s, CAUTIOUS_PART * self.spec.objective.seconds))

    def _each_s(self) -> float:
        """Seconds in which the line gets one request shorter, all places at work."""
        own_s = self.times.each(self.most, cores=self.cores_each) / self.places
        if not self.beside:
            return own_s
        every_s = (own_s, *(one.times.each(self.most) / one.places for one in self.beside))
        return 1 / sum(1 / each_s for each_s in every_s) if all(every_s) else 0.0

    def _lateness_s(self, now: float, request: RequestT, executing: int) -> float:
        """By how much its answer is expected to come after its give-up time; ≤ 0 if it will be in time."""
        if not self._trusts(now, executing):
            return 0.0
        queue, each_s = self.queue, self._each_s()
        alone_s = self._alone_s()
        begin_s = now + (0.5 * alone_s if executing >= self.places else 0.0) + alone_s
        if begin_s + queue.ahead(request.priority, request.deadline) * each_s <= request.deadline:
            return 0.0
        ahead = queue.timely + queue.ahead_late(request.priority, request.give_up)
        return begin_s + ahead * each_s - request.give_up
