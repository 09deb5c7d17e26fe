"""From the answers of a round to the next model, and a run that does it round by round."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from airflow_mlscale import errors
from airflow_mlscale.federated import combination, controller, model, server_step
from airflow_mlscale.federated.adapters import run_directory
from airflow_mlscale.federated.settings import RunSettings
from tests.fakes import federated

SENT = [np.zeros(4, "float32"), np.ones(1, "float32")]
TRAINED = (True, False)
FEDAVGM = combination.ServerOptimiser(name="fedavgm", momentum=0.5, learning_rate=0.5)


def private(**changes) -> combination.Privacy:
    return combination.Privacy(**{"clip_norm": 1.0, "noise_multiplier": 1e-9, **changes})


def answer(site: str, value: float, samples: int = 1) -> model.SiteAnswer:
    return model.SiteAnswer(
        site=site, samples=samples, weights=[np.full(4, value, "float32"), np.full(1, 5, "float32")]
    )


def test_the_model_follows_the_combined_answers():
    run = federated.settings(aggregation=combination.Aggregation(rule="median"), min_nodes=3, server_optimiser=FEDAVGM)
    answers = [answer("a", 1.0), answer("b", 2.0), answer("c", -40.0)]
    weights, memory = server_step.step(run, answers, SENT, (), trained=TRAINED)
    assert weights[0].tolist() == [0.5] * 4  # half of the way to the median
    assert weights[1].tolist() == [5.0]
    again, _ = server_step.step(run, answers, weights, memory, trained=TRAINED)
    assert again[0].tolist() == [1.0] * 4  # m = 0.5·1 + (1 − 0.5) = 1


def test_under_privacy_every_site_counts_the_same_and_only_trained_weights_change():
    weights, memory = server_step.step(
        federated.settings(privacy=private()), [answer("a", 8.0, 100), answer("b", 0.0)], SENT, (), trained=TRAINED
    )
    assert weights[0] == pytest.approx([0.25] * 4, abs=1e-6)  # (½ + 0) / 2: the update of length 16 is clipped to 1
    assert (weights[1].tolist(), memory) == ([1.0], [])


def test_under_privacy_nobody_is_judged_by_the_others():
    answers = [answer("a", 1.0), answer("b", 1.0), answer("c", 500.0)]
    judged = server_step.believed(federated.settings(), answers, SENT, trained=TRAINED)
    assert [each.error is None for each in judged] == [True, True, False]
    alone = server_step.believed(federated.settings(privacy=private()), answers, SENT, trained=TRAINED)
    assert answers == alone


def test_a_noisy_update_is_held_to_what_clip_and_noise_allow():
    # min_nodes = 2, σ = 1·√2 / √2 = 1: 1 + 1·(√4 + 6.5) = 9.5 over the 4 trained coordinates, 4.75 each
    run = federated.settings(privacy=private(noise_at="sites", noise_multiplier=2**0.5))
    short, long = server_step.believed(run, [answer("a", 4.7), answer("b", 4.8)], SENT, trained=TRAINED)
    assert short.error is None
    assert long.error == "sent an update of length 9.6, clip and noise allow 9.5"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"proximal_mu": -0.1}, "proximal_mu"),
        ({"aggregation": "krum"}, "aggregation"),
        ({"server_optimiser": None}, "server_optimiser"),
        ({"privacy": 1.0}, "privacy"),
        ({"aggregation": combination.Aggregation(rule="krum"), "min_nodes": 4}, "min_nodes"),
        (
            {"aggregation": combination.Aggregation(rule="median"), "min_nodes": 3, "privacy": private()},
            "aggregation",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes, field):
    with pytest.raises(errors.InvalidInputError) as refused:
        federated.settings(**changes)
    assert field == refused.value.field


def test_settings_of_combining_survive_json():
    run = federated.settings(
        proximal_mu=0.1, server_optimiser=combination.ServerOptimiser(name="fedyogi"), privacy=private(max_epsilon=8.0)
    )
    assert run == RunSettings.from_json(json.loads(json.dumps(run.to_json())))
    robust = federated.settings(aggregation=combination.Aggregation(rule="krum", tolerated=2), min_nodes=7)
    assert robust == RunSettings.from_json(json.loads(json.dumps(robust.to_json())))
    older = {name: value for name, value in run.to_json().items() if name not in ("aggregation", "privacy")}
    assert RunSettings.from_json(older).privacy is None


def segment(directory: Path, number: int = 1, sites=None, **changes) -> controller.SegmentController:
    """Every round asks every site, and nothing but a limit ends the run."""
    target = model.Quality("accuracy", 1.0)
    run = federated.settings(target=target, policy="over_selection", on_infeasible="go_on", **changes)
    return controller.SegmentController(
        run=run,
        segment=number,
        sites=sites or federated.Sites(),
        evaluator=federated.Evaluator(),
        store=run_directory.RunWriter(run_directory.RunDirectory(directory), run.target, number),
        output_dir=directory / "model",
        now=lambda: 1000.0,
    )


class PowerCutError(BaseException):
    pass


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_a_server_optimiser_goes_on_in_the_next_segment_as_if_nothing_had_happened(tmp_path, name):
    def until_the_fourth(plan, site):
        if plan.number == 4:
            raise PowerCutError
        return federated.good(site, weights[-1])

    class Watched(federated.Sites):
        def train(self, plan, sent):
            weights.append(sent)
            return super().train(plan, sent)

    weights: list = []
    chosen = combination.ServerOptimiser(name=name, learning_rate=0.05)
    whole = segment(tmp_path / "whole", max_rounds=6, server_optimiser=chosen).play()
    with pytest.raises(PowerCutError):
        segment(tmp_path / "cut", sites=Watched(play=until_the_fourth), max_rounds=6, server_optimiser=chosen).play()
    resumed = segment(tmp_path / "cut", 2, max_rounds=6, server_optimiser=chosen).play()
    assert whole.values == resumed.values
    assert len(set(whole.values)) == 6
    assert [done.segment for done in resumed.rounds] == [1, 1, 1, 2, 2, 2]


def test_a_site_that_sends_nonsense_is_no_part_of_the_model_nor_of_the_quorum(tmp_path):
    def play(plan, site):
        sent = {"a": [np.array([np.nan], "float32")], "b": [np.zeros((2, 2), "float32")]}.get(site)
        return model.SiteAnswer(site=site, samples=10, weights=sent or [np.full(1, 0.5, "float32")])

    sites = federated.Sites(sites="abcd", play=play)
    state = segment(tmp_path / "two", sites=sites, max_rounds=1).play()
    assert (state.rounds[0].answered, state.value) == (("c", "d"), 0.5)
    state = segment(tmp_path / "three", sites=sites, max_rounds=1, min_nodes=3).play()
    assert state.status == model.Status.INTERRUPTED
    assert "round 1 got 2 of 3 answers (a: sent weights that are not finite; b: sent weights of other" in state.reason


def test_a_run_tells_its_epsilon_and_ends_before_it_exceeds_its_budget(tmp_path):
    pytest.importorskip("opendp")
    from airflow_mlscale.federated import account

    budget = account.epsilon(10.0, 3, 1e-5) + 1e-6
    secret = private(clip_norm=1e-6, noise_multiplier=10.0, max_epsilon=budget)  # too little to reach the target
    state = segment(tmp_path, privacy=secret, max_rounds=9).play()
    assert (state.status, len(state.rounds)) == (model.Status.LIMIT, 3)
    assert state.epsilon == account.epsilon(10.0, 3, 1e-5)
    assert state.reason == f"one more round could exceed max_epsilon={secret.max_epsilon:g}"
    told = [record.seen["epsilon"] for record in run_directory.RunDirectory(tmp_path).records()]
    assert told == [account.epsilon(10.0, rounds, 1e-5) for rounds in (1, 2, 3)]
    assert state == run_directory.RunDirectory(tmp_path).state()


def test_a_budget_that_allows_no_round_fails_the_run_before_any_site_trains(tmp_path):
    pytest.importorskip("opendp")
    sites = federated.Sites()
    state = segment(tmp_path, sites=sites, privacy=private(noise_multiplier=0.1, max_epsilon=1.0)).play()
    assert (state.status, sites.plans) == (model.Status.FAILED, [])


def test_a_missing_accountant_is_told_before_any_site_trains(tmp_path, monkeypatch):
    from airflow_mlscale.federated import account

    monkeypatch.setitem(sys.modules, "opendp.prelude", None)
    account.epsilon.cache_clear()
    sites = federated.Sites()
    with pytest.raises(errors.InvalidInputError, match=r"pip install airflow-provider-mlscale\[privacy\]"):
        segment(tmp_path, sites=sites, privacy=private()).play()
    assert sites.plans == []
