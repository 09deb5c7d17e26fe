"""A share over several hosts: how it is divided, and what happens when a host cannot, will not or does not answer."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import agent as agents
from airflow_mlscale.cpu import detect, parts, ports
from airflow_mlscale.cpu.adapters import hosts, lease_client, process_table
from airflow_mlscale.spark.adapters import executors
from tests.fakes import clock as fake_clock
from tests.fakes import cpu as fake_cpu
from tests.fakes import cpu_agent

TERMS = ports.Terms(ttl_s=60.0)
NOBODY = "unix:/nowhere/agent.sock"


class Farm:
    """Some hosts, each an agent over a host without a kernel, and the port over all of them."""

    def __init__(self, folder: Path, sizes: dict[str, float]) -> None:
        self.folder = folder
        self.backends = {name: fake_cpu.FakeCpu(cores) for name, cores in sizes.items()}
        self.stacks = {name: ExitStack() for name in sizes}
        self.clock = fake_clock.FakeClock()
        for name in sizes:
            self.start(name)
        self.port = hosts.HostsPort({name: self.address(name) for name in sizes}, clock=self.clock)

    def address(self, name: str) -> str:
        return f"unix:{self.folder / name}.sock"

    def start(self, name: str) -> None:
        settings = agents.Settings(policy="proportional")
        self.stacks[name].enter_context(
            cpu_agent.agent_thread(self.backends[name], self.folder / f"{name}.sock", settings)
        )

    def stop(self, name: str) -> None:
        self.stacks[name].close()
        # It is held for the life of a process, and all these agents are in this one.
        (self.folder / f"{name}.sock.lock").unlink(missing_ok=True)

    def guaranteed(self, group: str = "job") -> dict[str, float]:
        return {name: round(backend.share(group).guaranteed_cores, 6) for name, backend in self.backends.items()}


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    built = Farm(tmp_path, {"one": 2.0, "two": 4.0})
    try:
        built.port.open("job")
        yield built
    finally:
        for name in built.stacks:
            built.stop(name)


def apply(farm: Farm, cores: float, terms: ports.Terms = TERMS) -> ports.CpuShare:
    return farm.port.apply("job", ports.CpuShare.strict(cores), terms)


def test_all_hosts_are_one_port(farm: Farm) -> None:
    assert (farm.port.host_cores, farm.port.enforces, farm.port.hosts) == (6.0, True, ("one", "two"))


def test_until_it_is_weighed_hosts_count_by_their_cores(farm: Farm) -> None:
    assert ports.CpuShare.strict(3.0) == apply(farm, 3.0)
    assert farm.guaranteed() == {"one": 1.0, "two": 2.0}  # 3 · 2/6, 3 · 4/6
    assert farm.port.shares("job") == {"one": ports.CpuShare.strict(1.0), "two": ports.CpuShare.strict(2.0)}


def test_a_share_follows_the_work(farm: Farm) -> None:
    farm.port.weigh("job", {"one": 3, "two": 1})
    apply(farm, 2.0)
    assert farm.guaranteed() == {"one": 1.5, "two": 0.5}
    farm.port.weigh("job", {"two": 1})
    apply(farm, 2.0)
    assert farm.guaranteed() == {"one": 0.125, "two": 2.0}  # who has no work left is unmanaged


def test_no_host_gets_more_than_it_has(farm: Farm) -> None:
    farm.port.weigh("job", {"one": 3, "two": 1})
    assert ports.CpuShare.strict(4.0) == apply(farm, 4.0)
    assert farm.guaranteed() == {"one": 2.0, "two": 2.0}  # 3 of 4 do not fit on two cores
    assert ports.CpuShare.strict(6.0) == apply(farm, 9.0)


def test_work_on_a_host_without_an_agent_is_told_once(farm: Farm, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        farm.port.weigh("job", {"one": 1, "three": 1})
    apply(farm, 1.0)
    assert farm.guaranteed()["one"] == 1.0
    assert [record.message for record in caplog.records if "three" in record.message] == [
        "part of CPU group job is on host three, which has no agent: it runs unmanaged"
    ]


def test_what_one_host_promised_to_others_comes_from_the_rest(farm: Farm) -> None:
    rival = lease_client.LeasePort(farm.address("one"))
    rival.open("rival")
    rival.apply("rival", ports.CpuShare(guaranteed_cores=2.0), TERMS)
    farm.port.weigh("job", {"one": 1, "two": 1})
    # host one divides 2 cores in proportion among 2 (rival) and 1.5 (job): 1.5 · 2/3.5 = 0.857 for the job
    granted = apply(farm, 3.0)
    assert farm.guaranteed() == {"one": pytest.approx(0.857143), "two": pytest.approx(2.142857)}
    assert granted.guaranteed_cores == pytest.approx(3.0)
    assert farm.backends["one"].share("job").ceiling_cores == 1.5  # idle cycles there may still be used


def test_a_host_that_refuses_the_minimum_is_asked_without_it(farm: Farm) -> None:
    rival = lease_client.LeasePort(farm.address("one"))
    rival.open("rival")
    rival.apply("rival", ports.CpuShare(guaranteed_cores=2.0), ports.Terms(minimum_cores=2.0, ttl_s=60.0))
    farm.port.weigh("job", {"one": 1, "two": 1})
    granted = apply(farm, 2.0, ports.Terms(minimum_cores=1.0, ttl_s=60.0))
    assert farm.guaranteed() == {"one": 0.0, "two": 2.0}
    assert granted.guaranteed_cores == 2.0

    everywhere = lease_client.LeasePort(farm.address("two"))
    everywhere.open("rival")
    everywhere.apply("rival", ports.CpuShare(guaranteed_cores=2.0), ports.Terms(minimum_cores=2.0, ttl_s=60.0))
    with pytest.raises(errors.AdmissionRefusedError, match="lower minimum_cores"):
        apply(farm, 3.0, ports.Terms(minimum_cores=2.5, ttl_s=60.0))
    assert farm.guaranteed() == {"one": 0.0, "two": 2.0}  # as before


def test_the_others_go_on_without_an_agent_that_died(farm: Farm, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for backend in farm.backends.values():
        backend.burn("job", 10.0)
    assert farm.port.usage("job").used_core_s == 20.0
    farm.stop("one")
    farm.backends["two"].burn("job", 1.0)
    granted = apply(farm, 3.0)
    assert granted.guaranteed_cores == 3.0
    assert farm.backends["two"].share("job").guaranteed_cores == 3.0
    assert farm.port.usage("job").used_core_s == 21.0  # the dead agent's last reading stays
    assert sum("host one" in record.message for record in caplog.records) == 1

    farm.start("one")
    farm.port.open("job")
    farm.clock.advance(hosts.RETRY_S)
    farm.port.usage("job")
    apply(farm, 3.0)
    assert farm.guaranteed() == {"one": 1.0, "two": 2.0}
    assert "host one: its agent answers again" in caplog.text
    assert farm.port.usage("job").used_core_s == 21.0  # its group is new there, and counts on


def test_every_agent_must_answer_at_first_unless_a_controller_goes_on(farm: Farm) -> None:
    addresses = {"one": farm.address("one"), "gone": NOBODY}
    with pytest.raises(errors.UnreachableError, match=r"/nowhere/agent\.sock does not answer"):
        hosts.HostsPort(addresses)
    resumed = hosts.HostsPort(addresses, partly=True)
    resumed.open("job")
    assert resumed.apply("job", ports.CpuShare.strict(1.0), TERMS) == ports.CpuShare.strict(1.0)
    with pytest.raises(errors.UnreachableError):
        hosts.HostsPort({"gone": NOBODY}, partly=True)
    with pytest.raises(errors.InvalidInputError, match="agents="):
        hosts.HostsPort({})


def test_closing_leaves_nothing_on_any_host(farm: Farm) -> None:
    apply(farm, 2.0)
    farm.port.close("job")
    assert [backend.groups() for backend in farm.backends.values()] == [[], []]


def test_named_agents_are_what_is_detected(farm: Farm) -> None:
    found = detect.detect(agents={"one": farm.address("one"), "two": farm.address("two")})
    assert (found.name, found.host_cores) == ("hosts", 6.0)


MARK = "mlscale.tests.SomeBackend"


@pytest.fixture
def sleepers() -> Iterator[dict[str, int]]:
    """Two processes that an engine might have started for two hosts, one of them with a child."""
    code = "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', 'input()']); print(c.pid); input()"
    with ExitStack() as stack:
        found = {}
        for host in ("10.0.0.1-host", "10.0.0.2-host"):
            command = [sys.executable, "-c", code, MARK, "--hostname", host]
            process = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            assert process.stdout
            found[host] = process.pid
            found[f"{host}'s child"] = int(process.stdout.readline())
            stack.callback(_kill, found[f"{host}'s child"])
        yield found


def _kill(pid: int) -> None:
    if psutil.pid_exists(pid):
        psutil.Process(pid).kill()


def test_processes_enter_by_the_words_of_their_command_line(farm: Farm, sleepers: dict[str, int]) -> None:
    words = {"one": (MARK, "10.0.0.1-host"), "two": (MARK, "10.0.0.2-host")}
    for _ in range(2):  # again and again, for those that start later
        assert farm.port.admit_matching("job", words) == {"one": 1, "two": 1}
    for name, host in (("one", "10.0.0.1-host"), ("two", "10.0.0.2-host")):
        [info] = farm.backends[name].groups()
        assert set(info.members) == {sleepers[host], sleepers[f"{host}'s child"]}
    assert farm.port.admit_matching("job", {"one": (MARK, "10.0.0.3-host")}) == {"one": 0}


@pytest.mark.parametrize("main_class", [executors.MAIN_CLASS, executors.YARN_MAIN_CLASS])
def test_executors_enter_by_their_own_hosts_agent_and_draw_the_share(farm: Farm, main_class: str) -> None:
    """Their command lines as Spark and YARN write them; no engine runs here."""
    application = "application_1700000000000_0001"

    def ask(path: str) -> object:
        assert path == f"/applications/{application}/executors"
        row = {"id": "1", "hostPort": "two:40001", "totalCores": 2, "activeTasks": 2, "isActive": True}
        return [row, {**row, "id": "driver", "hostPort": "one:40000"}]

    words = [main_class, "--executor-id", "1", "--hostname", "two", "--cores", "2", "--app-id", application]
    with subprocess.Popen([sys.executable, "-c", "input()", *words], stdin=subprocess.PIPE) as executor:
        try:
            finder = executors.spread(farm.port, "job", ask)
            assert finder is not None
            assert finder.find(application) == frozenset()  # nobody is left for the controller to admit
            assert [info.members for info in farm.backends["two"].groups()] == [(executor.pid,)]
            assert [info.members for info in farm.backends["one"].groups()] == [()]
        finally:
            executor.kill()
    apply(farm, 1.0)
    assert farm.guaranteed()["two"] == 1.0  # all of it: no task runs on the other


@pytest.mark.parametrize(
    "words",
    [[], ["python-interpreter"], ["a", "b", "c"], ["long-enough", "short"], "long-enough", [1, 2], ["x" * 2000]],
)
def test_words_that_could_mean_anybody_are_refused(farm: Farm, words: object) -> None:
    with pytest.raises(errors.InvalidInputError, match="command_contains="):
        process_table.check_words(words)
    if isinstance(words, list):
        agent = lease_client.LeasePort(farm.address("one"))
        agent.open("job")
        with pytest.raises(errors.InvalidInputError, match="command_contains"):
            agent.admit_matching("job", words)


def test_who_searches_is_never_found() -> None:
    own = psutil.Process(os.getpid()).cmdline()
    assert os.getpid() not in process_table.matching(own).matched


def test_filling_is_proportional_within_each_room() -> None:
    room = {"a": 1.0, "b": 4.0, "c": 4.0}
    assert parts.fill(3.0, {"a": 1, "b": 1, "c": 1}, room) == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert parts.fill(6.0, {"a": 1, "b": 1, "c": 1}, room) == {"a": 1.0, "b": 2.5, "c": 2.5}  # a is full
    assert parts.fill(4.0, {"a": 0, "b": 3, "c": 1}, room) == {"a": 0.0, "b": 3.0, "c": 1.0}
    assert parts.fill(99.0, {"a": 1, "b": 1, "c": 1}, room) == room
