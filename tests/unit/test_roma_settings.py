"""Bad settings and orders name the field, the value and the fix."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import main, model, settings
from airflow_mlscale.roma.adapters import client


@pytest.mark.parametrize("value", [0, -5, float("nan"), float("inf"), "50", None, True])
def test_an_objective_is_a_positive_number_of_milliseconds(value: Any) -> None:
    with pytest.raises(errors.InvalidInputError, match=r"objective\.milliseconds=.*give the latency"):
        model.Objective(milliseconds=value)


@pytest.mark.parametrize("value", [0, 100.5, -1, "95"])
def test_a_percentile_lies_within_100(value: Any) -> None:
    with pytest.raises(errors.InvalidInputError, match=r"objective\.percentile"):
        model.Objective(milliseconds=50, percentile=value)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "body"),
        ({}, "artefact"),
        ({"artefact": 5}, "artefact"),
        ({"artefact": "/m", "objektive": {}}, "objektive"),
        ({"artefact": "/m", "objective": 50}, "objective"),
        ({"artefact": "/m", "objective": {"milliseconds": 0}}, "objective.milliseconds"),
        ({"artefact": "/m", "objective": {"milliseconds": 10**400}}, "objective.milliseconds"),
        ({"artefact": "/m", "objective": {"milliseconds": 1e-322}}, "objective.milliseconds"),
        ({"artefact": "/m", "objective": {"milliseconds": 5, "p": 9}}, "objective"),
        ({"artefact": "/m", "version": "a/b"}, "version"),
    ],
)
def test_orders(document: Any, field: str) -> None:
    with pytest.raises(errors.InvalidInputError) as refused:
        model.order_from_json("m", document)
    assert refused.value.field == field


@pytest.mark.parametrize("name", ["", "../x", "a b", "x" * 81, ".hidden"])
def test_names(name: str) -> None:
    with pytest.raises(errors.InvalidInputError, match="name"):
        model.order_from_json(name, {"artefact": "/m"})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"min_cores": -1}, "min_cores"),
        ({"min_cores": 10**400}, "min_cores"),
        ({"min_cores": 2.0, "max_cores": 1.0}, "max_cores"),
        ({"max_cores": 0}, "max_cores"),
        ({"priority": 1.5}, "priority"),
        ({"max_batch": 0}, "max_batch"),
    ],
)
def test_specifications(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.InvalidInputError) as refused:
        model.ModelSpec(name="m", version="1", artefact="/m", objective=model.Objective(milliseconds=5), **changes)
    assert refused.value.field == field


def test_a_specification_survives_json() -> None:
    spec = model.ModelSpec(name="m", version="1", artefact="/m", objective=model.Objective(milliseconds=5), priority=3)
    assert model.spec_from_json(spec.as_json()) == spec


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_beyond_loopback_a_token_and_tls_are_needed(host: str) -> None:
    with pytest.raises(errors.InvalidInputError, match="needs a token"):
        settings.GatewaySettings(host=host)
    with pytest.raises(errors.InvalidInputError, match="needs TLS"):
        settings.GatewaySettings(host=host, token="secret")
    assert settings.GatewaySettings(host=host, token="secret", plaintext=True).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_loopback_needs_none(host: str) -> None:
    assert settings.GatewaySettings(host=host).token is None


def test_a_token_is_never_shown() -> None:
    assert "secret" not in repr(settings.GatewaySettings(token="secret"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: settings.GatewaySettings(port=70000),
        lambda: settings.GatewaySettings(max_body_bytes=3),
        lambda: settings.QueueSettings(give_up_factor=0.5),
        lambda: settings.ControlSettings(mode="eager"),  # type: ignore[arg-type]
        lambda: settings.ControlSettings(utilisation=1.5),
        lambda: settings.ControlSettings(period_s=0),
        lambda: settings.ControlSettings(period_s=float("nan")),
        lambda: settings.ControlSettings(period_s=5),  # a lease of 10 s would lapse after one late step
        lambda: settings.ControlSettings(gateway_cores=-1),
        lambda: settings.QueueSettings(max_requests=0),
        lambda: settings.QueueSettings(give_up_factor=float("nan")),
    ],
)
def test_settings_out_of_range(make: Callable[[], object]) -> None:
    with pytest.raises(errors.InvalidInputError):
        make()


def _options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    main.add_commands(parser.add_subparsers())
    return parser.parse_args(["roma", *arguments])


def test_the_command_line_refuses_bad_files_before_anything_starts(tmp_path: Path) -> None:
    empty = tmp_path / "token"
    empty.write_text("\n")
    binary, lines = tmp_path / "binary", tmp_path / "lines"
    binary.write_bytes(b"\xd0\x00")
    lines.write_text("one\ntwo")
    for arguments in (
        ["--token-file", str(tmp_path / "none")],
        ["--token-file", str(empty)],
        ["--token-file", str(binary)],
        ["--token-file", str(lines)],
        ["--token-file", str(tmp_path)],
        ["--model-root", str(tmp_path / "none")],
        ["--model-root", "x" * 300],
        ["--host", "0.0.0.0"],
        ["--max-body-mb", "nan"],
        ["--max-body-mb", "1e400"],
        ["--max-body-mb", "1e308"],
        ["--max-body-mb", "-1"],
        ["--journal", str(tmp_path)],
        ["--journal", str(binary)],
        ["--journal", str(empty / "journal")],
    ):
        options = _options("serve", "--state", str(tmp_path / "state"), *arguments)
        with pytest.raises(errors.InvalidInputError):
            options.run(options)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("action", ["serve", "up"])
def test_a_state_directory_that_cannot_be_had_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path / "home"))
    file = tmp_path / "file"
    file.touch()
    for state in (file, file / "state", Path("/proc/state")):
        options = _options(action, "--state", str(state))
        with pytest.raises(errors.InvalidInputError, match=r"^state=.*cannot be written"):
            options.run(options)
    assert not (tmp_path / "home").exists()


def test_what_a_token_file_holds_is_not_told(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_bytes(b"hunter2\xd0")
    options = _options("serve", "--token-file", str(secret))
    with pytest.raises(errors.InvalidInputError) as refused:
        options.run(options)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"execution_timeout_s": 0}, "execution_timeout_s"),
        ({"max_memory_mb": 0}, "max_memory_mb"),
        ({"memory_hard_factor": 0.9}, "memory_hard_factor"),
        ({"memory_period_s": 0}, "memory_period_s"),
    ],
)
def test_bad_limits_of_workers_are_named(changes: dict[str, float], field: str) -> None:
    with pytest.raises(errors.InvalidInputError) as refused:
        settings.WorkerSettings(**changes)
    assert (refused.value.field, refused.value.value) == (field, next(iter(changes.values())))


def test_null_lifts_a_limit_and_what_is_left_out_stays() -> None:
    first = model.order_from_json(
        "m", {"artefact": "/a", "objective": {"milliseconds": 5}, "max_cores": 1, "priority": 2}
    )
    last = first.onto(None, version="1", artefact="/a")
    later = model.order_from_json("m", {"artefact": "/a", "max_cores": None, "priority": None})
    assert (later.onto(last, version="1", artefact="/a").max_cores, later.lifted) == (None, {"max_cores"})
    assert later.onto(last, version="1", artefact="/a").priority == 2
    assert model.order_from_json("m", {"artefact": "/a"}).onto(last, version="1", artefact="/a").max_cores == 1
    assert client.order_body(later) == {"artefact": "/a", "max_cores": None}
    with pytest.raises(errors.InvalidInputError, match="lifted"):
        model.order_from_json("m", {"artefact": "/a", "lifted": []})


def test_a_percentile_alone_is_no_objective() -> None:
    options = parsed("deploy", "m", "/a", "--percentile", "99", "--max-cores", "none", "--max-memory-mb", "5")
    assert (options.max_cores, options.max_memory_mb, hasattr(options, "gpu_memory_mb")) == (None, 5.0, False)
    with pytest.raises(errors.InvalidInputError, match=r"percentile=99\.0: give --objective-ms too"):
        options.run(options)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    main.add_commands(parser.add_subparsers())
    return parser.parse_args(["roma", *words])
