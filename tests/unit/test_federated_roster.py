"""What a sites.yaml may say."""

from __future__ import annotations

import pytest

from airflow_mlscale import errors
from airflow_mlscale.federated import roster
from airflow_mlscale.federated.adapters import kits

WHOLE = """
name: hospitals
organisation: example
server:
  host: fl.example.org
  port: 8443
  bind: 10.0.0.5
  run_store: /srv/runs
admin: ops@example.org
sites:
  - name: berlin
    labels: {region: eu, cores: 8}
    server_address: 10.8.0.1:9000
  - turin
"""


def test_a_whole_one_is_read(tmp_path):
    (tmp_path / "sites.yaml").write_text(WHOLE)

    found = kits.read(tmp_path / "sites.yaml")

    berlin, turin = found.sites
    assert (found.name, found.organisation, found.admin) == ("hospitals", "example", "ops@example.org")
    assert berlin.labels == {"region": "eu", "cores": "8"}
    assert berlin.reaches(found.server) == ("10.8.0.1", 9000)
    assert turin.reaches(found.server) == ("fl.example.org", 8443)
    assert roster.parse(found.to_json()) == found


def test_little_is_enough():
    found = roster.parse({"server": {"host": "10.0.0.1"}, "sites": ["a", "b"]})

    assert found.site_names == ("a", "b")
    assert (found.server.port, found.server.bind, found.encrypted) == (8002, None, False)


LEAST = {"server": {"host": "h"}, "sites": ["a"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"servers": {}}, r"servers=\{\}: is unknown; use name, organisation, server"),
        ({"server": {}}, r"server\.host=None: name the host"),
        ({"server": "h"}, r"server='h': write names and values"),
        ({"server": {"host": "::1"}}, r"server\.host='::1': name a host or an IPv4 address"),
        ({"server": {"host": "h", "port": "8002"}}, r"server\.port='8002': must be a port"),
        ({"server": {"host": "h", "port": 70000}}, r"server\.port=70000"),
        ({"server": {"host": "h", "run_store": "runs"}}, r"server\.run_store='runs': name an absolute path"),
        ({"server": {"host": "a"}}, r"sites='a': a site must not have the server's name"),
        ({"sites": None}, r"sites=None: list the sites"),
        ({"sites": []}, r"sites=\[\]: name at least one site"),
        ({"sites": ["a", "A"]}, r"sites='a': name each site once"),
        ({"sites": ["server"]}, r"sites\.name='server': this name is taken"),
        ({"sites": ["../a"]}, r"sites\.name='\.\./a': use letters"),
        ({"sites": [{"labels": {}}]}, r"sites\.name="),
        ({"sites": [{"name": "a", "label": {}}]}, r"sites\[a\]\.label=\{\}: is unknown; use name, labels"),
        ({"sites": [{"name": "a", "labels": {"country": False}}]}, r"labels\.country=False: put the value in quotes"),
        ({"sites": [{"name": "a", "server_address": "h:x"}]}, r"sites\[a\]\.server_address='h:x': write host or"),
        ({"admin": "ops"}, r"admin='ops': write an address"),
        ({"sites": ["berlin", True]}, r"sites=True: is no name of a site.*YAML reads yes, no"),
        ({"encrypted": "yes"}, r"encrypted='yes': must be true or false"),
        ({"organisation": "a b"}, r"organisation='a b'"),
        ({"name": "a/b"}, r"name='a/b'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_value_and_the_fix(change, said):
    with pytest.raises(errors.InvalidInputError, match=said):
        roster.parse({**LEAST, **change})


@pytest.mark.parametrize("text", ["", "- a", "server: [", "a: {b"])
def test_what_is_no_such_file_is_refused(tmp_path, text):
    (tmp_path / "sites.yaml").write_text(text)

    with pytest.raises(errors.InvalidInputError, match=r"sites\.yaml"):
        kits.read(tmp_path / "sites.yaml")
    with pytest.raises(errors.InvalidInputError, match="cannot be read"):
        kits.read(tmp_path / "nothing.yaml")
