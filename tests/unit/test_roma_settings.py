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
from airflow_mlscale.roma.adapters import artefacts


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
def test_beyond_loopback_a_token_is_needed(host: str) -> None:
    with pytest.raises(errors.InvalidInputError, match="needs a token"):
        settings.GatewaySettings(host=host)
    assert settings.GatewaySettings(host=host, token="secret").host == host


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


def saved_model(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"x")
    return path


def test_an_artefact_is_a_saved_model_directory(tmp_path: Path) -> None:
    disk = artefacts.LocalArtefacts()
    good = saved_model(tmp_path / "good")
    assert disk.check(str(good))[0] == good
    (tmp_path / "empty").mkdir()
    saved_model(tmp_path / "versions" / "2")
    for wrong, fix in {
        str(tmp_path / "none"): "no such directory",
        str(tmp_path / "empty"): "not a TensorFlow SavedModel",
        str(tmp_path / "versions"): "version directories",
        "s3://bucket/model": "not a URL",
        "relative": "absolute path",
        "~nobody-of-this-name/m": "cannot be read",
        "/m\0": "cannot be read",
        "/\ud800": "cannot be read",
        "/" + "x" * 300: "cannot be read",
    }.items():
        with pytest.raises(errors.ModelArtefactError, match=fix):
            disk.check(wrong)


def test_nothing_leads_out_of_the_model_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    inside, outside = saved_model(root / "in"), saved_model(tmp_path / "out")
    (root / "link").symlink_to(outside)
    disk = artefacts.LocalArtefacts(root)
    assert disk.check("in")[0] == inside
    for path in (str(outside), str(root / "link"), "../out", str(root / ".." / "out")):
        with pytest.raises(errors.ModelArtefactError, match="outside the model root"):
            disk.check(path)
    for name in ("../out", "in\0", "x" * 300, "."):
        assert disk.find(name) is None


def test_changed_files_change_the_fingerprint(tmp_path: Path) -> None:
    disk, path = artefacts.LocalArtefacts(), saved_model(tmp_path / "m")
    before = disk.check(str(path))[1]
    assert disk.check(str(path))[1] == before
    (path / "saved_model.pb").write_bytes(b"xy")
    assert disk.check(str(path))[1] != before


def test_the_newest_numbered_version_is_found(tmp_path: Path) -> None:
    for version in ("2", "10", "9"):
        saved_model(tmp_path / "m" / version)
    assert artefacts.LocalArtefacts(tmp_path).find("m") == (tmp_path / "m" / "10", "10")
