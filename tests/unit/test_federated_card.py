"""What a model card says of a run, and where it is written."""

from __future__ import annotations

import json
from dataclasses import replace
from math import nan

import pytest

from airflow_mlscale.federated import card, model
from airflow_mlscale.federated.adapters import model_card, run_directory
from airflow_mlscale.federated.combination import Privacy
from airflow_mlscale.federated.settings import RunSettings
from airflow_mlscale.federated.sites import Site

RUN = RunSettings(
    run_id="blobs",
    model="blobs:build",
    client_data="blobs:of_site",
    evaluation_data="blobs:held_out",
    target=model.Quality("accuracy", 0.9),
    data_args={"password": "hunter2"},
)


def rounds(values, *, answered=("a", "b")):
    return tuple(
        model.Round(
            number=number, value=value, loss=1 - value, asked=("a", "b", "c"), answered=answered, samples=30,
            seconds=2.0, segment=1, compute_s=1.5,
        )
        for number, value in enumerate(values, start=1)
    )  # fmt: skip


@pytest.fixture
def reached():
    return model.RunState(
        run_id="blobs", status=model.Status.REACHED, reason="held", segment=2, started_at=100.0, updated_at=160.0,
        rounds=rounds([0.5, 0.8, 0.93, 0.91]), best_round=3,
        sites=(
            Site(name="a", samples=20, asked=4, answered=4, busy_s=6.0, gigabytes=0.002, epoch_s=0.25),
            Site(name="b", samples=10, asked=4, answered=4, busy_s=4.0, gigabytes=0.001),
            Site(name="c", samples=0, asked=4, answered=0, busy_s=8.0),
        ),
    )  # fmt: skip


def test_the_exported_model_is_that_of_the_best_round(reached):
    found = card.card(RUN, reached, {})

    assert (found["quality"]["round"], found["quality"]["value"]) == (3, 0.93)
    assert found["quality"]["reached"]
    assert found["quality"]["values"] == [0.5, 0.8, 0.93, 0.91]


def test_data_counts_only_sites_whose_weights_are_in_the_model(reached):
    found = card.card(RUN, reached, {})["data"]

    assert found["samples"] == 30  # 20 of a + 10 of b; c never answered
    assert [site["rounds_in_model"] for site in found["sites"]] == [3, 3, 0]  # round 4 is not in the best model


def test_a_late_answer_that_was_averaged_is_in_the_model(reached):
    with_c = replace(reached.rounds[1], late=("c",))
    late = replace(reached, rounds=(reached.rounds[0], with_c, *reached.rounds[2:]))

    assert [site["rounds_in_model"] for site in card.card(RUN, late, {})["data"]["sites"]] == [3, 3, 1]


def test_costs_are_summed_over_sites_and_rounds(reached):
    training = card.card(RUN, reached, {})["training"]

    assert training["node_seconds"] == 18.0  # 6 + 4 + 8: sites that do not answer cost too
    assert training["compute_seconds"] == 6.0  # 4 rounds of 1.5
    assert (training["seconds"], training["rounds"], training["segments"]) == (60.0, 4, 2)
    assert training["started_at"] == "1970-01-01 00:01:40 UTC"


def test_data_arguments_never_get_into_a_card(reached):
    found = card.card(RUN, reached, {})

    assert "hunter2" not in json.dumps(found) + card.markdown(found)


def test_privacy_is_told_with_its_epsilon_or_denied(reached):
    private = replace(RUN, privacy=Privacy(clip_norm=1.5, noise_multiplier=1.1, delta=1e-6))

    told = card.markdown(card.card(private, replace(reached, epsilon=3.25), {}))
    denied = card.markdown(card.card(RUN, reached, {}))

    assert "(3.25, 1e-06)-differential privacy" in told
    assert "clipped to 1.5" in told
    assert "No differential privacy was asked for" in denied


def test_markdown_has_a_row_for_each_site(reached):
    text = card.markdown(card.card(RUN, reached, {"keras": "3.15.1"}))

    assert "| a | 20 | 3 | 4 of 4 |" in text
    assert "| c | 0 | 0 | 0 of 4 |" in text
    assert "- keras: 3.15.1" in text
    assert "accuracy >= 0.9: reached (held)" in text


def test_a_simulated_run_says_so(reached):
    assert "no real site took part" in card.markdown(card.card(RUN, replace(reached, simulated=True), {}))
    assert "imulated" not in card.markdown(card.card(RUN, reached, {}))


def test_a_curve_is_scaled_between_its_ends_and_thinned_out():
    assert card.curve([0.0, 0.45, 1.0]) == "▁▄█"  # 0.45 · 7 = 3.15, the fourth bar
    assert card.curve([0.1, nan, 0.2]) == "▁×█"
    assert card.curve([0.5, 0.5]) == "▁▁"
    assert card.curve([]) == ""
    assert len(card.curve([float(i) for i in range(600)])) == card.CURVE_WIDTH


def test_a_run_without_rounds_has_a_card_without_quality():
    found = card.card(RUN, model.RunState(run_id="blobs"), {})

    assert found["quality"]["value"] is None
    assert "Never evaluated." in card.markdown(found)


def test_the_card_lies_beside_the_model_before_the_run_is_seen_to_have_ended(reached, tmp_path):
    directory = run_directory.RunDirectory(tmp_path / "blobs")
    directory.create(RUN)
    exported = tmp_path / "model"
    exported.mkdir()
    writer = run_directory.RunWriter(directory, RUN.target)

    writer.checkpoint(reached)
    assert list(exported.iterdir()) == []  # nothing is exported yet

    writer.checkpoint(replace(reached, saved_model=str(exported / "saved_model")))
    kept = json.loads((exported / "model_card.json").read_text())
    assert kept == json.loads(json.dumps(card.card(RUN, directory.state(), model_card.versions())))
    assert (exported / "model_card.md").read_text() == card.markdown(kept)
    assert kept["versions"]["airflow-provider-mlscale"]
