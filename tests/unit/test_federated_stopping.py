"""When a run ends, and the conditions that others wait for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_mlscale import errors
from airflow_mlscale.federated import curve, forecast, model, stopping
from airflow_mlscale.federated.settings import Budget
from airflow_mlscale.federated.sites import Site
from tests.fakes import federated
from tests.fakes.federated import state


@pytest.mark.parametrize(
    ("seen", "settings", "now", "expected"),
    [
        (state(), {}, 0, "running"),
        (state(0.95), {}, 0, "running"),  # one lucky round
        (state(0.95, 0.89, 0.95), {}, 0, "running"),  # not in a row
        (state(0.89, 0.90, 0.91), {}, 0, "reached"),
        (state(0.90, 0.91), {"deadline_at": 10.0}, 11, "reached"),  # the target before the limits
        (state(0.5), {"deadline_at": 10.0}, 10, "limit"),
        (state(), {"deadline_at": 10.0}, 10, "failed"),  # nothing to return
        (state(0.5, 0.6), {"max_rounds": 2}, 0, "limit"),
        (state(0.5, failed_rounds=3), {}, 0, "interrupted"),
    ],
)
def test_when_a_run_ends(seen, settings, now, expected):
    assert expected == stopping.verdict(federated.settings(**settings), seen, now=now).status


def test_a_budget_ends_a_run():
    spent = state(0.5, sites=(Site(name="a", busy_s=60.0, gigabytes=1.0), Site(name="b", busy_s=50.0)))
    assert stopping.verdict(federated.settings(budget=Budget(node_seconds=111)), spent, now=0).ends is False
    over = stopping.verdict(federated.settings(budget=Budget(node_seconds=110)), spent, now=0)  # 60 + 50
    assert over.status == model.Status.LIMIT
    assert "110 node seconds" in over.reason
    assert stopping.verdict(federated.settings(budget=Budget(gigabytes=1.0)), spent, now=0).ends


def test_a_run_without_progress_stalls():
    values = [0.5, 0.6, 0.7, 0.7, 0.7]
    assert stopping.verdict(federated.settings(stall_rounds=2), state(*values), now=0).status == model.Status.STALLED
    assert stopping.verdict(federated.settings(stall_rounds=3), state(*values), now=0).status == model.Status.RUNNING
    assert stopping.verdict(federated.settings(stall_rounds=None), state(*values), now=0).status == model.Status.RUNNING


def test_what_is_no_number_is_no_progress():
    assert stopping.stalled(model.Quality("accuracy", 0.9), [0.5, float("nan"), 0.5], 2)


def test_little_is_no_progress_and_much_is_some():
    target = model.Quality("accuracy", 0.9)
    assert stopping.stalled(target, [0.5, 0.504], 1)  # 0.496 > 0.5 · 0.99
    assert not stopping.stalled(target, [0.5, 0.506], 1)  # 0.494 < 0.495
    assert not stopping.stalled(model.Quality("loss", 0.1), [0.5, 0.49], 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.9, 0.79, 0.79, 0.79], True),  # 0.21 > 2 · 0.1
        ([0.9, 0.79, 0.81, 0.79], False),
        ([0.9, 0.79, 0.79], False),
        ([0.9, float("nan")], True),
        ([float("nan")], False),  # there is nothing to go back to
        ([], False),
    ],
)
def test_a_run_goes_astray(values, expected):
    assert expected == stopping.astray(model.Quality("accuracy", 0.95), values)


def hopeless(chance: float = 0.01) -> forecast.Forecast:
    span = curve.Span(0.4, 0.5, 0.6)
    return forecast.Forecast(
        rounds=span, seconds=span, node_seconds=span, gigabytes=span, rounds_to_limit=9, limit="deadline",
        chance=chance, at_limit=span, done=20,
    )  # fmt: skip


def test_doubts_in_a_row_make_a_run_infeasible_and_the_verdict_says_what_to_expect():
    run, seen = federated.settings(), state(0.3, 0.4)
    for _ in range(stopping.DOUBTS):
        assert not stopping.verdict(run, seen, now=0, seen=hopeless()).ends
        seen = stopping.with_forecast(seen, hopeless())
    over = stopping.verdict(run, seen, now=0, seen=hopeless())
    assert over.status == model.Status.INFEASIBLE
    assert "accuracy 0.5000, between 0.4000 and 0.6000" in over.reason
    assert not stopping.verdict(federated.settings(on_infeasible="go_on"), seen, now=0, seen=hopeless()).ends
    assert stopping.with_forecast(seen, hopeless(0.5)).doubts == 0


RUN = federated.settings(target=model.Quality("accuracy", 0.9, in_a_row=1), stall_rounds=2)


@pytest.mark.parametrize(
    ("condition", "seen", "expected"),
    [
        ({"awaited": "at_least", "value": 0.6}, state(0.5, 0.6, 0.7), 2),
        ({"awaited": "at_least", "value": 0.6, "in_a_row": 2}, state(0.5, 0.6, 0.7), 3),
        ({"awaited": "at_least"}, state(0.5, 0.6, 0.7), None),
        ({"awaited": "at_least"}, state(0.5, 0.9, 0.7), 2),
        ({"awaited": "stalled"}, state(0.5, 0.6, 0.6, 0.6), 4),
        ({"awaited": "stalled"}, state(0.5, 0.6, 0.6, 0.6, 0.7), None),  # it goes on
        ({"awaited": "stalled", "rounds": 3}, state(0.5, 0.6, 0.6, 0.6), None),
        ({"awaited": "stalled"}, state(0.5, 0.6, status=model.Status.INFEASIBLE), 2),
        ({"awaited": "failed"}, state(0.5, status=model.Status.RUNNING), None),
        ({"awaited": "failed"}, state(0.5, status=model.Status.ABORTED), 1),
        ({"awaited": "failed"}, state(status=model.Status.FAILED), 0),
    ],
)
def test_a_condition_says_in_which_round_it_was_met(condition, seen, expected):
    awaited = stopping.Condition(**{**condition, "awaited": stopping.Awaited(condition["awaited"])})
    assert expected == awaited.met_in(RUN, seen)
    assert awaited == stopping.Condition.from_json(awaited.to_json())


def test_a_standstill_is_judged_by_the_runs_own_metric():
    run = federated.settings(target=model.Quality("mean_squared_error", 0.05), stall_rounds=2)
    falling = state(*(0.8 * 0.9**i for i in range(6)))
    assert stopping.STANDSTILL.met_in(run, falling) is None
    assert stopping.STANDSTILL.met_in(RUN, falling) == 6  # as an accuracy it would be one


def test_a_hopeful_standstill_is_none_to_anybody():
    still = replace(state(0.5, 0.6, 0.6, 0.6), forecast={"chance": 0.8})
    assert stopping.STANDSTILL.met_in(RUN, still) is None
    assert stopping.verdict(RUN, still, now=0) == stopping.GO_ON


def test_a_condition_that_does_not_fit_the_runs_metric_is_refused():
    seen = state(0.5)
    with pytest.raises(errors.InvalidInputError, match=r"metric='auc'.*use that"):
        stopping.Condition(awaited=stopping.Awaited.AT_LEAST, value=0.5, metric="auc").met_in(RUN, seen)
    with pytest.raises(errors.InvalidInputError, match="at_least=2"):
        stopping.Condition(awaited=stopping.Awaited.AT_LEAST, value=2).met_in(RUN, seen)


def test_a_condition_that_an_ended_run_missed_is_an_error():
    awaited = stopping.REACHED
    assert awaited.out_of_question(RUN, state(0.5)) is None
    assert awaited.out_of_question(RUN, state(0.9, 0.9, status=model.Status.REACHED)) is None
    ended = awaited.out_of_question(RUN, state(0.5, status=model.Status.LIMIT))
    assert isinstance(ended, errors.TargetNotReachedError)
    broken = awaited.out_of_question(RUN, state(0.5, status=model.Status.FAILED))
    assert isinstance(broken, errors.FederatedRunFailedError)


def test_a_confidence_bound_can_hold_a_target_that_noise_breaks():
    values = [0.97, 0.96, 0.97, 0.94, 0.97]  # mean 0.962, deviation 0.013: 0.962 − 1.64·0.013/√5 = 0.952
    assert not model.Quality("accuracy", 0.95).held(values)
    sure = model.Quality("accuracy", 0.95, confidence=0.95)
    assert sure.held(values)
    assert sure.bound(values) == pytest.approx(0.9524, abs=1e-4)
    assert not sure.held([0.95, 0.94, 0.95, 0.94, 0.95])
    assert "confidence 0.95" in sure.why_held(values)


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=12), st.sampled_from([None, 0.9]), st.integers(1, 3))
def test_the_controller_and_a_sensor_never_disagree(values, confidence, in_a_row):
    target = model.Quality("accuracy", 0.9, in_a_row=in_a_row, confidence=confidence)
    run = federated.settings(target=target, stall_rounds=4)
    for end in range(1, len(values) + 1):  # the controller plays on as long as nothing ends the run
        seen = state(*values[:end])
        decided = stopping.verdict(run, seen, now=0).status
        assert (decided == model.Status.REACHED) == (stopping.REACHED.met_in(run, seen) is not None)
        if decided != model.Status.REACHED:
            assert (decided == model.Status.STALLED) == (stopping.STANDSTILL.met_in(run, seen) is not None)
        if decided != model.Status.RUNNING:
            break
