"""The order of the waiting line."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.roma import queueing


@dataclass
class Item:
    deadline: float
    give_up: float
    size: int = 1
    gone: bool = False


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
    assert queue.sort_out(now=0.9, service_s=0.2) == []  # 0.9 + 0.2 > 1.0, but far from 50
    assert [timely, late] == queue.take(2)


def test_a_hopeless_request_is_taken_out() -> None:
    queue = line(Item(1, 10))
    assert queue.sort_out(now=9.0, service_s=0.5) == []  # 9.5 < 10
    assert [Item(1, 10)] == queue.sort_out(now=9.8, service_s=0.5)  # 10.3 > 10
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


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.booleans()), max_size=30),
    st.floats(0, 20),
    st.floats(0, 2),
)
def test_nothing_is_lost_and_nothing_is_answered_twice(
    drawn: list[tuple[float, float, bool]], now: float, service_s: float
) -> None:
    items = [Item(deadline, deadline + extra, gone=gone) for deadline, extra, gone in drawn]
    queue = line(*items)
    hopeless = queue.sort_out(now, service_s)
    taken = queue.take(len(items))
    assert sorted(map(id, hopeless + taken)) == sorted(id(item) for item in items if not item.gone)
    assert all(item.give_up < now + service_s for item in hopeless)
    assert all(item.give_up >= now + service_s for item in taken)
    assert (len(queue), queue.size) == (0, 0)
