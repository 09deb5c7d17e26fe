"""How long a graph of stages takes on so many cores, and how many cores bring it to its end in time.

A fluid picture of Spark's FIFO scheduler: stages that wait for nothing share the cores in their order, none
uses more than it has tasks to run, and the work of the one behind begins when those before it have ended.
Graham's list-scheduling bounds (1969) hold: never below work ÷ cores, never below the critical path.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf

_NOTHING = 1e-9
_PRECISION = 2e-3
"""Relative, of the time: far below what a share of cores can be kept to."""
_MOST_TRIALS = 30


@dataclass(frozen=True)
class Phase:
    """Part of a stage in which a fixed number of tasks can run at once."""

    work_core_s: float
    parallelism: float
    """Cores that it can use at most, ≥ 1."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """What is left of one stage."""

    phases: tuple[Phase, ...]
    """One after the other: the bulk of its tasks, the last incomplete wave, the longest task."""
    after: tuple[int, ...] = ()
    """Positions of the nodes that must end before."""
    gap_s: float = 0.0
    """Seconds from their end to its begin that no core shortens."""

    @property
    def work_core_s(self) -> float:
        return sum(phase.work_core_s for phase in self.phases)


def phases(work_core_s: float, *, tasks: int, slots: float, longest_core_s: float = 0.0) -> tuple[Phase, ...]:
    """The phases of ``tasks`` tasks on ``slots`` slots.

    Full waves use every slot; the last, incomplete one as many as it has tasks; and a task longer than the
    mean is taken to be the one that begins last, so that it runs alone for the rest of its length.

    Args:
        work_core_s: work of all the tasks together.
        tasks: how many are left, running ones included.
        slots: tasks that can run at once.
        longest_core_s: work of the longest task; 0 when unknown.
    """
    if work_core_s <= _NOTHING:
        return ()
    tasks = max(1, tasks)
    mean = work_core_s / tasks
    alone = min(max(0.0, longest_core_s - mean), work_core_s - mean)
    last = tasks % max(1, int(slots)) if tasks > slots else 0
    share = (work_core_s - alone) / tasks
    parts = (Phase(share * (tasks - last), float(tasks)), Phase(share * last, float(max(1, last))), Phase(alone, 1.0))
    return tuple(part for part in parts if part.work_core_s > _NOTHING)


def duration_s(nodes: Sequence[Node], cores: float) -> float:
    """Seconds until the last node has ended; infinite without cores as long as there is work.

    Args:
        nodes: in the order in which they are served; ``after`` names earlier positions only.
        cores: cores for all of them together.
    """
    return _duration_s(nodes, _followers(nodes), cores)


def cores_within(nodes: Sequence[Node], time_s: float) -> float:
    """Least cores with which all nodes end within ``time_s``; infinite when no number of cores suffices.

    Found by false position (Illinois variant) on seconds over 1/cores, which is nearly a straight line.
    """
    work = sum(node.work_core_s for node in nodes)
    if work <= _NOTHING * max(1.0, time_s):  # cores that are nothing do it
        return 0.0
    followers = _followers(nodes)
    fastest_s = _duration_s(nodes, followers, inf)
    if time_s <= 0 or fastest_s > time_s:
        return inf
    slow, slow_s = time_s / work, _duration_s(nodes, followers, work / time_s)  # slow and fast are 1/cores
    if slow_s <= time_s * (1 + _PRECISION):
        return 1 / slow
    fast, fast_s = 0.0, fastest_s
    over, under = slow_s - time_s, fast_s - time_s
    for _ in range(_MOST_TRIALS):
        trial = fast + (slow - fast) * -under / (over - under) if over - under > _NOTHING else (fast + slow) / 2
        trial_s = _duration_s(nodes, followers, 1 / trial) if trial > 0 else fastest_s
        if trial_s > time_s:
            slow, over, under = trial, trial_s - time_s, under / 2
        else:
            fast, under, over = trial, trial_s - time_s, over / 2
            if time_s - trial_s <= _PRECISION * time_s:
                break
    return 1 / fast if fast > 0 else inf


@dataclass(slots=True, eq=False)
class _Running:
    """A node that has begun, in one of its phases; changed in place: this is where a decision spends its time."""

    position: int
    left: list[Phase]
    work_core_s: float
    parallelism: float
    speed: float = 0.0


def _followers(nodes: Sequence[Node]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in nodes]
    for position, node in enumerate(nodes):
        for before in node.after:
            found[before].append(position)
    return found


def _duration_s(nodes: Sequence[Node], followers: Sequence[Sequence[int]], cores: float) -> float:
    if cores <= _NOTHING and any(node.phases for node in nodes):
        return inf
    now = 0.0
    waits = [len(node.after) for node in nodes]
    begins = [(node.gap_s, position) for position, node in enumerate(nodes) if not node.after]
    heapify(begins)
    running: list[_Running] = []
    while begins or running:
        while begins and begins[0][0] <= now + _NOTHING:
            insort(running, _begun(nodes, heappop(begins)[1]), key=_position)
        seconds, ended = _advance(running, cores, until=begins[0][0] - now if begins else inf)
        now += seconds
        for each in ended:
            running.remove(each)
            for position in followers[each.position]:
                waits[position] -= 1
                if not waits[position]:
                    heappush(begins, (now + nodes[position].gap_s, position))
    return now


def _begun(nodes: Sequence[Node], position: int) -> _Running:
    first, *left = nodes[position].phases or (Phase(0.0, 1.0),)
    return _Running(position, left, first.work_core_s, first.parallelism)


def _position(running: _Running) -> int:
    return running.position


def _advance(running: Sequence[_Running], cores: float, *, until: float) -> tuple[float, list[_Running]]:
    """Let time pass until a phase ends or ``until`` seconds are over; returns how much passed, and who ended."""
    seconds, served = until, []
    for each in running:
        if each.work_core_s <= _NOTHING:
            seconds, each.speed = 0.0, 0.0
            served.append(each)
            continue
        if cores <= _NOTHING:
            continue
        each.speed = speed = each.parallelism if each.parallelism < cores else cores
        cores -= speed
        served.append(each)
        if each.work_core_s < seconds * speed:
            seconds = each.work_core_s / speed
    ended = []
    for each in served:
        each.work_core_s -= each.speed * seconds
        if each.work_core_s > _NOTHING:
            continue
        if not each.left:
            ended.append(each)
            continue
        phase = each.left.pop(0)
        each.work_core_s, each.parallelism = phase.work_core_s, phase.parallelism
    return seconds, ended
