"""A model's seat on a GPU: its session in the GPU's executor, beside its CPU worker, fed from the same line.

Who gets a seat is `placement.place`'s choice, which device runs the next batch `placement.takes`'. A `Lane` is
what waits for one GPU: all models that have a seat on it, the most urgent first.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Protocol

from airflow_mlscale.roma import dispatch, line, placement, ports, post, request, service_time

CPU_PART_REQUESTS = 200
"""Requests over which the part of them that the CPU answers is averaged."""


class Diner(post.Owner, Protocol):
    """The replica that has seats."""

    group: str
    line: line.Line[request.Request]
    seats: Table

    @property
    def waiting(self) -> int: ...

    def next_left(self) -> list[request.Request]:
        """One that a dead worker left, alone; empty if there is none."""

    def pump(self) -> None:
        """Let begin what may begin."""

    def nudge(self, now: float) -> None:
        """Look again whether the CPU should take the next batch."""


class Lane:
    """One GPU's places, and the seats that share them."""

    def __init__(self, *, places: int) -> None:
        self.places = places
        self.dispatcher = dispatch.Dispatcher(host_places=places)
        self.seats: dict[str, Seat] = {}
        """By group."""

    def ready_s(self, now: float, seat: Seat) -> float:
        """Seconds until it could begin there; infinite while an execution hangs."""
        if any(one.hangs(now) for one in self.seats.values()):
            return inf
        ends = sorted(end for one in self.seats.values() for end in one.ends)
        wait_s = max(0.0, ends[len(ends) - self.places] - now) if len(ends) >= self.places else 0.0
        return wait_s + sum(other.next_s() for other in self._before(seat)) / self.places

    def looks_again_at(self, now: float) -> float:
        """When what is under way would hang, if it does not end: those who count on this GPU look again then."""
        return min((at for one in self.seats.values() if (at := one.hangs_at()) > now), default=inf)

    def nudge(self, now: float) -> None:
        """Something has changed here: who waits may be better off on the CPU."""
        for one in list(self.seats.values()):
            if one.diner.waiting:
                one.diner.nudge(now)

    def _before(self, seat: Seat) -> Iterable[Seat]:
        deadline = seat.diner.line.queue.deadline()
        others = (one for one in self.seats.values() if one is not seat and not one.closing)
        return (one for one in others if one.diner.line.queue.deadline() < deadline)


class Seat:
    """A `dispatch.Candidate` of its GPU's lane."""

    def __init__(
        self,
        diner: Diner,
        lane: Lane,
        *,
        gpu: str,
        device: str,
        worker: post.Worker,
        loaded: ports.Seated,
        execution_timeout_s: float,
        hung: Callable[[post.Worker], None],
    ) -> None:
        self.diner = diner
        self.gpu = gpu
        """UUID."""
        self.loaded = loaded
        self.group = diner.group
        self.closing = False
        """Whether it takes nothing more."""
        self.executions = 0
        """Batches it answered."""
        self.beside = line.Beside(service_time.ServiceTimes(), lane.places)
        for size, seconds in loaded.service_s.items():
            self.beside.times.start(size, seconds)
        self.post = post.Post(
            diner.group,
            device=device,
            owner=self,
            dispatcher=lane.dispatcher,
            execution_timeout_s=execution_timeout_s,
            hung=hung,
        )
        self.post.staff(worker)
        self._lane = lane

    @property
    def device(self) -> str:
        return self.post.device

    @property
    def ends(self) -> list[float]:
        """When its executions should be over."""
        return self.post.ends()

    def next_s(self) -> float:
        """Seconds of its next batch, if one waits."""
        waiting = min(self.diner.waiting, self.diner.line.most)
        return self.beside.times.of(waiting) if waiting else 0.0

    def hangs_at(self) -> float:
        """When the execution under way that is due first counts as hanging; infinite without one."""
        return self.post.hangs_at()

    def hangs(self, now: float) -> bool:
        return self.hangs_at() <= now

    def option(self, now: float) -> placement.Option:
        """What this device expects of the next batch."""
        own, times = self.diner.line, self.beside.times
        batch = own.batch_size(now, executing=min(len(self.post), self._lane.places - 1), device=self.beside)
        return placement.option(
            ready_s=self._lane.ready_s(now, self),
            batch_s=times.of(max(1, batch)),
            batch=batch,
            waiting=len(own.queue),
            each_s=times.each(own.most) / self._lane.places,
        )

    def looks_again_at(self, now: float) -> float:
        """When the choice between this device and the CPU may come out differently, if nothing happens."""
        return self._lane.looks_again_at(now)

    def standing(self, now: float) -> dispatch.Standing | None:
        """For the lane's dispatcher."""
        if self.closing or self._lane.ready_s(now, self) == inf or not self.diner.seats.prefers(self, now):
            return None
        return dispatch.Standing(
            name=self.group,
            deadline=self.diner.line.queue.deadline(),
            oldest=0.0,
            service_s=self.next_s(),
            executing=self._lane.places,  # it never begins beyond the GPU's places, as a short one may on cores
            priority=self.diner.line.spec.priority,
        )

    def begin(self, now: float) -> None:
        """For the lane's dispatcher: run the next batch."""
        if batch := self.diner.seats.take(self, now):
            self.post.run(now, batch, expected_s=self.beside.times.of(len(batch)))

    def offer(self, now: float) -> None:
        """Something may have changed for its model."""
        if not self.closing:
            self._lane.dispatcher.offer(now, self)

    def open(self) -> None:
        """Begin to take from the line."""
        self._lane.seats[self.group] = self
        self.diner.line.beside.append(self.beside)

    def close(self) -> None:
        """Take nothing more; what is under way goes on. May be called again."""
        self.closing = True
        if self.beside in self.diner.line.beside:
            self.diner.line.beside.remove(self.beside)
        self._lane.dispatcher.forget(self.group)
        self._leave_lane()

    def served(self, at: post.Post, batch: list[request.Request], served: ports.Served, beside: int) -> None:
        """For the post."""
        now = time.monotonic()
        self.executions += 1
        if any(answer.status < 400 for answer in served.answers):  # refusing a call takes no time
            self.beside.times.learn(len(batch), served.service_s)
            self.diner.line.heard(now)
        self.diner.served(at, batch, served, beside)
        self._leave_lane()
        self._lane.nudge(now)

    def dropped(self, at: post.Post, batch: list[request.Request]) -> None:
        """For the post."""
        self.diner.dropped(at, batch)
        self._leave_lane()

    def _leave_lane(self) -> None:
        """Once it is closed and nothing of it runs any more."""
        if self.closing and not len(self.post) and self._lane.seats.get(self.group) is self:
            del self._lane.seats[self.group]


class Table:
    """The seats of one replica, and how its line is divided between them and its CPU worker."""

    def __init__(self, diner: Diner, cpu: post.Post) -> None:
        self.cpu_part = 1.0
        """Of the requests answered lately, those that the CPU worker answered."""
        self.answered: Counter[str] = Counter()
        """Requests by the device that answered them."""
        self.executions: Counter[str] = Counter()
        """Batches by the device that executed them."""
        self._diner = diner
        self._cpu = cpu
        self._seats: list[Seat] = []

    def __iter__(self) -> Iterator[Seat]:
        return iter(list(self._seats))

    def __bool__(self) -> bool:
        return bool(self._seats)

    @property
    def open(self) -> list[Seat]:
        """Those that take from the line."""
        return [seat for seat in self._seats if not seat.closing]

    def add(self, seat: Seat) -> None:
        """From now on a GPU takes from the line too."""
        self._seats.append(seat)
        seat.open()
        self._diner.pump()

    def close(self, seat: Seat, *, lost: bool = False) -> bool:
        """A GPU takes no more from the line; whether nothing runs there any more.

        Args:
            seat: which; one that is gone already is nothing to do.
            lost: whether it will not answer what it has under way; another device does then.
        """
        seat.close()
        if seat in self._seats and (lost or not len(seat.post)):
            self._seats.remove(seat)
            left = seat.post.close()
            seat.close()
            if left:
                self._diner.dropped(seat.post, left)
        if not self._seats:
            self.cpu_part = 1.0
        self._diner.pump()
        return seat not in self._seats

    def clear(self) -> list[request.Request]:
        """Close all; what they had under way comes out."""
        left: list[request.Request] = []
        for seat in self:
            left += seat.post.close()
            seat.close()
        self._seats.clear()
        return left

    def offer(self, now: float) -> None:
        """Something may have changed in the line."""
        for seat in self:
            seat.offer(now)

    def executing(self) -> Iterator[request.Request]:
        for seat in self._seats:
            yield from seat.post.requests()

    def count(self, at: post.Post, batch: int) -> None:
        """A batch of so many requests was answered somewhere."""
        self.answered[at.device] += batch
        self.executions[at.device] += 1
        if self._seats:
            self.cpu_part += min(1.0, batch / CPU_PART_REQUESTS) * (float(at is self._cpu) - self.cpu_part)

    def take(self, seat: Seat, now: float) -> list[request.Request]:
        """The next batch for a seat. What a dead worker left is for the CPU, if it has one."""
        batch = [] if self._cpu.worker else self._diner.next_left()
        if batch:
            return batch
        own = self._diner.line
        busy = min(len(seat.post), seat.beside.places - 1)
        return own.queue.take(own.batch_size(now, executing=busy, device=seat.beside))

    def prefers(self, seat: Seat, now: float) -> bool:
        """Whether the next batch should run at this seat."""
        own = self._diner.line
        if not len(own.queue):
            return self._diner.waiting > 0 and not self._cpu.worker
        others = [one.option(now) for one in self.open if one is not seat]
        if self._cpu.worker and own.spec.device != "gpu":
            others.append(self._cpu_option(now))
        return placement.takes(seat.option(now), others, slack_s=own.queue.slack_s(now))

    def leaves(self, now: float) -> bool:
        """Whether the next batch should run on the CPU."""
        own = self._diner.line
        options = [option for seat in self.open if (option := seat.option(now)).first_s < inf]
        if options and own.spec.device == "gpu":
            return False
        return placement.takes(self._cpu_option(now), options, slack_s=own.queue.slack_s(now))

    def looks_again_at(self, now: float) -> float:
        """When what waits for a GPU should wait for it no longer."""
        return min((seat.looks_again_at(now) for seat in self._seats), default=inf)

    def _cpu_option(self, now: float) -> placement.Option:
        own = self._diner.line
        busy, cores = len(self._cpu), own.cores_each
        batch = own.batch_size(now, executing=min(busy, own.places - 1))
        return placement.option(
            ready_s=max(0.0, min(self._cpu.ends()) - now) if busy >= own.places else 0.0,
            batch_s=own.times.of(max(1, batch), cores=cores),
            batch=batch,
            waiting=len(own.queue),
            each_s=own.times.each(own.most, cores=cores) / own.places,
        )
