"""The round loop on a federation without processes and a real run directory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.federated import combination, controller, faults, model
from airflow_mlscale.federated.adapters import run_directory
from tests.fakes import federated


def segment(directory: Path, number: int = 1, sites=None, evaluator=None, clock=None, **changes):
    run = federated.settings(**changes)
    return controller.SegmentController(
        run=run,
        segment=number,
        sites=sites or federated.Sites(),
        evaluator=evaluator or federated.Evaluator(),
        store=run_directory.RunWriter(run_directory.RunDirectory(directory), run.target, number),
        output_dir=directory / "model",
        now=clock or (lambda: 1000.0),
    )


def numbers(directory: Path) -> list[int]:
    return [record.seen["round"] for record in run_directory.RunDirectory(directory).records()]


def test_stops_when_the_target_has_held_two_evaluations_in_a_row(tmp_path):
    evaluator = federated.Evaluator()
    state = segment(tmp_path, evaluator=evaluator).play()
    # 1 − 0.5ⁿ: 0.5, 0.75, 0.875, 0.9375, 0.96875: the first two at 0.9 or better are rounds 4 and 5.
    assert (state.status, len(state.rounds), state.best_round) == (model.Status.REACHED, 5, 5)
    assert evaluator.exported == [pytest.approx(0.96875)]
    assert str(tmp_path / "model" / "saved_model") == state.saved_model
    assert state == run_directory.RunDirectory(tmp_path).state()
    assert numbers(tmp_path) == [1, 2, 3, 4, 5]


def test_the_next_segment_goes_on_at_the_last_complete_round(tmp_path):
    class PowerCutError(BaseException):
        pass

    def until_the_third(plan, site):
        if plan.number == 3:
            raise PowerCutError
        return federated.good(site, [1 - 0.5 ** (plan.number - 1) + federated.np.zeros(1)])

    with pytest.raises(PowerCutError):
        segment(tmp_path, sites=federated.Sites(play=until_the_third)).play()
    left = run_directory.RunDirectory(tmp_path).state()
    assert [done.number for done in left.rounds] == [1, 2]

    state = segment(tmp_path, number=2).play()
    assert left.rounds == state.rounds[:2]
    assert [done.segment for done in state.rounds] == [1, 1, 2, 2, 2]
    assert state.values == pytest.approx([0.5, 0.75, 0.875, 0.9375, 0.96875])  # no round's learning was lost
    assert numbers(tmp_path) == [1, 2, 3, 4, 5]


class EndingEngine(run_directory.RunWriter):
    """A store whose engine ends the job after some rounds, as NVFlare does when one of its processes dies."""

    after = 2

    def stop_asked(self) -> bool:
        state = self.directory.state()
        return super().stop_asked() or (state is not None and len(state.rounds) >= self.after)

    def interrupted(self) -> bool:
        return not super().stop_asked()


def test_a_job_that_the_engine_ends_can_go_on(tmp_path):
    ended = segment(tmp_path)
    ended.store = EndingEngine(run_directory.RunDirectory(tmp_path), ended.run.target, 1)
    state = ended.play()
    assert (state.status, len(state.rounds)) == (model.Status.INTERRUPTED, 2)
    assert not state.status.ended
    assert segment(tmp_path, number=2).play().status == model.Status.REACHED


def test_a_job_that_somebody_stopped_has_ended_however_it_was_ended(tmp_path):
    asked = segment(tmp_path)
    asked.store = EndingEngine(run_directory.RunDirectory(tmp_path), asked.run.target, 1)
    run_directory.RunDirectory(tmp_path).ask_to_stop()
    state = asked.play()
    assert (state.status, state.reason) == (model.Status.ABORTED, "asked to stop")


def test_a_journal_line_lost_in_a_crash_is_written_again(tmp_path):
    segment(tmp_path, max_rounds=2).play()
    journal = tmp_path / "metrics.jsonl"
    journal.write_text(journal.read_text().splitlines(keepends=True)[0])
    segment(tmp_path, number=2, max_rounds=3).play()
    assert numbers(tmp_path) == [1, 2, 3]


def test_an_overtaken_segment_cannot_write(tmp_path):
    late = segment(tmp_path, max_rounds=3)
    after = segment(tmp_path, number=2, max_rounds=1)

    def overtaken(plan, site):
        if plan.number == 2 and site == "a":
            after.play()
        return federated.good(site, [federated.np.zeros(1)])

    late.sites = federated.Sites(play=overtaken)
    with pytest.raises(errors.FederatedRunFailedError, match="segment 2 has taken this run over from segment 1"):
        late.play()
    assert run_directory.RunDirectory(tmp_path).state().segment == 2


def test_the_best_round_is_exported_not_the_last(tmp_path):
    evaluator = federated.Evaluator()
    values = {1: 0.4, 2: 0.8, 3: 0.6}

    def fixed(plan, site):
        return model.SiteAnswer(site=site, samples=1, weights=[federated.np.array([values[plan.number]])])

    state = segment(tmp_path, sites=federated.Sites(play=fixed), evaluator=evaluator, max_rounds=3).play()
    assert (state.status, state.best_round, state.best_value) == (model.Status.LIMIT, 2, 0.8)
    assert evaluator.exported == [0.8]


class Recording(federated.Sites):
    """Sites that remember what they were sent and answer with what the test says."""

    values = (0.8, 0.1, 0.1, 0.1, 0.85, 0.95, 0.95)

    def train(self, plan, weights):
        self.sent = [*getattr(self, "sent", []), float(weights[0][0])]
        answer = [federated.np.array([self.values[plan.number - 1]], "float32")]
        return [model.SiteAnswer(site=site, samples=1, weights=answer) for site in plan.asked]


def test_a_run_that_goes_astray_goes_on_from_its_best_model_without_momentum(tmp_path):
    sites = Recording()
    follow = combination.ServerOptimiser(name="fedavgm", momentum=0.0, averaging=0.0, learning_rate=1.0)
    state = segment(tmp_path, sites=sites, server_optimiser=follow).play()
    assert state.status == model.Status.REACHED
    # three rounds at 0.1, an error of 0.9 against 0.2: the fifth round begins at the first one's weights
    assert sites.sent == pytest.approx([0.0, 0.8, 0.1, 0.1, 0.8, 0.85, 0.95])


def test_weights_of_superseded_rounds_are_forgotten(tmp_path):
    segment(tmp_path).play()
    assert sorted(path.name for path in (tmp_path / "rounds").iterdir()) == ["0005.npz"]


def test_no_round_begins_after_the_deadline(tmp_path):
    times = iter(range(0, 1000, 5))
    sites = federated.Sites()
    state = segment(tmp_path, sites=sites, clock=lambda: float(next(times)), deadline_at=60.0, max_rounds=50).play()
    assert state.status == model.Status.LIMIT
    assert "deadline" in state.reason
    assert all(plan.timeout_s <= 60 for plan in sites.plans)


def test_a_segment_that_begins_after_the_deadline_only_leaves_the_best_model(tmp_path):
    class PowerCutError(BaseException):
        pass

    def until_the_third(plan, site):
        if plan.number == 3:
            raise PowerCutError
        return federated.good(site, [1 - 0.5 ** (plan.number - 1) + federated.np.zeros(1)])

    with pytest.raises(PowerCutError):
        segment(tmp_path, sites=federated.Sites(play=until_the_third), deadline_at=1500.0).play()
    after, evaluator = federated.Sites(), federated.Evaluator()
    late = segment(tmp_path, 2, sites=after, evaluator=evaluator, clock=lambda: 2000.0, deadline_at=1500.0).play()
    assert (late.status, len(late.rounds), after.plans) == (model.Status.LIMIT, 2, [])
    assert evaluator.exported == [pytest.approx(0.75)]
    assert "deadline" in late.reason


def test_a_round_without_a_quorum_changes_no_weights_and_three_end_the_segment(tmp_path):
    def only_a(plan, site):
        return federated.good(site, [federated.np.ones(1)]) if site == "a" else None

    state = segment(tmp_path, sites=federated.Sites(play=only_a)).play()
    assert (state.status, state.rounds) == (model.Status.INTERRUPTED, ())
    assert "round 1 got 1 of 2 answers" in state.reason


def test_an_error_of_every_site_fails_the_run_and_is_told(tmp_path):
    def broken(plan, site):
        return model.SiteAnswer(site=site, error="FileNotFoundError: no data")

    state = segment(tmp_path, sites=federated.Sites(play=broken)).play()
    assert state.status == model.Status.FAILED
    assert "a: FileNotFoundError: no data" in state.reason


def says(errors_of: dict[str, str | None]):
    """Sites that answer with an error, with silence (None), or well (those that are not named)."""

    def play(plan, site):
        if site not in errors_of:
            return federated.good(site, [federated.np.zeros(1)])
        return model.SiteAnswer(site=site, error=errors_of[site]) if errors_of[site] else None

    return federated.Sites(play=play)


BROKEN = "ValueError: 8 columns, not 10"


def test_errors_of_a_quorum_fail_the_run_at_once_whoever_is_silent(tmp_path):
    sites = says({"a": BROKEN, "b": BROKEN, "c": None})
    state = segment(tmp_path, sites=sites).play()
    assert (state.status, len(sites.plans)) == (model.Status.FAILED, 1)
    assert state.reason == f"no site could train: a: {BROKEN}; b: {BROKEN}"


def test_the_error_of_fewer_sites_fails_the_run_once_it_is_all_that_ever_came(tmp_path):
    sites = says({"a": BROKEN, "b": None, "c": None})
    state = segment(tmp_path, sites=sites).play()
    assert (state.status, len(sites.plans)) == (model.Status.FAILED, 3)
    assert state.reason == f"no site could train: a: {BROKEN}"


@pytest.mark.parametrize("others", [{"b": faults.LOST, "c": faults.LOST}, {"b": faults.LOST, "c": None}, {"b": None}])
def test_an_error_beside_lost_or_good_answers_leaves_the_run_to_be_resumed(tmp_path, others):
    state = segment(tmp_path, sites=says({"a": BROKEN, **others})).play()
    assert state.status == model.Status.INTERRUPTED


def test_the_error_of_one_site_does_not_fail_a_run_that_others_have_trained(tmp_path):
    segment(tmp_path, max_rounds=1).play()
    state = segment(tmp_path, 2, sites=says({"a": BROKEN, "b": None, "c": None})).play()
    assert (state.status, len(state.rounds)) == (model.Status.INTERRUPTED, 1)


KERAS = (
    'Exception encountered when calling Sequential.call().\n\n\x1b[1mInput 0 of layer "dense" is incompatible with the '
    "layer: expected axis -1 to have value 10\x1b[0m\n\nArguments received by Sequential.call():\n"
    "  • inputs=tf.Tensor(shape=(None, 8), dtype=float32)\n  • training=True\n  • mask=None"
)


def test_an_error_of_keras_is_told_in_one_line_without_colours_and_arguments():
    told = faults.raised(ValueError(KERAS))
    assert told == (
        'ValueError: Exception encountered when calling Sequential.call(). Input 0 of layer "dense" is incompatible '
        "with the layer: expected axis -1 to have value 10"
    )
    state = controller.failed(None, federated.settings(), 1, ValueError(KERAS), 5.0)
    assert state.reason == told


def test_lost_trainers_are_no_fault_of_the_users_code(tmp_path):
    def lost(plan, site):
        return model.SiteAnswer(site=site, error=faults.LOST)

    assert segment(tmp_path, sites=federated.Sites(play=lost)).play().status == model.Status.INTERRUPTED


def test_a_run_that_is_asked_to_stop_stops(tmp_path):
    def asked(plan, site):
        if plan.number == 2:
            run_directory.RunDirectory(tmp_path).ask_to_stop()
        return federated.good(site, [federated.np.zeros(1)])

    state = segment(tmp_path, sites=federated.Sites(play=asked)).play()
    assert state.status == model.Status.ABORTED


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (errors.InvalidInputError("metric", "auc", "use another"), model.Status.FAILED),
        (OSError("disk full"), model.Status.INTERRUPTED),
        (errors.TransientError("busy"), model.Status.INTERRUPTED),
    ],
)
def test_bad_input_fails_a_run_and_anything_else_may_be_resumed(raised, expected):
    state = controller.failed(None, federated.settings(), 1, raised, 5.0)
    assert (expected, 1) == (state.status, state.segment)
    assert str(raised) in state.reason
    assert expected == controller.failed(replace(state, segment=0), federated.settings(), 1, raised, 5.0).status
