"""The host agent as its clients meet it: HTTP, tokens, errors, metrics, command line."""

from __future__ import annotations

import os
import socket as sockets
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from airflow_mlscale import errors
from airflow_mlscale.cpu import agent as agents
from airflow_mlscale.cpu import detect, listeners, ports
from airflow_mlscale.cpu.adapters import lease_client
from airflow_mlscale.runtime import processes
from tests.fakes import cpu as fake_cpu
from tests.fakes import cpu_agent, cpu_host

TOKEN = "correct-horse-battery-staple"
LEASE = {"guaranteed_cores": 0.5}


@pytest.fixture
def host() -> fake_cpu.FakeCpu:
    return fake_cpu.FakeCpu()


@pytest.fixture
def http(host: fake_cpu.FakeCpu, tmp_path: Path) -> Iterator[httpx.Client]:
    with (
        cpu_agent.agent_thread(host, tmp_path / "agent.sock", agents.Settings(most_groups=3)),
        httpx.Client(base_url="http://a", transport=httpx.HTTPTransport(uds=str(tmp_path / "agent.sock"))) as client,
    ):
        yield client


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b"\xff", "body"),
        (b"[" * 10_000, "body"),
        (b'{"guaranteed_cores": ' + b"1" * 5_000 + b"}", "body"),  # more digits than Python reads
        (b'{"guaranteed_cores": 1, "cores": 1}', "cores"),
        (rb'{"guaranteed_cores": 1, "\ud800": 1}', r"\ud800"),  # half a character: UTF-8 has no form for it
        (b"{}", "guaranteed_cores"),
        (b'{"guaranteed_cores": "1"}', "guaranteed_cores"),
        (b'{"guaranteed_cores": true}', "guaranteed_cores"),
        (b'{"guaranteed_cores": -1}', "guaranteed_cores"),
        (b'{"guaranteed_cores": NaN}', "guaranteed_cores"),
        (b'{"guaranteed_cores": 1e999}', "guaranteed_cores"),
        (b'{"guaranteed_cores": 1' + b"0" * 400 + b"}", "guaranteed_cores"),
        (b'{"guaranteed_cores": 1, "ceiling_cores": 0.5}', "ceiling_cores"),
        (b'{"guaranteed_cores": 1, "ceiling_cores": []}', "ceiling_cores"),
        (b'{"guaranteed_cores": 1, "ttl_s": 0}', "ttl_s"),
        (b'{"guaranteed_cores": 1, "ttl_s": 1e6}', "ttl_s"),
        (b'{"guaranteed_cores": 1, "priority": 1.5}', "priority"),
        (b'{"guaranteed_cores": 1, "minimum_cores": -1}', "minimum_cores"),
        (b'{"guaranteed_cores": 1, "deadline_at": "tomorrow"}', "deadline_at"),
        (b" " * 20_000, "body"),
    ],
)
def test_a_bad_lease_is_refused_by_field(http: httpx.Client, host: fake_cpu.FakeCpu, body: bytes, field: str) -> None:
    answer = http.put("/v1/groups/a/lease", content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (400, field)
    assert error["fix"]
    assert host.groups() == []  # nothing half-done


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/v1/groups/Nope", None, 400),
        ("PUT", "/v1/groups/..%2f..%2fetc", None, 404),
        ("GET", "/v1/groups/nobody/usage", None, 404),
        ("GET", "/v1/groups/nobody/entry-files", None, 404),
        ("POST", "/v1/groups/nobody/members", {"pid": 1}, 404),
        ("POST", "/v1/groups/a/members", {"pid": 0}, 400),
        ("POST", "/v1/groups/a/members", {"pid": "1"}, 400),
        ("POST", "/v1/groups/a/members", {"pid": 2**22 + 1}, 400),
        ("POST", "/v1/groups/a/members", {}, 400),
        ("PUT", "/v1/groups/a/lease", {"guaranteed_cores": 9, "minimum_cores": 9}, 409),
        ("GET", "/v1/nothing", None, 404),
        ("DELETE", "/v1/groups", None, 405),
    ],
)
def test_errors_have_one_shape(http: httpx.Client, method: str, path: str, body: object, status: int) -> None:
    assert http.put("/v1/groups/a").status_code == 200
    answer = http.request(method, path, json=body)
    assert (answer.status_code, set(answer.json()["error"]) >= {"type", "message"}) == (status, True)


def test_a_host_that_refuses_is_unavailable(http: httpx.Client, host: fake_cpu.FakeCpu) -> None:
    host.fail = errors.TransientError("the kernel refused")
    assert http.put("/v1/groups/a/lease", json=LEASE).status_code == 503
    host.fail = None
    assert http.put("/v1/groups/a/lease", json=LEASE).status_code == 200


def test_metrics(http: httpx.Client, host: fake_cpu.FakeCpu) -> None:
    http.put("/v1/groups/a/lease", json={**LEASE, "ceiling_cores": 1.0})
    http.put("/v1/groups/b/lease", json={"guaranteed_cores": 9, "minimum_cores": 9})
    host.burn("a", 1.5)
    samples = {
        (sample.name, sample.labels.get("group")): sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    }
    assert samples["mlscale_cpu_host_cores", None] == 2.0
    assert samples["mlscale_cpu_leases", None] == 1
    assert samples["mlscale_cpu_lease_renewals_total", None] == 1
    assert samples["mlscale_cpu_refusals_total", None] == 1
    assert samples["mlscale_cpu_guaranteed_cores", "a"] == 0.5
    assert samples["mlscale_cpu_ceiling_cores", "a"] == 1.0
    assert samples["mlscale_cpu_used_seconds_total", "a"] == 1.5


def test_a_lease_that_is_not_renewed_runs_out(http: httpx.Client, host: fake_cpu.FakeCpu) -> None:
    http.put("/v1/groups/a/lease", json={**LEASE, "ceiling_cores": 0.5, "ttl_s": 0.3})
    assert host.share("a") == ports.CpuShare.strict(0.5)
    processes.wait_until(lambda: host.share("a") == ports.UNMANAGED, what="expiry", timeout_s=20, poll_s=0.02)


def test_the_port_translates_refusals(http: httpx.Client, tmp_path: Path) -> None:
    port = lease_client.LeasePort(f"unix:{tmp_path / 'agent.sock'}")
    assert (port.backend, port.enforces, port.host_cores) == ("fake", True, 2.0)
    port.open("a")
    with pytest.raises(errors.AdmissionRefusedError, match="lower minimum_cores"):
        port.apply("a", ports.CpuShare(guaranteed_cores=9.0), ports.Terms(minimum_cores=9.0))


def test_the_socket_is_private(http: httpx.Client, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "agent.sock").stat().st_mode) == 0o600


def test_a_token_is_asked_for(host: fake_cpu.FakeCpu, tmp_path: Path) -> None:
    socket = tmp_path / "agent.sock"
    with (
        cpu_agent.agent_thread(host, socket, token=TOKEN) as address,
        httpx.Client(base_url="http://a", transport=httpx.HTTPTransport(uds=str(socket))) as http,
    ):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            for path in ("/v1/groups", "/metrics", "/v1/nothing"):
                assert http.get(path, headers=headers).status_code == 401
        assert http.get("/healthz").json()["status"] == "ok"
        with pytest.raises(errors.InvalidInputError, match="agent_token") as caught:
            lease_client.LeasePort(address, token="wrong")
        assert "wrong" not in str(caught.value)
        assert lease_client.LeasePort(address, token=TOKEN).groups() == []


def test_an_agent_process_over_tcp_with_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN + "\n")
    port = processes.free_port()
    arguments = ("--backend", "observe-only", "--listen", f"127.0.0.1:{port}", "--token-file", str(token_file))
    with cpu_agent.agent_process(tmp_path / "agent.sock", *arguments) as agent:
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(errors.InvalidInputError, match="agent_token"):
            detect.detect(address=url)
        monkeypatch.setenv(detect.AGENT_VARIABLE, url)
        monkeypatch.setenv(detect.TOKEN_VARIABLE, TOKEN)
        client = detect.detect()
        assert (client.name, client.enforces) == ("lease", False)
        client.open("a")
        client.admit("a", os.getpid())
        assert os.getpid() in client.groups()[0].members
        assert TOKEN not in agent.log_path.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--listen", "0.0.0.0:0"), "listen='0.0.0.0:0': others can reach a TCP port, on loopback too"),
        (("--listen", "127.0.0.1:0"), "listen='127.0.0.1:0': others can reach a TCP port, on loopback too"),
        (("--listen", "nonsense"), "listen='nonsense': use HOST:PORT"),
        (("--token-file", "/nowhere", "--listen", "127.0.0.1:0"), "token-file='/nowhere': cannot read it"),
        (("--listen", ".x:80", "--token-file", "TOKEN"), "listen='.x:80': cannot listen there"),
        (("--listen", "127.0.0.1:" + "9" * 5_000), "': use HOST:PORT"),
        (("--socket", "/proc/nope/x.sock"), "socket='/proc/nope/x.sock': cannot listen there"),
        (("--socket", "/"), "socket='/': this is not a socket"),
        (("--policy", "coin"), "policy='coin': use one of"),
        (("--cores", "-1"), "cores=-1.0: use a finite number"),
        (("--backend", "cgroup-v3"), "cpu='cgroup-v3'"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    given = [str(token_file) if word == "TOKEN" else word for word in arguments]
    agent = cpu_agent.AgentProcess(tmp_path / "agent.sock", *given)
    try:
        assert agent.child.wait(60) == 2
        [line] = [line for line in agent.log_path.read_text().splitlines() if line]
        assert message in line
        assert not (tmp_path / "agent.sock").exists()
    finally:
        agent.child.end()


def test_one_agent_for_a_socket_and_one_for_a_base(tmp_path: Path) -> None:
    with cpu_host.v1_base() as base, cpu_agent.agent_process(tmp_path / "one.sock", "--base", base) as first:
        for socket in ("one.sock", "two.sock"):
            second = cpu_agent.AgentProcess(tmp_path / socket, "--base", base)
            second.log_path = tmp_path / socket.replace("sock", "log")
            try:
                assert second.child.wait(60) == 2
                assert "another host agent is at work" in second.log_path.read_text()
            finally:
                second.child.end()
        assert cpu_agent.answers(first.address)


def test_a_socket_left_by_a_dead_agent_is_replaced(tmp_path: Path) -> None:
    left = sockets.socket(sockets.AF_UNIX)
    left.bind(str(tmp_path / "agent.sock"))
    left.close()
    listener = listeners.unix_socket(tmp_path / "agent.sock")
    listener.close()


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "agent.sock").write_text("precious")
    with pytest.raises(errors.InvalidInputError, match="not a socket"):
        listeners.unix_socket(tmp_path / "agent.sock")
    with pytest.raises(errors.InvalidInputError, match="at most 107 bytes"):
        listeners.unix_socket(tmp_path / ("x" * 120))


class TestDetection:
    @pytest.fixture(autouse=True)
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLSCALE_HOME", str(tmp_path))
        for variable in (detect.AGENT_VARIABLE, detect.TOKEN_VARIABLE, detect.BASE_VARIABLE):
            monkeypatch.delenv(variable, raising=False)

    def test_an_agent_at_the_default_socket_is_found(self, host: fake_cpu.FakeCpu) -> None:
        with cpu_agent.agent_thread(host, detect.default_socket()):
            assert detect.detect().name == "lease"

    def test_a_dead_socket_is_passed_over(self) -> None:
        listeners.unix_socket(detect.default_socket()).close()
        assert detect.detect().name != "lease"
        with pytest.raises(errors.UnreachableError):
            detect.detect("agent")

    def test_an_agent_that_was_named_must_answer(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv(detect.AGENT_VARIABLE, f"unix:{tmp_path}/nobody.sock")
        with pytest.raises(errors.UnreachableError, match=r"nobody\.sock does not answer: start it"):
            detect.detect()

    def test_observing_always_works(self) -> None:
        assert not detect.detect("observe-only").enforces

    @pytest.mark.parametrize("address", ["nowhere", "unix:relative.sock", "http://host:port"])
    def test_bad_addresses(self, address: str) -> None:
        with pytest.raises(errors.InvalidInputError, match="agent="):
            detect.detect(address=address)

    def test_bad_names(self) -> None:
        with pytest.raises(errors.InvalidInputError, match="use one of auto, agent"):
            detect.detect("magic")
