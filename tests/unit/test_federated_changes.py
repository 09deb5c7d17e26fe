"""Limits and target that change while a run is under way, and runs that are asked to end with what they have."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import pytest

from airflow_mlscale import errors
from airflow_mlscale.federated import client, connection, controller, limits, model, stopping
from airflow_mlscale.federated.adapters import run_directory
from tests.fakes import federated


@pytest.fixture
def runs(tmp_path) -> client.RunClient:
    return connection.stored(tmp_path)


def begun(runs: client.RunClient, **changes) -> run_directory.RunDirectory:
    directory = runs.directory("run")
    directory.create(federated.settings(**changes))
    return directory


def segment(directory: run_directory.RunDirectory, number: int = 1, *, clock=lambda: 1000.0, play=None):
    run = directory.first_settings()
    (directory.path / "model").mkdir(exist_ok=True)  # where a real evaluator exports to
    return controller.SegmentController(
        run=run, segment=number, sites=federated.Sites(play=play), evaluator=federated.Evaluator(),
        store=run_directory.RunWriter(directory, run.target, number), output_dir=directory.path / "model", now=clock,
    )  # fmt: skip


def doing(action, at: int):
    """Sites that do something once in a round, and are good: each round halves the distance to 1."""
    done = []

    def play(plan, site):
        if plan.number == at and not done:
            done.append(action())
        return federated.good(site, [1 - 0.5 ** (plan.number - 1) + federated.np.zeros(1)])

    return play


@pytest.mark.parametrize(
    ("what", "status", "rounds"),
    [
        ({"target": 0.8}, model.Status.REACHED, 4),  # 0.5, 0.75, 0.875, 0.9375: two in a row
        ({"target": 0.99}, model.Status.REACHED, 8),  # 1 − 0.5⁷ and ⁸
        ({"max_rounds": 3}, model.Status.LIMIT, 3),
        ({"deadline_at": 1000.0}, model.Status.LIMIT, 2),
    ],
)
def test_a_change_holds_from_the_next_judgement_on(runs, what, status, rounds):
    directory = begun(runs)
    state = segment(directory, play=doing(lambda: directory.change(limits.Change(what=what, by="me")), at=2)).play()
    assert (state.status, len(state.rounds), state.changes) == (status, rounds, 1)
    held = directory.settings()
    assert (state.target, state.deadline_at, state.max_rounds) == (held.target.value, held.deadline_at, held.max_rounds)
    (change,) = [record for record in directory.records() if "change" in record.seen]
    assert change.reason.startswith("me set ")
    assert dict(change.decided) == what
    assert runs.result("run")["limits"] == {**limits.values(directory.first_settings()), **what}


def test_the_next_segment_and_the_journal_keep_a_change(runs):
    directory = begun(runs, max_rounds=2)

    def two_changes():
        runs.change("run", max_rounds=3)
        runs.change("run", target=0.95, by="somebody else")

    with pytest.raises(ZeroDivisionError):
        segment(directory, play=doing(lambda: (two_changes(), 1 / 0), at=2)).play()
    state = segment(directory, 2).play()
    assert (state.status, len(state.rounds), state.target) == (model.Status.LIMIT, 3, 0.95)
    told = [record.reason for record in directory.records() if "change" in record.seen]
    assert len(told) == 2
    assert told[1] == "somebody else set target 0.95 (was 0.9)"
    assert segment(directory, 3).play().changes == 2
    assert len([record for record in directory.records() if "change" in record.seen]) == 2


def test_old_doubts_do_not_outlive_a_change(runs):
    directory = begun(runs)
    writer = run_directory.RunWriter(directory, model.Quality("accuracy", 0.9), 1)
    writer.checkpoint(replace(federated.state(0.5, 0.6, segment=1), doubts=1, changes=0, target=0.9))
    directory.change(limits.Change(what={"max_rounds": 200}))
    heard = segment(directory)._heard(directory.state())
    assert (heard.doubts, heard.max_rounds) == (0, 200)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("limits", {}),
        ("limits", {"rounds": 3}),
        ("max_rounds", {"max_rounds": 0}),
        ("max_rounds", {"max_rounds": 2}),  # done already
        ("max_rounds", {"max_rounds": None}),
        ("target", {"target": 1.5}),
        ("target", {"target": None}),
        ("deadline", {"deadline": timedelta(0)}),
        ("deadline", {"deadline": 60}),
        ("deadline_at", {"deadline": "2001-01-01T00:00:00Z"}),
        ("budget.gigabytes", {"gigabytes": -1.0}),
    ],
)
def test_what_the_operator_would_refuse_is_refused_and_nothing_is_written(runs, field, values):
    directory = begun(runs)
    run_directory.RunWriter(directory, model.Quality("accuracy", 0.9)).checkpoint(
        federated.state(0.5, 0.6, status=model.Status.RUNNING)
    )
    with pytest.raises(errors.InvalidInputError) as refused:
        runs.change("run", **values)
    assert refused.value.field == field
    assert directory.changes() == []


@pytest.mark.parametrize("status", ["reached", "stopped", "failed", "exporting"])
def test_a_run_that_has_ended_cannot_be_changed(runs, status):
    directory = begun(runs)
    ended = federated.state(0.5, status=model.Status(status), reason="so")
    run_directory.RunWriter(directory, model.Quality("accuracy", 0.9)).checkpoint(ended)
    with pytest.raises(errors.InvalidInputError, match=f"has ended \\({status}: so\\); clear its task"):
        runs.change("run", max_rounds=100)
    with pytest.raises(errors.InvalidInputError, match="there is no such run"):
        runs.change("nobody", max_rounds=100)


def test_limits_can_be_taken_away_and_durations_count_from_now(runs):
    begun(runs, deadline_at=time.time() + 60)
    assert runs.change("run", deadline=timedelta(hours=1)).deadline_at == pytest.approx(time.time() + 3600, abs=60)
    assert runs.change("run", deadline=None, node_seconds=100.0).deadline_at is None
    assert runs.directory("run").settings().budget.node_seconds == 100.0
    assert runs.change("run", node_seconds=None).budget.node_seconds is None


def test_a_retry_with_the_operators_own_limits_keeps_the_changed_ones(tmp_path, monkeypatch):
    runs = client.RunClient(federated.Admin(), tmp_path)
    functions = dict.fromkeys(("model", "client_data", "evaluation_data"), "json:loads")
    runs.begin(federated.settings(**functions, max_rounds=10))
    runs.change("run", max_rounds=20)
    assert runs.begin(federated.settings(**functions, max_rounds=10)).max_rounds == 20


def test_a_run_that_is_asked_to_end_keeps_its_best_model(runs):
    directory = begun(runs)

    def asked():
        assert runs.end("run", by="sensor dag.watch", why="accuracy >= 0.5")
        assert runs.end("run", by="somebody later", why="the same")

    state = segment(directory, play=doing(asked, at=2)).play()
    assert (state.status, len(state.rounds), state.best_round) == (model.Status.STOPPED, 2, 2)
    assert state.reason == "stopped by sensor dag.watch: accuracy >= 0.5; at accuracy 0.7500"
    assert state.keras_model is not None
    result = runs.result("run")
    assert (result["reached"], result["stopped_early"]) == (False, True)
    assert not runs.end("run", by="me", why="late")  # nothing to end any more


def test_a_target_that_holds_when_somebody_asks_is_reached(runs):
    directory = begun(runs, target=model.Quality("accuracy", 0.7, in_a_row=1))
    state = segment(directory, play=doing(lambda: runs.end("run", by="me", why="so"), at=2)).play()
    assert state.status == model.Status.REACHED


def test_who_asks_to_abort_wins_and_without_a_round_there_is_no_model(runs):
    directory = begun(runs)
    runs.end("run", by="me", why="so")
    state = segment(directory).play()
    assert (state.status, state.keras_model) == (model.Status.ABORTED, None)
    assert "stopped by me: so; before the first round was complete" in state.reason
    directory.withdraw_end()

    def both():
        runs.end("run", by="me", why="so")
        directory.ask_to_stop()

    state = segment(directory, 2, play=doing(both, at=2)).play()
    assert (state.status, state.reason) == (model.Status.ABORTED, "asked to stop")


def test_a_run_that_was_stopped_below_its_target_counts_as_stalled_for_who_waits_for_that():
    stopped = federated.state(0.5, 0.6, status=model.Status.STOPPED)
    run = federated.settings()
    assert stopping.STANDSTILL.met_in(run, stopped) == 2
    with pytest.raises(errors.TargetNotReachedError):
        raise stopping.REACHED.out_of_question(run, stopped)
