"""How runs select sites by label."""

from __future__ import annotations

import pytest

from airflow_mlscale import errors
from airflow_mlscale.federated import labels
from airflow_mlscale.federated.adapters import site_labels
from airflow_mlscale.federated.model import Quality
from airflow_mlscale.federated.settings import RunSettings

SITES = {
    "berlin": {"region": "eu", "device": "gpu"},
    "turin": {"region": "eu"},
    "boston": {"region": "us", "device": "gpu"},
    "unlabelled": {},
}


@pytest.mark.parametrize(
    ("entries", "chosen"),
    [
        (None, ["berlin", "boston", "turin", "unlabelled"]),
        (["turin"], ["turin"]),
        (["region=eu"], ["berlin", "turin"]),
        (["region=eu,device=gpu"], ["berlin"]),  # all labels of one entry hold
        (["region = us", "turin"], ["boston", "turin"]),  # any entry chooses
        (["region=eu", "berlin"], ["berlin", "turin"]),  # each site once
        (["region=asia"], []),
        (["elsewhere"], []),
    ],
)
def test_a_site_takes_part_if_any_entry_chooses_it(entries, chosen):
    assert labels.chosen(entries, SITES) == chosen


def test_labels_that_nobody_has_are_refused_with_those_that_there_are():
    with pytest.raises(errors.InvalidInputError, match=r"region=asia.*there are device=gpu, region=eu, region=us"):
        labels.must_choose(["region=asia"], SITES)
    assert labels.must_choose(["elsewhere"], SITES) == []  # a named site that is away may come back
    assert labels.must_choose(["region=asia"], {}) == []  # nobody is connected yet: that says nothing of labels


@pytest.mark.parametrize("text", ["region", "region=", "=eu", "region=eu,region=us", "region=a b", "1=x", "a=b,,c=d"])
def test_what_is_no_selector_is_refused(text):
    with pytest.raises(errors.InvalidInputError, match="sites"):
        labels.parse("sites", text)


def test_yaml_numbers_become_text_and_its_truth_values_are_refused():
    assert labels.check("labels", {"cores": 8, "share": 0.5}) == {"cores": "8", "share": "0.5"}
    with pytest.raises(errors.InvalidInputError, match=r"labels\.country=False: put the value in quotes"):
        labels.check("labels", {"country": False})  # YAML reads 'no' as false


def test_too_many_labels_are_refused():
    with pytest.raises(errors.InvalidInputError, match="33 labels"):
        labels.check("labels", {f"l{number}": "x" for number in range(labels.MOST + 1)})


def test_later_arguments_win():
    assert labels.given("label", ["region=eu,device=cpu", "device=gpu"]) == {"region": "eu", "device": "gpu"}


def settings(**changed):
    return RunSettings(
        **{
            "run_id": "r", "model": "m:build", "client_data": "m:own", "evaluation_data": "m:held",
            "target": Quality("accuracy", 0.9), **changed,
        }
    )  # fmt: skip


def test_a_run_may_mix_names_and_labels_and_is_not_counted_beforehand():
    run = settings(sites=("region=eu",), min_nodes=5)  # how many that are is known once it runs

    assert RunSettings.from_json(run.to_json()) == run
    with pytest.raises(errors.InvalidInputError, match="name at least 5"):
        settings(sites=("a", "b"), min_nodes=5)
    with pytest.raises(errors.InvalidInputError, match="sites"):
        settings(sites=("region=",))


class Registered:
    """What NVFlare knows of a site."""

    def __init__(self, name, site_config):
        self.name = name
        self._site_config = site_config

    def get_site_config(self):
        return self._site_config


def test_what_a_site_told_wins_over_the_servers_kit_and_nonsense_does_not(tmp_path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "mlscale.json").write_text('{"labels": {"a": {"region": "eu"}, "b": {"region": "us"}}}')
    clients = [
        Registered("a", {"labels": {"region": "asia"}}),
        Registered("b", {"labels": ["nonsense"]}),
        Registered("c", None),  # the server was restarted since it registered
    ]

    assert site_labels.known(clients, tmp_path) == {"a": {"region": "asia"}, "b": {"region": "us"}, "c": {}}
    assert site_labels.known([Registered("b", None)], tmp_path) == {"b": {"region": "us"}}
