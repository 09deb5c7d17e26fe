"""Bad settings and conditions name the field, the value and the fix."""

from __future__ import annotations

import json
from math import inf, nan

import pytest

from airflow_mlscale import cli, errors
from airflow_mlscale.federated.adapters import local_federation
from airflow_mlscale.federated.model import Quality, RunState, Status
from airflow_mlscale.federated.settings import FederationSettings, RunSettings
from airflow_mlscale.operators import federated as operators
from tests.fakes import federated


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("run_id", "a/b"),
        ("run_id", ""),
        ("model", "module.function"),
        ("client_data", "module:"),
        ("evaluation_data", 3),
        ("target", 0.9),
        ("max_rounds", 0),
        ("max_rounds", 2.5),
        ("min_nodes", 0),
        ("min_nodes", True),
        ("cohort", 1),  # below min_nodes
        ("over_selection", 0.9),
        ("over_selection", inf),
        ("local_epochs", 0),
        ("batch_size", -1),
        ("round_timeout_s", 0),
        ("round_timeout_s", "60"),
        ("heartbeat_s", 60),
        ("data_args", ["x"]),
        ("data_args", {"when": object()}),
        ("sites", ("a", "a")),
        ("sites", ("a",)),  # below min_nodes
        ("output_dir", "relative/path"),
    ],
)
def test_bad_settings_are_refused(field, value):
    with pytest.raises(errors.InvalidInputError) as refused:
        federated.settings(**{field: value})
    assert field == refused.value.field
    assert value == refused.value.value or value is refused.value.value
    assert refused.value.fix


def test_the_published_policies_never_make_more_epochs_than_they_may():
    with pytest.raises(errors.InvalidInputError, match="local_epochs=7: must be at most max_local_epochs=3"):
        federated.settings(policy="quadratic_network", local_epochs=7, max_local_epochs=3)
    assert federated.settings(policy="linear_rounds", local_epochs=3, max_local_epochs=3).local_epochs == 3
    assert federated.settings(policy="fedavg", local_epochs=20, max_local_epochs=3).local_epochs == 20


@pytest.mark.parametrize("field", ["aggregation", "server_optimiser", "privacy"])
def test_a_word_in_place_of_a_setting_is_answered_by_the_name_that_users_import(field):
    with pytest.raises(errors.InvalidInputError) as refused:
        federated.settings(**{field: "krum"})
    name = refused.value.fix.removeprefix("use ").removesuffix("(...)")
    assert hasattr(operators, name)


@pytest.mark.parametrize(
    ("metric", "value", "field"),
    [
        ("acuracy", 0.9, "metric"),
        ("accuracy", 1.2, "target"),
        ("accuracy", 0, "target"),
        ("accuracy", -0.1, "target"),
        ("accuracy", nan, "target"),
        ("accuracy", "0.9", "target"),
        ("accuracy", True, "target"),
        ("loss", -1.0, "target"),
        ("loss", inf, "target"),
    ],
)
def test_bad_conditions_are_refused(metric, value, field):
    with pytest.raises(errors.InvalidInputError) as refused:
        Quality(metric, value)
    assert field == refused.value.field
    assert refused.value.fix


def test_an_accuracy_must_rise_to_its_target_and_a_loss_fall():
    assert Quality("accuracy", 0.9).met(0.9)
    assert not Quality("accuracy", 0.9).met(0.89)
    assert Quality("loss", 0.1).met(0.1)
    assert not Quality("loss", 0.1).met(0.11)
    assert not Quality("loss", 0.1).met(nan)
    assert not Quality("accuracy", 0.1).met(None)


def test_a_condition_holds_several_evaluations_in_a_row():
    condition = Quality("accuracy", 0.9)
    assert not condition.held([0.95])
    assert condition.held([0.5, 0.9, 0.9])
    assert not condition.held([0.9, 0.9, 0.8])


def test_settings_and_state_survive_json():
    run = federated.settings(sites=("a", "b"), extra_modules=("more",), data_args={"path": "/data", "n": 3})
    assert run == RunSettings.from_json(json.loads(json.dumps(run.to_json())))
    state = RunState(run_id="run", status=Status.REACHED, deadline_at=3.0)
    assert state == RunState.from_json(json.loads(json.dumps(state.to_json())))
    assert state == RunState.from_json({**state.to_json(), "of_a_later_version": 1})


@pytest.mark.parametrize(
    "sites", [(), ("a b",), ("a", "A"), ("server",), ("../x",), ("localhost",), ("f",), ("Yes",), ("1e5",)]
)
def test_bad_site_names_are_refused(sites):
    with pytest.raises(errors.InvalidInputError) as refused:
        FederationSettings(sites=sites)
    assert refused.value.field == "sites"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_timeout_s", -5.0),
        ("start_timeout_s", nan),
        ("start_timeout_s", inf),
        ("trainer_threads", -1),
        ("trainer_threads", 0),
        ("task_interval_s", 0),
        ("site_heartbeat_s", 0),
        ("site_timeout_s", 0),
    ],
)
def test_bad_settings_of_a_federation_are_refused(field, value):
    with pytest.raises(errors.InvalidInputError) as refused:
        FederationSettings(sites=("a",), **{field: value})
    assert field == refused.value.field


@pytest.mark.parametrize("option", [("--threads", "-1"), ("--timeout", "-5"), ("--timeout", "nan")])
def test_a_federation_that_is_asked_for_wrongly_is_not_begun(option, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path))
    try:
        assert cli.main(["federated", "up", "--sites", "a", *option]) == 2
    finally:
        local_federation.down()
    assert "must be a" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
