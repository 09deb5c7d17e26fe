"""Tokens, scopes and rates."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import authority
from airflow_mlscale.roma.adapters import openapi, tokens, v2_grpc

LOOK, DESCRIBE = {"read", "admin"}, {"read", "infer", "admin"}
INFER, CHANGE = {"infer", "admin"}, {"admin"}


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("POST", "/v2/models/m/infer", INFER),
        ("POST", "/v2/models/m/versions/3/infer", INFER),
        ("POST", "/v2/models/m/feedback", INFER),
        ("GET", "/v2/models/m", DESCRIBE),
        ("GET", "/v2/models/m/ready", DESCRIBE),
        ("GET", "/v2", DESCRIBE),
        ("POST", "/v2/repository/index", DESCRIBE),
        ("POST", "/v2/repository/models/m/load", CHANGE),
        ("POST", "/v1/models/m:predict", INFER),
        ("GET", "/v1/models/m/metadata", DESCRIBE),
        ("GET", "/v2/mlscale/models", LOOK),
        ("GET", "/v2/mlscale/journal", LOOK),
        ("PUT", "/v2/mlscale/models/m", CHANGE),
        ("DELETE", "/v2/mlscale/models/m", CHANGE),
        ("POST", "/v2/mlscale/models/infer", CHANGE),  # a model of this name is no inference
        ("GET", "/metrics", LOOK),
        ("GET", "/whatever", LOOK),
        ("POST", "/whatever", CHANGE),
        ("PATCH", "/v2/models/m/infer", CHANGE),
    ],
)
def test_what_each_request_needs(method: str, path: str, scopes: set[str]) -> None:
    assert authority.needed(method, path.strip("/").split("/")) == scopes


def test_nothing_that_changes_can_be_had_without_admin_but_inference_and_feedback() -> None:
    for path, item in openapi.document(token=True)["paths"].items():
        for method in item.keys() - {"parameters", "get"}:
            needed = authority.needed(method.upper(), path.strip("/").split("/"))
            asks = path.endswith(("/infer", "/feedback", ":predict", ":classify", ":regress", "/repository/index"))
            assert ("infer" in needed) == asks, (method, path)


def test_what_each_call_needs() -> None:
    assert authority.needed_for_rpc("ModelStreamInfer") == INFER
    assert authority.needed_for_rpc("RepositoryModelLoad") == CHANGE
    assert authority.needed_for_rpc("NobodyKnows") == CHANGE
    service = v2_grpc.OpenInferenceGrpc(None)  # type: ignore[arg-type]
    changing = {name for name in service.methods if authority.needed_for_rpc(name) == CHANGE}
    assert changing == {"RepositoryModelLoad", "RepositoryModelUnload"}


def test_a_bearer_is_found_by_the_hash_and_until_it_expires() -> None:
    grants = [
        authority.Grant(name="a", sha256=authority.hashed(b"one"), scopes=frozenset({"read"})),
        authority.Grant(name="b", sha256=authority.hashed(b"two"), scopes=frozenset({"infer"}), expires=100.0),
    ]
    assert authority.bearer(grants, b"one", 1e9) == grants[0]
    assert authority.bearer(grants, b"two", 99.0) == grants[1]
    assert authority.bearer(grants, b"two", 100.0) is None
    for wrong in (b"", b"three", b"One", grants[0].sha256.encode(), b"\xff\x00"):
        assert authority.bearer(grants, wrong, 0.0) is None


def test_a_bucket_lets_a_burst_in_and_then_the_rate() -> None:
    buckets = authority.Buckets(rate_per_s=4.0)
    assert [buckets.take(0.0, "a") for _ in range(5)] == [0.0, 0.0, 0.0, 0.0, 0.25]  # 1 ÷ 4 s to the next
    assert buckets.take(0.25, "a") == 0.0
    assert buckets.take(0.25, "b") == 0.0  # others have their own
    assert [buckets.take(100.0, "a") for _ in range(5)][-1] == 0.25  # a long rest fills it to 4, not further


def test_a_slow_rate_lets_one_in_at_a_time() -> None:
    buckets = authority.Buckets(rate_per_s=None)
    assert buckets.take(0.0, "a") == buckets.take(0.0, "a") == 0.0
    assert buckets.take(0.0, "slow", 0.1) == 0.0
    assert buckets.take(0.0, "slow", 0.1) == pytest.approx(10.0)
    assert buckets.take(5.0, "slow", 0.1) == pytest.approx(5.0)
    assert buckets.take(10.0, "slow", 0.1) == 0.0


def test_made_up_callers_do_not_fill_the_memory() -> None:
    buckets = authority.Buckets(rate_per_s=1.0, keep=10)
    for number in range(1000):
        buckets.take(float(number), str(number))
    assert len(buckets._levels) == 10


def test_tokens_are_kept_as_hashes_in_a_file_that_nobody_else_reads(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tokens.json"
    token = tokens.add(path, "ci", frozenset({"infer"}), rate_per_s=5.0)
    other = tokens.add(path, "ops", frozenset({"admin", "read"}), expires=1e9)
    assert token != other
    assert token not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second = tokens.load(path)
    assert (first.name, first.rate_per_s, first.expires) == ("ci", 5.0, None)
    assert authority.bearer([first, second], token.encode(), 0.0) == first
    tokens.remove(path, "ci")
    assert tokens.load(path) == (second,)


def test_names_are_given_once(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    tokens.add(path, "ci", frozenset({"infer"}))
    before = path.read_bytes()
    with pytest.raises(errors.InvalidInputError, match="has this name"):
        tokens.add(path, "ci", frozenset({"admin"}))
    with pytest.raises(errors.InvalidInputError, match="there are: ci"):
        tokens.remove(path, "cd")
    assert path.read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} == {"tokens.json", "tokens.json.lock"}


@pytest.mark.parametrize(
    "held",
    [
        "",
        "hunter2",
        "[]",
        "{}",
        '{"tokens": 1}',
        '{"tokens": ["hunter2"]}',
        '{"tokens": [{"name": "a", "sha256": "hunter2", "scopes": ["read"]}]}',
        '{"tokens": [{"name": "a", "sha256": "%s", "scopes": []}]}' % ("0" * 64),
        '{"tokens": [{"name": "a", "sha256": "%s", "scopes": ["root"]}]}' % ("0" * 64),
        '{"tokens": [{"name": "a b", "sha256": "%s", "scopes": ["read"]}]}' % ("0" * 64),
        '{"tokens": [{"name": "a", "sha256": "%s", "scopes": ["read"], "rate_per_s": 0}]}' % ("0" * 64),
        '{"tokens": [{"name": "a", "sha256": "%s", "scopes": ["read"], "more": 1}]}' % ("0" * 64),
        "[" * 100_000,
    ],
)
def test_other_files_are_refused_without_showing_them(tmp_path: Path, held: str) -> None:
    path = tmp_path / "tokens.json"
    path.write_text(held)
    with pytest.raises(errors.InvalidInputError) as refused:
        tokens.load(path)
    assert "hunter2" not in str(refused.value)


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    tokens.add(path, "a", frozenset({"read"}))
    known = tokens.TokenFile(path)
    tokens.add(path, "b", frozenset({"read"}))
    known.refresh()
    assert [grant.name for grant in known.grants] == ["a", "b"]
    whole = json.loads(path.read_text())
    path.write_text("half of a fi")
    known.refresh()
    assert [grant.name for grant in known.grants] == ["a", "b"]
    path.write_text(json.dumps({"tokens": whole["tokens"][:1]}))
    known.refresh()
    assert [grant.name for grant in known.grants] == ["a"]
    path.unlink()
    known.refresh()
    assert list(known.grants) == []  # who took the file away wanted nobody in
