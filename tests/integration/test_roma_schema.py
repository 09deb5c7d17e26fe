"""Requests made up from the OpenAPI document, against a real daemon: none ends in an error of the server."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import roma_daemon, roma_models

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(240)]

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"
KNOWN = {"model": ["line", "words", "examples"], "version": ["1"], "label": ["stable"]}
DEADLINE = "X-Mlscale-Deadline-Ms"
CHANGING = r"(load|unload|promote|rollback|mlscale/models/\{model\})$"
"""Ends of the paths whose requests change what is served, after which others may rightly be answered 503."""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[roma_daemon.Daemon]:
    artefacts = roma_models.built(tmp_path_factory)
    with roma_daemon.running(tmp_path_factory.mktemp("schema"), "--model-root", str(artefacts)) as one:
        for name in ("line1", "words", "examples"):
            objective = {"milliseconds": 60_000}  # nothing is given up however busy the machine is
            status = one.deploy(name.rstrip("1"), artefacts / name, objective=objective, max_cores=1)
            assert status["state"] == "ready", status
        yield one


def aimed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with the names of deployed models; without the deadline, which is kept by refusing with 503."""
    for item in document["paths"].values():
        for parameter in item.get("parameters", ()):
            parameter["schema"] = {"enum": KNOWN[parameter["name"]]}
        for operation in item.values():
            if isinstance(operation, dict) and "parameters" in operation:
                operation["parameters"] = [one for one in operation["parameters"] if one["name"] != DEADLINE]
    return document


def test_no_request_ends_in_an_error_of_the_server(daemon: roma_daemon.Daemon, tmp_path: Path) -> None:
    document = tmp_path / "openapi.json"
    document.write_text(json.dumps(aimed(daemon.call("GET", "/openapi.json").json())))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(document), "--url", daemon.url]
    command += ["--checks", CHECKS, "--max-examples", "40", "--seed", "1", "--phases", "fuzzing"]
    command += ["--request-timeout", "20", "--no-color"]
    reading, changing = ["--exclude-path-regex", CHANGING], ["--include-path-regex", CHANGING]
    for arguments in (reading, changing):
        whole = [*command, *arguments]
        done = subprocess.run(whole, capture_output=True, text=True, timeout=150, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert daemon.live()
        if arguments is reading:
            for name in KNOWN["model"]:
                assert daemon.status(name)["state"] == "ready"
