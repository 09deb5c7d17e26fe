"""A federation across machines, on one: provisioned kits, and the commands that a server's and a site's machine run."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from airflow_mlscale.federated import roster
from airflow_mlscale.federated.adapters import kits, nvflare_admin
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.operators.federated import FederatedTrainingOperator, Quality
from airflow_mlscale.runtime import processes
from tests.fakes import federated_task

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

CODE = Path(__file__).parents[1] / "fakes"


def _address() -> str:
    """An address of this machine that is none of loopback if there is one: NVFlare treats loopback in its own way."""
    every = [
        each.address for found in psutil.net_if_addrs().values() for each in found if each.family == socket.AF_INET
    ]
    return next((address for address in every if not ipaddress.ip_address(address).is_loopback), "127.0.0.1")


@dataclass
class Machines:
    """Server and sites, each with its command."""

    address: str
    port: int
    admin: nvflare_admin.NvflareAdmin
    logs: Path
    commands: dict[str, processes.Child] = field(default_factory=dict)

    def start(self, name: str, *words: str) -> None:
        command = [sys.executable, "-m", "airflow_mlscale.cli", "federated", *words]
        self.commands[name] = processes.spawn(name, command, log_path=self.logs / f"{name}.log", grace_s=20)

    def wait_for(self, *sites: str) -> None:
        def registered() -> bool:
            try:
                return set(sites) <= set(self.admin.sites())
            except Exception:  # the server is still starting
                return False

        server = self.commands["server"]
        processes.wait_until(
            registered, what="the sites", timeout_s=90, alive=lambda: server.poll() is None,
            log_path=self.logs / "server.log", poll_s=0.5,
        )  # fmt: skip

    def tree(self, name: str) -> list[psutil.Process]:
        guard = psutil.Process(self.commands[name].pid)
        return [guard, *guard.children(recursive=True)]

    def everything(self) -> list[psutil.Process]:
        return [process for name in self.commands if self.commands[name].poll() is None for process in self.tree(name)]


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    directory = tmp_path_factory.mktemp("across")
    patch = pytest.MonkeyPatch()
    patch.setenv("MLSCALE_HOME", str(directory / "home"))
    patch.syspath_prepend(str(CODE))
    address = _address()
    federation = roster.parse(
        {
            "server": {"host": address, "port": processes.free_port(address)},
            "sites": [{"name": "a", "labels": {"region": "eu"}}, {"name": "b", "labels": {"region": "us"}}],
        }
    )
    done = kits.provision(federation, directory / "out")
    patch.setenv("AIRFLOW_CONN_MLSCALE_FEDERATED", done.connection)
    started = Machines(
        address, federation.server.port, nvflare_admin.NvflareAdmin(done.kits / federation.admin), directory / "logs"
    )
    everything: list[psutil.Process] = []
    try:
        started.start("server", "server", "--kit", str(done.kits / address))
        started.start("a", "site", "--kit", str(done.kits / "a"))
        own = ["--label", "device=gpu", "--data-args", "samples=123"]
        started.start("b", "site", "--kit", str(done.kits / "b.zip"), *own)
        started.wait_for("a", "b")
        yield started
    finally:
        everything = started.everything()
        for child in reversed(started.commands.values()):
            child.end()
        patch.undo()
        assert [process for process in everything if _alive(process)] == []


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _connections(found: list[psutil.Process]) -> list:
    every = []
    for process in found:
        try:
            every += process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
    return every


def training(task_id: str, **arguments) -> FederatedTrainingOperator:
    return FederatedTrainingOperator(
        **{
            "task_id": task_id,
            "model": "federated_blobs:build",
            "client_data": "federated_blobs:of_site",
            "evaluation_data": "federated_blobs:held_out",
            "target": Quality("accuracy", 1.0),
            "max_rounds": 2,
            "min_nodes": 1,
            "on_limit": "return_best",
            "round_timeout": 20,
            "poll_s": 0.2,
            **arguments,
        }
    )


@pytest.mark.long
def test_a_run_selects_by_label_and_talks_to_nobody_else(machines, tmp_path):
    operator = training("selects", sites=["device=gpu"], output_dir=str(tmp_path / "model"))
    talked_to: set[str] = set()
    with ThreadPoolExecutor(1) as worker:
        result = worker.submit(operator.execute, federated_task.context("selects"))

        def done() -> bool:
            talked_to.update(each.raddr.ip for each in _connections(machines.everything()) if each.raddr)
            return result.done()

        processes.wait_until(done, what="the run", timeout_s=150, poll_s=0.3)
    told = result.result()

    state = FederatedHook().runs.directory(told["run_id"]).state()
    assert {done.asked for done in state.rounds} == {("b",)}  # a label that the site gave itself
    assert {site.name: site.samples for site in state.sites} == {"b": 123}  # and a data argument of its own
    assert talked_to <= {machines.address, "127.0.0.1"}  # no third party
    card = json.loads((tmp_path / "model" / "model_card.json").read_text())
    assert Path(told["model_card"]) == tmp_path / "model" / "model_card.md"
    assert [(site["name"], site["samples"]) for site in card["data"]["sites"]] == [("b", 123)]
    assert card["quality"]["value"] == told["accuracy"]


@pytest.mark.long
def test_labels_that_no_site_has_end_the_run_with_those_that_there_are(machines):
    with pytest.raises(Exception, match=r"no connected site has these labels; there are device=gpu, region=eu, region"):
        training("nobody", sites=["region=asia"]).execute(federated_task.context("nobody"))


def test_the_server_listens_on_its_own_address_and_sites_on_loopback_alone(machines):
    def listening(name: str) -> set[tuple[str, bool]]:
        found = [each.laddr for each in _connections(machines.tree(name)) if each.status == psutil.CONN_LISTEN]
        return {(address.ip, address.port == machines.port) for address in found}

    assert (machines.address, True) in listening("server")
    assert {ip for ip, public in listening("server") if not public} <= {"127.0.0.1"}
    assert {ip for site in ("a", "b") for ip, _ in listening(site)} <= {"127.0.0.1"}


@pytest.mark.long
def test_after_a_server_that_was_killed_sites_are_selected_by_what_its_kit_knows(machines):
    """Sites go on without registering again, so a server that is started anew was told no labels."""
    _kill(machines, "server", "bound_server")
    machines.wait_for("a", "b")

    told = training("again", sites=["region=eu"], max_rounds=1).execute(federated_task.context("again"))

    assert [done.asked for done in FederatedHook().runs.directory(told["run_id"]).state().rounds] == [("a",)]


def test_a_site_whose_process_is_killed_comes_back(machines):
    _kill(machines, "a", "client_train")

    machines.wait_for("a", "b")


def _kill(machines: Machines, name: str, program: str) -> None:
    """Kill NVFlare's process of a participant, and wait for its successor."""
    (victim,) = _running(machines, name, program)
    victim.kill()
    processes.wait_until(
        lambda: [each.pid for each in _running(machines, name, program)] not in ([], [victim.pid]),
        what=name, timeout_s=30,
    )  # fmt: skip
    assert "ended with code 137; it is started again in 1 s" in (machines.logs / f"{name}.log").read_text()


def _running(machines: Machines, name: str, program: str) -> list[psutil.Process]:
    """NVFlare's process itself, and not the guards of it, whose command lines hold its own."""

    def is_it(process: psutil.Process) -> bool:
        words = _words(process)
        return "--grace" not in words and any(word.endswith(f".{program}") for word in words)

    return [process for process in machines.tree(name) if is_it(process)]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_a_command_that_is_told_to_end_takes_everything_with_it(machines):
    everything = machines.tree("b")

    os.kill(processes.command_pid(machines.commands["b"].pid), signal.SIGTERM)

    assert machines.commands["b"].wait(30) == 0
    assert [process for process in everything if _alive(process)] == []
