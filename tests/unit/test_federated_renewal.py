"""When a segment makes way for the next one because sites are back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from airflow_mlscale.federated import model, renewal
from airflow_mlscale.federated.adapters import run_directory
from airflow_mlscale.federated.sites import Site
from tests.fakes import federated
from tests.unit.test_federated_controller import segment

ROUNDS = tuple(
    model.Round(number=i, value=0.1, loss=1.0, asked=(), answered=(), samples=1, seconds=s, segment=1)
    for i, s in enumerate((10.0, *[2.0] * 19), 1)
)
STATE = model.RunState(
    run_id="run",
    segment=1,
    rounds=ROUNDS,
    sites=tuple(Site(name=name, answered=5, unanswered=int(name == "d")) for name in "abcd"),
)
RUN = federated.settings(max_rounds=1000)


def wanted(*back: str, played_s: float = 80.0, run=RUN, state=STATE) -> renewal.Renewal | None:
    return renewal.wanted(run, state, back, now=1000.0 + played_s, began_at=1000.0)


def test_a_change_pays_once_what_it_brings_is_worth_what_it_costs():
    # d of four would take part again: s = 1/4; a change costs the job's start and the first round, 10 + 10 s
    assert wanted("d", played_s=79.0) is None  # 0.25 · 79 < 20
    found = wanted("d", played_s=80.0)  # 0.25 · 80 = 20
    assert (found.reason, found.counts_as_loss) == ("sites are back: d", False)


def test_each_further_change_waits_twice_as_long():
    once = replace(STATE, renewals=1)
    assert wanted("d", played_s=159.0, state=once) is None
    assert wanted("d", played_s=160.0, state=once)


def test_a_run_that_is_nearly_over_is_left_alone():
    assert wanted("d", run=federated.settings(max_rounds=1000, deadline_at=1159.0)) is None  # 79 s left
    assert wanted("d", run=federated.settings(max_rounds=1000, deadline_at=1160.0))
    assert wanted("d", run=federated.settings(max_rounds=59)) is None  # 39 rounds of 2 s left
    assert wanted("d", state=replace(STATE, forecast={"seconds": [5.0, 79.0, None]})) is None
    assert wanted("d", state=replace(STATE, forecast={"seconds": [5.0, None, None]}))


def test_only_sites_that_may_take_part_count():
    assert wanted() is None
    assert wanted("new", played_s=1000.0)
    assert wanted("new", played_s=1000.0, run=federated.settings(max_rounds=1000, sites=("a", "b"))) is None
    by_label = federated.settings(max_rounds=1000, sites=("region=eu",))
    assert wanted("new", played_s=1000.0, run=by_label) is None  # nobody knows whether its labels choose it
    assert wanted("d", played_s=1000.0, run=by_label)


def test_nothing_is_said_before_a_segment_has_played():
    assert wanted("d", played_s=1000.0, state=replace(STATE, segment=2)) is None


def test_a_run_without_a_quorum_does_not_wait():
    stuck = replace(STATE, failed_rounds=1)
    found = wanted("d", played_s=1.0, state=stuck)
    assert found.counts_as_loss
    assert wanted(state=stuck) is None


@pytest.mark.parametrize(("told_of", "segments"), [(1, [1, 1, 1]), (2, [1, 1, 1, 1, 1])])
def test_a_segment_ends_at_a_round_boundary_for_those_who_are_back(tmp_path, told_of, segments):
    clock = iter(range(1000, 100_000, 20))
    asked = federated.Sites()
    directory = run_directory.RunDirectory(tmp_path)

    def back_after_three(plan, site):
        if plan.number == 3:
            directory.tell_returned(told_of, ["d"])
        return federated.good(site, [federated.np.array([1 - 0.5 ** (plan.number - 1)])])

    asked.play = back_after_three
    first = segment(tmp_path, sites=asked, clock=lambda: float(next(clock)), max_rounds=100)
    asked.returned = lambda: directory.returned(1)
    state = first.play()
    assert [done.segment for done in state.rounds] == segments  # what is told of another segment is not ours
    if told_of == 1:
        assert (state.status, state.reason, state.renewals) == (model.Status.INTERRUPTED, "sites are back: d", 1)
        after = segment(tmp_path, number=2, sites=federated.Sites(sites=("a", "b", "c", "d")), policy="fedavg").play()
        assert (after.status, after.renewals) == (model.Status.REACHED, 1)
        assert [done.number for done in after.rounds] == [1, 2, 3, 4, 5]
        assert after.rounds[-1].answered == ("a", "b", "c", "d")
