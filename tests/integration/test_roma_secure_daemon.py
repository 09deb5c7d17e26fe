"""A daemon beyond loopback, as the command line starts it: TLS, tokens, and everybody who asks it."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from airflow_mlscale.hooks.roma import RomaHook
from airflow_mlscale.roma.adapters import client
from airflow_mlscale.runtime import processes
from tests.fakes import certificates

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]


@dataclass
class Service:
    """The service of one MLSCALE_HOME, and what it takes to ask it."""

    home: Path
    port: int
    issuer: certificates.Authority

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def tokens(self) -> Path:
        return self.home / "roma" / "tokens.json"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "airflow_mlscale.cli", "roma", *arguments],
            env={**os.environ, "MLSCALE_HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def token(self, name: str, *arguments: str) -> str:
        made = self.run("token", "add", name, *arguments)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def ask(self, path: str, token: str) -> httpx.Response:
        trusted = client.trust(ca_file=self.issuer.path)
        headers = {"authorization": f"Bearer {token}"}
        return httpx.get(self.url + path, headers=headers, verify=trusted, trust_env=False, timeout=60)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    one = Service(tmp_path / "home", processes.free_port(), certificates.Authority(tmp_path / "authority"))
    try:
        yield one
    finally:
        one.run("down")


def test_a_daemon_beyond_loopback(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = service.issuer.issue("server")
    reads = service.token("reads", "--scope", "read")
    changes = service.token("changes", "--scope", "admin", "--rate", "1000", "--days", "1")
    log, journal = tmp_path / "access.log", tmp_path / "journal.jsonl"
    exposed = ["up", "--host", "0.0.0.0", "--port", str(service.port), "--no-grpc", "--access-log", str(log)]
    exposed += ["--tokens-file", str(service.tokens), "--journal", str(journal)]
    assert "needs TLS" in service.run(*exposed).stderr
    started = service.run(*exposed, "--tls-cert", str(certificate), "--tls-key", str(key))
    assert started.stdout == f"ROMA serves on https://127.0.0.1:{service.port}\n", started.stderr

    token_file = tmp_path / "token"
    token_file.write_text(reads)
    for asked in (["status"], ["top"]):  # this machine's own certificate is believed, whatever its names
        answer = service.run(*asked, "--token-file", str(token_file))
        assert (answer.returncode, answer.stderr) == (0, "")
        assert f"https://127.0.0.1:{service.port}" in answer.stdout
    assert "refuses it" in service.run("status").stderr

    assert service.ask("/v2/mlscale/models", reads).status_code == 200
    assert service.ask("/v2/mlscale/models", "hunter2").status_code == 401
    listed = service.run("token", "list").stdout
    assert "changes  admin  1000/s  until " in listed
    assert reads not in listed

    later = service.token("later", "--scope", "read")
    until(lambda: service.ask("/metrics", later).status_code == 200, "the new token")
    assert service.run("token", "remove", "later").returncode == 0
    until(lambda: service.ask("/metrics", later).status_code == 401, "the revocation")

    shown = _certificate(service.port)
    service.issuer.issue("server")
    until(lambda: _certificate(service.port) != shown, "the new certificate")
    assert service.run("status", "--token-file", str(token_file)).returncode == 0

    extra = {"ca_file": str(service.issuer.path)}
    connection = {"conn_type": "mlscale_roma", "host": "localhost", "schema": "https", "port": service.port}
    for more, works in (
        ({"password": changes, "extra": extra}, True),
        ({"password": changes, "extra": {"verify": False}}, True),
        ({"password": changes}, False),
        ({"password": "hunter2", "extra": extra}, False),
    ):
        monkeypatch.setenv("AIRFLOW_CONN_MLSCALE_ROMA", json.dumps({**connection, **more}))
        assert RomaHook().test_connection()[0] is works, more

    assert service.run("down").stdout == "ROMA stopped\n"
    written = [log, journal, service.tokens, *(service.home / "logs").iterdir()]
    for path in written:
        text = path.read_text()
        for secret in (reads, changes, later, "hunter2"):
            assert secret not in text, path
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["token"] for line in lines} == {None, "reads", "changes", "later"}


def test_a_daemon_that_asks_for_certificates(service: Service) -> None:
    certificate, key = map(str, service.issuer.issue("server"))
    ours = [str(path) for path in service.issuer.issue("operator")]
    secured = ["--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", str(service.issuer.path)]
    started = service.run("up", "--port", str(service.port), "--no-grpc", *secured)
    assert started.returncode == 0, started.stderr
    assert service.run("status", "--client-cert", ours[0], "--client-key", ours[1]).returncode == 0
    assert "does not answer" in service.run("status").stderr


def until(condition: Callable[[], bool], what: str) -> None:
    processes.wait_until(condition, what=what, timeout_s=60, poll_s=0.1)


def _certificate(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=10)


def test_wrong_files_are_refused_before_anything_starts(service: Service, tmp_path: Path) -> None:
    certificate, key = map(str, service.issuer.issue("server"))
    other_key = str(service.issuer.issue("other")[1])
    none = str(tmp_path / "none")
    for arguments, field in (
        (["--tokens-file", none], "tokens_file"),
        (["--tls-cert", certificate], "tls_key"),
        (["--tls-cert", certificate, "--tls-key", none], "tls_cert"),
        (["--tls-cert", certificate, "--tls-key", other_key], "tls_cert"),
        (["--tls-client-ca", certificate], "tls_client_ca"),
        (["--tls-cert", certificate, "--tls-key", key, "--tls-client-ca", none], "tls_client_ca"),
        (["--access-log", str(tmp_path / "no" / "where")], "access-log"),
        (["--rate", "0"], "rate_per_s"),
    ):
        refused = service.run("up", *arguments)
        assert (refused.returncode, field in refused.stderr) == (2, True), (arguments, refused.stderr)
    assert not (service.home / "roma").exists()
