"""Who says how good a model is: metrics of any name, and sites that measure where the server has no data."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from airflow_mlscale import errors
from airflow_mlscale.federated import controller, curve, metrics, model, policy, site_quality
from airflow_mlscale.federated.adapters import run_directory
from airflow_mlscale.federated.combination import Aggregation, Privacy, ServerOptimiser
from airflow_mlscale.federated.model import Quality
from airflow_mlscale.federated.settings import RunSettings
from tests.fakes import federated


@pytest.mark.parametrize(
    ("metric", "value", "error"),
    [("cosine_similarity", -0.5, 1.5), ("r2_score", -3.0, 4.0), ("f1_score", 0.8, 0.2), ("mape", 5.0, 5.0)],
)
def test_errors_are_measured_from_the_best_value_whatever_the_range(metric, value, error):
    scale = metrics.METRICS[metric]
    assert curve.error_of(scale, value) == pytest.approx(error)
    assert curve.value_of(scale, error) == pytest.approx(value)
    Quality(metric, value)  # a run can be held to it


def test_a_metric_of_ones_own_says_which_values_are_better_and_how_good_it_can_get():
    gap = Quality("my.metrics:gap", 0.2, higher_is_better=False)
    assert gap.met(0.1)
    assert not gap.met(0.3)
    sharpness = Quality("sharpness", 30, higher_is_better=True, best=50)
    assert curve.error_of(sharpness.scale, 30) == 20
    assert Quality.from_json(sharpness.to_json()) == sharpness
    assert Quality.from_json({"metric": "accuracy", "value": 0.9}) == Quality("accuracy", 0.9)  # of an earlier version


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("metric", {"metric": "sharpness", "value": 30}),
        ("metric", {"metric": "my.metrics:", "value": 30, "higher_is_better": True}),
        ("target", {"metric": "sharpness", "value": 30, "higher_is_better": True}),  # above the best value, 1
        ("target", {"metric": "r2_score", "value": 1.5}),
        ("target", {"metric": "cosine_similarity", "value": -1}),
        ("higher_is_better", {"metric": "loss", "value": 0.1, "higher_is_better": True}),
        ("higher_is_better", {"metric": "gap", "value": 0.1, "higher_is_better": "no"}),
        ("best", {"metric": "accuracy", "value": 0.9, "best": 2}),
        ("best", {"metric": "gap", "value": 0.1, "higher_is_better": False, "best": inf}),
    ],
)
def test_what_is_unknown_or_contradicts_what_is_known_of_a_metric_is_refused(field, arguments):
    with pytest.raises(errors.InvalidInputError) as refused:
        Quality(**arguments)
    assert refused.value.field == field


SCRIPT = {"client_data": None, "evaluation_data": None, "model": None}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("client_data", {"client_data": None}),
        ("model", {"model": None}),
        ("initial_weights", {"initial_weights": "m:start"}),
        ("client_script_args", {"client_script_args": ("--rate",)}),
        ("client_script", {**SCRIPT, "client_script": "no script"}),
        ("client_data", {"client_script": "own.py"}),
        ("initial_weights", {**SCRIPT, "client_script": "own.py"}),
        ("initial_weights", {"client_script": "own.py", "client_data": None, "initial_weights": "m:start"}),
        ("evaluation_data", {**SCRIPT, "client_script": "own.py", "initial_weights": "m:s", "evaluation_data": "m:e"}),
        ("client_script_format", {**SCRIPT, "client_script": "o", "model": "m:b", "client_script_format": "jax"}),
        (
            "client_script_format",
            {**SCRIPT, "client_script": "o", "initial_weights": "m:s", "client_script_format": "keras_layer_weights"},
        ),
        ("proximal_mu", {"client_script": "own.py", "client_data": None, "proximal_mu": 0.1}),
        ("encrypted", {"client_script": "own.py", "client_data": None, "encrypted": True}),
        (
            "noise_at",
            {
                "client_script": "own.py",
                "client_data": None,
                "privacy": Privacy(clip_norm=1, noise_multiplier=1, noise_at="sites"),
            },
        ),
        ("evaluation_data", {"evaluation_data": None, "privacy": Privacy(clip_norm=1, noise_multiplier=1)}),
        ("max_rounds", {"evaluation_data": None, "max_rounds": 1}),
        (
            "server_optimiser.averaging",
            {"evaluation_data": None, "server_optimiser": ServerOptimiser(name="fedavgm", averaging=0.5)},
        ),
        ("validation_split", {"evaluation_data": None, "validation_split": 1.0}),
    ],
)
def test_what_cannot_be_kept_is_refused_with_a_fix(field, changes):
    with pytest.raises(errors.InvalidInputError) as refused:
        federated.settings(**changes)
    assert refused.value.field == field
    assert refused.value.fix


def test_a_script_may_train_under_privacy_that_the_server_keeps():
    secret = Privacy(clip_norm=1, noise_multiplier=1, noise_at="server")
    run = federated.settings(client_script="own.py", client_data=None, privacy=secret, client_script_args=("a", "b c"))
    assert RunSettings.from_json(run.to_json()) == run


def by_sites(**changes) -> RunSettings:
    return federated.settings(**{"evaluation_data": None, **changes})


def answer(site: str, value: object, samples: int = 10, **changes) -> model.SiteAnswer:
    return model.SiteAnswer(
        **{"site": site, "samples": 99, "value": value, "value_samples": samples, "weights": [np.zeros(1)], **changes}
    )


def test_the_quality_is_the_mean_of_what_sites_measured_by_samples():
    told = [answer("a", 0.9, 30, value_loss=1.0), answer("b", 0.5, 10), answer("c", None, error="ill")]
    assert site_quality.combined(by_sites(), told) == {"loss": 1.0, "accuracy": pytest.approx(0.8)}
    assert site_quality.combined(by_sites(), [answer("a", 1.0000001)]) == {"loss": None, "accuracy": 1.0}


def test_robust_rules_take_the_median_of_the_sites():
    run = by_sites(min_nodes=3, aggregation=Aggregation(rule="median"))
    told = [answer("a", 0.6), answer("b", 0.5), answer("c", 1.0, 10**9)]
    assert site_quality.combined(run, told)["accuracy"] == 0.6


@pytest.mark.parametrize("value", [None, nan, 7.0, -0.1, inf])
def test_a_site_that_tells_no_possible_value_is_no_part_of_the_round(value):
    assert "accuracy" in site_quality.fault(by_sites(), answer("a", value))
    assert site_quality.fault(federated.settings(), answer("a", value)) is None  # the server measures


def test_a_bad_number_of_samples_is_refused():
    assert "samples" in site_quality.fault(by_sites(), answer("a", 0.5, "many"))
    assert site_quality.fault(by_sites(), answer("a", 0.5)) is None


class Measuring(federated.Sites):
    """Sites that tell the accuracy of what they are sent, and then move it by a tenth; it falls after 0.6."""

    def train(self, plan: policy.RoundPlan, weights):
        self.plans.append(plan)
        sent = float(weights[0][0])
        moved = np.asarray([sent + 0.1 if sent < 0.55 else 0.2], "float32")
        return [answer(site, round(sent, 3), weights=[moved], number=plan.number) for site in plan.asked]


class Exporter(federated.Evaluator):
    def evaluate(self, weights):
        raise AssertionError("the server has no data")


def played(store, run, segment=1, sites=None):
    exporter = Exporter()
    state = controller.SegmentController(
        run=run, segment=segment, sites=sites or Measuring(), evaluator=exporter, store=store,
        output_dir=store.directory.path, now=lambda: 1000.0,
    ).play()  # fmt: skip
    return state, exporter.exported


def test_the_weights_that_were_measured_are_kept_with_their_value_and_exported(tmp_path):
    run = by_sites(max_rounds=9, target=Quality("accuracy", 0.99), on_infeasible="go_on")
    directory = run_directory.RunDirectory(tmp_path)
    directory.create(run)
    state, exported = played(run_directory.RunWriter(directory, run.target), run)
    # what a round is sent, the round says: 0, 0.1 ... 0.6, and then what the fall has left
    assert state.values == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.2, 0.3])
    assert (state.status, state.best_round) == (model.Status.LIMIT, 7)
    assert exported == [pytest.approx(0.6)]  # not what round 7 has made of it


def test_a_target_is_not_held_by_weights_that_nobody_measured_and_segments_go_on(tmp_path):
    run = by_sites(max_rounds=9, target=Quality("accuracy", 0.5))
    directory = run_directory.RunDirectory(tmp_path)
    directory.create(run)

    class Dying(Measuring):
        def train(self, plan, weights):
            if plan.number == 5:
                raise RuntimeError("the server job is killed")
            return super().train(plan, weights)

    with pytest.raises(RuntimeError):
        played(run_directory.RunWriter(directory, run.target), run, sites=Dying())
    state, exported = played(run_directory.RunWriter(directory, run.target), run, segment=2)
    assert state.values == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])  # 0.5 and 0.6: two in a row
    assert [done.segment for done in state.rounds] == [1] * 4 + [2] * 3
    assert state.status == model.Status.REACHED
    assert exported == [pytest.approx(0.6)]


def test_rounds_without_enough_values_do_not_count(tmp_path):
    run = by_sites(max_rounds=9)
    directory = run_directory.RunDirectory(tmp_path)
    directory.create(run)

    class Silent(Measuring):
        def train(self, plan, weights):
            return [answer(site, None if site != "a" else 0.5, weights=weights) for site in plan.asked]

    state, _ = played(run_directory.RunWriter(directory, run.target), run, sites=Silent())
    assert state.rounds == ()
    assert state.status == model.Status.INTERRUPTED
    assert "told no accuracy" in state.reason
