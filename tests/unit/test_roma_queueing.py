"""The order of the waiting line."""

from __future__ import annotations

from dataclasses import dataclass

import hypothesis
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from airflow_mlscale.roma import queueing


@dataclass
class Item:
    deadline: float
    give_up: float
    size: int = 1
    gone: bool = False
    priority: int = 0


def line(*items: Item) -> queueing.DeadlineQueue[Item]:
    queue: queueing.DeadlineQueue[Item] = queueing.DeadlineQueue()
    for item in items:
        queue.push(item)
    return queue


def test_the_earliest_deadline_goes_first() -> None:
    late, soon = Item(9, 90), Item(3, 90)
    assert [soon, late] == line(late, soon).take(2)


def test_equal_deadlines_keep_their_order_of_arrival() -> None:
    first, second = Item(3, 9, size=1), Item(3, 9, size=2)
    assert [first, second] == line(first, second).take(5)


def test_a_late_request_waits_behind_one_that_can_still_make_it() -> None:
    late, timely = Item(1.0, 50), Item(5, 50)
    queue = line(late, timely)
    assert queue.sort_out(now=0.9, service_s=0.2, cautious_s=0.2) == []  # 0.9 + 0.2 > 1.0, but far from 50
    assert [timely, late] == queue.take(2)


def test_who_is_in_time_only_if_all_goes_well_lets_the_sure_ones_pass() -> None:
    doubtful, sure = Item(1.0, 1.5), Item(5, 50)
    queue = line(doubtful, sure)
    assert queue.next_check(service_s=0.2, cautious_s=0.4) == 0.6
    assert queue.sort_out(now=0.7, service_s=0.2, cautious_s=0.4) == []
    assert (queue.deadline(), queue.timely) == (5, 1)
    assert queue.next_check(service_s=0.2, cautious_s=0.4) == 1.3  # its give-up time goes by what is expected
    assert [sure, doubtful] == queue.take(2)


def test_a_hopeless_request_is_taken_out() -> None:
    queue = line(Item(1, 10))
    assert queue.sort_out(now=9.0, service_s=0.5, cautious_s=0.5) == []  # 9.5 < 10
    assert [Item(1, 10)] == queue.sort_out(now=9.8, service_s=0.5, cautious_s=0.5)  # 10.3 > 10
    assert len(queue) == 0


def test_those_who_left_are_skipped_and_their_bytes_are_free_again() -> None:
    gone, here = Item(1, 10, size=100, gone=True), Item(2, 10, size=7)
    queue = line(gone, here)
    assert queue.size == 107
    assert [here] == queue.take(1)
    assert queue.size == 0


def test_slack_is_that_of_the_most_urgent_request_in_time() -> None:
    queue = line(Item(5, 50), Item(7, 50))
    assert queue.slack_s(now=2.0) == 3.0
    assert float("inf") == line().slack_s(now=2.0)


def test_a_higher_priority_goes_first_whatever_the_deadlines() -> None:
    soon, vip, later_vip = Item(1, 90), Item(5, 90, priority=2), Item(8, 90, priority=2)
    assert [vip, later_vip, soon] == line(soon, later_vip, vip).take(3)


def test_the_rank_of_a_newcomer() -> None:
    queue = line(Item(3, 90), Item(5, 90), Item(5, 90), Item(2, 90, priority=1), Item(1, 90, priority=-1))
    assert queue.ahead(0, 5) == 4  # the important one, and three that are due no later
    assert queue.ahead(0, 2.5) == 1
    assert queue.ahead(1, 1) == 0
    assert queue.ahead(-1, 9) == 5


def test_who_is_missed_least_makes_room() -> None:
    urgent, lax, late, vip = Item(4, 90), Item(8, 90), Item(1, 90), Item(8, 90, priority=1)
    queue = line(urgent, lax, late, vip)
    queue.sort_out(now=2.0, service_s=0.0, cautious_s=0.0)  # `late` moves behind
    assert [late, lax, urgent] == [queue.last_below(1) for _ in range(3)]
    assert queue.last_below(1) is None
    assert list(queue) == [vip]


def test_one_in_the_middle_can_be_taken_out_once() -> None:
    items = [Item(deadline, 90) for deadline in (1, 2, 3)]
    queue = line(*items)
    assert queue.remove(items[1])
    assert not queue.remove(items[1])
    queue.sort_out(now=1.5, service_s=0.0, cautious_s=0.0)
    assert queue.remove(items[0])  # a late one too
    assert list(queue) == [items[2]]
    assert queue.size == 1


REQUESTS = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.booleans(), st.integers(-2, 2)), max_size=30)


@given(REQUESTS, st.floats(0, 20), st.floats(0, 2))
def test_nothing_is_lost_and_nothing_is_answered_twice(
    drawn: list[tuple[float, float, bool, int]], now: float, service_s: float
) -> None:
    items = [Item(deadline, deadline + extra, gone=gone, priority=p) for deadline, extra, gone, p in drawn]
    queue = line(*items)
    hopeless = queue.sort_out(now, service_s, service_s)
    taken = queue.take(len(items))
    assert sorted(map(id, hopeless + taken)) == sorted(id(item) for item in items if not item.gone)
    assert all(item.give_up < now + service_s for item in hopeless)
    assert all(item.give_up >= now + service_s for item in taken)
    assert (len(queue), queue.size) == (0, 0)


@given(REQUESTS, st.floats(0, 12))
def test_those_in_time_come_by_priority_and_deadline_before_the_late_by_priority_and_give_up(
    drawn: list[tuple[float, float, bool, int]], now: float
) -> None:
    queue = line(*(Item(deadline, deadline + extra, priority=p) for deadline, extra, _, p in drawn))
    queue.sort_out(now, 0.0, 0.0)
    order = [
        (False, -item.priority, item.deadline) if item.deadline >= now else (True, -item.priority, item.give_up)
        for item in queue.take(len(drawn))
    ]
    assert order == sorted(order)


class Line(RuleBasedStateMachine):
    """Any sequence of operations: who went in comes out once."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: queueing.DeadlineQueue[Item] = queueing.DeadlineQueue()
        self.inside: dict[int, Item] = {}

    @rule(deadline=st.floats(0, 10), extra=st.floats(0, 5), priority=st.integers(-1, 1), size=st.integers(0, 9))
    def push(self, deadline: float, extra: float, priority: int, size: int) -> None:
        item = Item(deadline, deadline + extra, size, priority=priority)
        self.queue.push(item)
        self.inside[id(item)] = item

    @rule(count=st.integers(0, 3))
    def take(self, count: int) -> None:
        taken = self.queue.take(count)
        assert len(taken) == min(count, len(self.inside))
        self._out(taken)

    @rule(now=st.floats(0, 15))
    def sort_out(self, now: float) -> None:
        self._out(self.queue.sort_out(now, 0.1, 0.1))

    @rule(priority=st.integers(-1, 2))
    def displace(self, priority: int) -> None:
        victim = self.queue.last_below(priority)
        assert (victim is None) == all(item.priority >= priority for item in self.inside.values())
        self._out([victim] if victim else [])

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        item = self.inside[data.draw(st.sampled_from(sorted(self.inside)))]
        assert self.queue.remove(item)
        self._out([item])

    @invariant()
    def the_books_agree(self) -> None:
        assert len(self.queue) == len(self.inside) == len(list(self.queue))
        assert self.queue.size == sum(item.size for item in self.inside.values())
        assert self.queue.timely == len(self.queue.deadlines())

    def _out(self, items: list[Item]) -> None:
        for item in items:
            assert self.inside.pop(id(item)) is item  # raises for one that came out before


TestLine = Line.TestCase
TestLine.settings = hypothesis.settings(max_examples=40, stateful_step_count=30, deadline=None)
