"""Who joins a line, who leaves it unanswered, and whose turn it is on a busy host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale.roma import dispatch, line, model, settings

SPEC = model.ModelSpec(name="m", version="1", artefact="/m", objective=model.Objective(milliseconds=100), max_batch=1)


@dataclass(eq=False)
class Item:
    deadline: float
    give_up: float
    size: int = 1
    gone: bool = False
    priority: int = 0


def made(*, seconds: float | None = 0.010, max_requests: int = 100, max_bytes: int = 1000) -> line.Line[Item]:
    queue = settings.QueueSettings(max_requests=max_requests, max_bytes=max_bytes)
    one: line.Line[Item] = line.Line(SPEC, queue=queue, batch=settings.BatchSettings())
    for _ in range(20 if seconds else 0):
        one.learn(0.0, 1, seconds or 0.0, executing=1)
    return one


def join(one: line.Line[Item], item: Item, *, executing: int = 0) -> tuple[line.Refusal | None, list[Item]]:
    return one.join(0.0, item, executing=executing)


def test_who_would_be_given_up_anyway_is_refused_with_the_time_to_wait() -> None:
    one = made()
    for _ in range(5):
        assert join(one, Item(0.1, 0.1)) == (None, [])
    refusal, _ = join(one, Item(0.055, 0.055))  # nobody is due before it
    assert refusal is None
    refusal, _ = join(one, Item(0.050, 0.050))  # one is: 10 + 10 ms
    assert refusal is None
    refusal, _ = join(one, Item(0.1, 0.1), executing=1)  # seven before it, half of one, and its own: 85 ms
    assert refusal is None
    for _ in range(2):
        one.queue.push(Item(0.1, 0.1))
    refusal, _ = join(one, Item(0.1, 0.1), executing=1)  # ten before it: 115 ms
    assert refusal is not None
    assert pytest.approx(0.015) == refusal.retry_after_s
    assert "15 ms too late behind 10 others" in refusal.why


def test_who_has_time_beyond_the_deadline_waits_behind() -> None:
    one = made()
    for _ in range(10):
        join(one, Item(0.1, 1.0))
    assert join(one, Item(0.1, 1.0))[0] is None  # late, but of use for a second
    assert join(one, Item(0.1, 0.1))[0] is not None


def test_what_is_late_keeps_nobody_from_a_core_for_long() -> None:
    queue = settings.QueueSettings()
    one: line.Line[Item] = line.Line(replace(SPEC, max_batch=64), queue=queue, batch=settings.BatchSettings())
    for size in (1, 2, 4, 8, 16, 32, 64):
        for _ in range(20):
            one.learn(0.0, size, 0.010 * size**0.8, executing=1)  # 64 take 279 ms, which gains a tenth on 32
    for _ in range(64):
        one.queue.push(Item(-1.0, 9.0))
    assert one.give_up(0.0, executing=0) == []
    assert one.queue.timely == 0
    batch = one.next_batch(0.0, executing=0)
    assert 0.05 < one.times.cautious(len(batch)) <= 0.1  # the objective


def test_a_line_that_knows_nothing_yet_refuses_nobody() -> None:
    one = made(seconds=None)
    one.times.start(1, 5.0)  # from the warm-up
    assert join(one, Item(0.1, 0.1))[0] is None


def test_a_line_that_refused_everybody_tries_again() -> None:
    one = made(seconds=5.0)  # the machine was frozen
    assert join(one, Item(0.1, 0.1))[0] is not None
    assert one.join(1.5, Item(1.6, 1.6), executing=0)[0] is None
    assert one.give_up(1.5, executing=0) == []
    assert one.join(1.5, Item(1.6, 1.6), executing=1)[0] is not None  # the first one will tell


def test_two_places_work_off_twice_as_much() -> None:
    one = made()
    one.places = 2
    for _ in range(18):
        assert join(one, Item(0.1, 0.1))[0] is None
    assert join(one, Item(0.1, 0.1), executing=2)[0] is not None  # 18·5 + 5 + 10 ms
    one.cores = 1.0  # the two share one core
    assert one.cores_each == 0.5
    assert join(one, Item(0.15, 0.15))[0] is not None


def test_in_a_full_line_the_less_important_make_room() -> None:
    one = made(seconds=None, max_requests=2)
    first, second = Item(1, 9), Item(2, 9)
    join(one, first)
    join(one, second)
    assert join(one, Item(0.5, 9))[0] is not None  # as important as they
    assert join(one, Item(3, 9, priority=1)) == (None, [second])
    assert len(one.queue) == 2


def test_nobody_makes_room_in_vain() -> None:
    one = made(seconds=None, max_bytes=10)
    vip, small = Item(1, 9, size=6, priority=2), Item(2, 9, size=4)
    join(one, vip)
    join(one, small)
    refusal, displaced = join(one, Item(1, 9, size=5, priority=1))
    assert refusal is not None
    assert displaced == []
    assert set(one.queue) == {vip, small}
    assert join(one, Item(1, 9, size=11, priority=9))[0] is not None  # fits into no line


def test_an_objective_that_changes_judges_the_next_not_the_waiting() -> None:
    one = made()
    join(one, Item(0.1, 1.0))
    one.update(model.ModelSpec(name="m", version="1", artefact="/m", objective=model.Objective(milliseconds=500)))
    assert one.queue.deadline() == 0.1
    assert one.meter.lost_s == 5.0


@given(
    st.lists(
        st.tuples(st.floats(0, 0.3), st.floats(0, 0.3), st.integers(-1, 1), st.integers(0, 40), st.integers(0, 3)),
        max_size=60,
    )
)
def test_everybody_who_was_let_in_comes_out_once(drawn: list[tuple[float, float, int, int, int]]) -> None:
    one, inside, out = made(max_requests=6, max_bytes=100), [], []
    now = 0.0
    for due, extra, priority, size, turns in drawn:
        now += 0.005
        item = Item(now + due, now + due + extra, size, priority=priority)
        refusal, displaced = one.join(now, item, executing=1)
        inside += [] if refusal else [item]
        out += displaced
        assert len(one.queue) <= 6
        assert one.queue.size <= 100
        for _ in range(turns):
            out += one.give_up(now, executing=turns)
            out += one.next_batch(now, executing=0)
    out += one.next_batch(now, executing=0)
    while len(one.queue):
        out += one.next_batch(now, executing=0)
    assert sorted(map(id, inside)) == sorted(map(id, out))


def standing(name: str, deadline: float, **changes: object) -> dispatch.Standing:
    given = {"oldest": 0.0, "service_s": 0.010, "executing": 0, **changes}
    return dispatch.Standing(name=name, deadline=deadline, **given)  # type: ignore[arg-type]


def choose(*standings: dispatch.Standing, free: float = 1, next_free_s: float = 0.0, **given: object) -> str | None:
    return dispatch.choose(standings, free=free, next_free_s=next_free_s, **given)  # type: ignore[arg-type]


def test_the_model_that_must_begin_first_does() -> None:
    assert choose(standing("a", 0.050), standing("b", 0.060, service_s=0.030)) == "b"  # by 30 ms, a by 40 ms
    assert choose(standing("a", 0.050), standing("b", 0.090, priority=1)) == "b"
    assert choose(standing("a", 0.050, entitled=False), standing("b", inf)) == "b"
    assert choose() is None


def test_on_a_full_host_only_a_short_execution_begins() -> None:
    long, short = standing("a", 0.045, service_s=0.020), standing("b", 0.100, service_s=0.010)
    assert choose(long, free=0, next_free_s=0.030) is None
    assert choose(long, short, free=0, next_free_s=0.030) == "b"  # 10 < 30 ÷ 2
    assert choose(standing("b", 0.100, executing=1), free=0, next_free_s=0.030) is None  # it has a core already
    assert choose(standing("b", 0.100, entitled=False), free=0, next_free_s=0.030) == "b"  # weights bound it
    assert choose(standing("late", inf), free=0, next_free_s=0.030) is None


def test_the_paper_serves_the_largest_need() -> None:
    # R̂ = ½(40 + 10) + ½·60 = 55 ms against 100·0.8
    need = dispatch.need_s(waited_s=0.040, recent_s=0.060, service_s=0.010, sla_s=0.1, alpha=0.2)
    assert pytest.approx(-0.025) == need
    assert choose(standing("a", 0.01, need_s=need), standing("b", 9.0, need_s=0.0), order="h1") == "b"
    assert choose(standing("a", 0.01, oldest=2.0), standing("b", 9.0, oldest=1.0), order="arrival") == "b"


def test_credit_is_earned_paid_and_bounded() -> None:
    credit = dispatch.Credit(cores=0.5)
    credit.earn(10.0)
    assert credit.saved_core_s == 2.5  # five seconds' worth
    credit.pay(10.1, 0.3)
    assert pytest.approx(2.2) == credit.saved_core_s
    credit.pay(10.1, 50.0)
    assert pytest.approx(-2.5) == credit.saved_core_s


class Model:
    """A model whose executions end when a test says so."""

    def __init__(self, group: str, floor: dispatch.Dispatcher, deadline: float, waiting: int = 9) -> None:
        self.group, self.floor, self.deadline, self.waiting = group, floor, deadline, waiting
        self.running: list[int] = []

    def standing(self, now: float) -> dispatch.Standing | None:
        if not self.waiting:
            return None
        entitled = self.floor.entitled(now, self.group)
        return standing(self.group, self.deadline, executing=len(self.running), entitled=entitled)

    def begin(self, now: float) -> None:
        self.waiting -= 1
        token = id(self) + self.waiting
        self.running.append(token)
        self.floor.began(now, token, self.group, expected_s=0.010)

    def end(self, now: float = 0.0, spent_core_s: float | None = None) -> None:
        self.floor.ended(now, self.running.pop(), spent_core_s=spent_core_s)


def test_only_the_cpu_that_an_execution_took_is_paid() -> None:
    floor = dispatch.Dispatcher(host_places=1)
    model = Model("a", floor, 9.0, waiting=1)
    floor.promise(0.0, "a", 1.0)
    floor.offer(0.008, model)  # 10 ms are expected, 8 were saved
    assert not floor.entitled(0.008, "a")
    model.end(0.009, spent_core_s=0.0005)
    assert floor.entitled(0.009, "a")


def test_places_are_kept_and_a_free_one_is_taken_at_once() -> None:
    floor = dispatch.Dispatcher(host_places=2)
    a, b = Model("a", floor, 9.0), Model("b", floor, 5.0)
    floor.offer(0.0, a)
    floor.offer(0.0, b)
    assert (len(a.running), len(b.running)) == (2, 0)
    a.end()
    floor.run(0.005)
    assert (len(a.running), len(b.running)) == (1, 1)  # b is due first


def test_what_hangs_holds_no_place() -> None:
    floor = dispatch.Dispatcher(host_places=1)
    a, b = Model("a", floor, 9.0, waiting=1), Model("b", floor, 9.0, waiting=1)
    floor.offer(0.0, a)
    floor.offer(0.0, b)
    for now in (0.005, 0.025):  # 10 ms were expected; what is 15 ms late is taken to need as much again
        floor.run(now)
        assert not b.running
        assert pytest.approx(0.030) == floor.looks_again_at(now, 0.010)
    floor.run(0.031)
    assert b.running
    assert pytest.approx(0.260) == floor.looks_again_at(0.2, 0.001)  # it will hold no place then
    c = Model("c", floor, 9.0, waiting=1)
    floor.offer(0.032, c)
    assert not c.running
    a.end(0.033)
    floor.run(0.3)  # 260 ms are too much
    assert c.running


def test_who_spent_its_guarantee_comes_after_those_who_did_not() -> None:
    floor = dispatch.Dispatcher(host_places=1)
    for group in ("greedy", "modest", "greedy"):  # as often as each second; the first one has no neighbour yet
        floor.promise(0.0, group, 0.1)
    greedy = Model("greedy", floor, deadline=1.0, waiting=200)
    floor.offer(1.0, greedy)
    for _ in range(60):
        greedy.end()
        floor.run(1.0)  # 60 · 10 ms are more than half a second
    modest = Model("modest", floor, deadline=50.0)
    floor.offer(1.0, modest)
    greedy.end()
    floor.run(1.0)
    assert (len(greedy.running), len(modest.running)) == (0, 1)
