"""What every CPU-share port does, real or fake: one suite over all of them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports
from airflow_mlscale.cpu.adapters import cgroup, cgroup_v1, cgroup_v2, hosts, lease_client, observe_only
from airflow_mlscale.runtime import processes
from tests.fakes import cpu as fake_cpu
from tests.fakes import cpu_agent, cpu_host, cpu_kernel, cpu_load

TERMS = ports.Terms(ttl_s=60.0)


@dataclass
class Rig:
    port: ports.CpuPort
    burn: Callable[[str], None] | None = None
    """Moves the meter of a port without real processes."""
    hosts: int = 1
    """Each has a least ceiling of its own."""


def _fake(stack: ExitStack, tmp_path: Path) -> Rig:
    port = fake_cpu.FakeCpu()
    return Rig(port, burn=lambda group: port.burn(group, 1.0))


def _v1(stack: ExitStack, tmp_path: Path) -> Rig:
    layout = cgroup_v1.find(stack.enter_context(cpu_host.v1_base()))
    assert layout is not None
    return Rig(cgroup.CgroupPort(layout))


def _v2(stack: ExitStack, tmp_path: Path) -> Rig:
    layout = cgroup_v2.find(mount=tmp_path, files=cpu_kernel.FakeKernel(tmp_path))
    assert layout is not None
    # A watchdog is another process and would ask the real kernel.
    return Rig(cgroup.CgroupPort(layout, watched=False))


def _observe_only(stack: ExitStack, tmp_path: Path) -> Rig:
    return Rig(observe_only.ObserveOnlyPort())


@pytest.fixture(scope="module")
def agent_over_v1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cpu_agent.AgentProcess]:
    socket = tmp_path_factory.mktemp("agent") / "agent.sock"
    with cpu_host.v1_base() as base, cpu_agent.agent_process(socket, "--base", base) as agent:
        yield agent


def _lease_over_fake(stack: ExitStack, tmp_path: Path) -> Rig:
    backend = fake_cpu.FakeCpu()
    address = stack.enter_context(cpu_agent.agent_thread(backend, tmp_path / "agent.sock"))
    return Rig(lease_client.LeasePort(address), burn=lambda group: backend.burn(group, 1.0))


def _hosts(number: int) -> Callable[[ExitStack, Path], Rig]:
    def rig(stack: ExitStack, tmp_path: Path) -> Rig:
        backends = [fake_cpu.FakeCpu() for _ in range(number)]
        addresses = {
            f"host-{index}": stack.enter_context(cpu_agent.agent_thread(backend, tmp_path / f"{index}.sock"))
            for index, backend in enumerate(backends)
        }
        return Rig(hosts.HostsPort(addresses), burn=lambda group: backends[-1].burn(group, 1.0), hosts=number)

    return rig


RIGS = {
    "fake": _fake,
    "cgroup-v1": _v1,
    "cgroup-v2": _v2,
    "observe-only": _observe_only,
    "lease-fake": _lease_over_fake,
    "hosts-1": _hosts(1),
    "hosts-2": _hosts(2),
}
LEASE_OVER_V1 = "lease-v1"
"""Over one agent process for all tests: it takes seconds to start."""


@pytest.fixture(params=[*RIGS, LEASE_OVER_V1])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with ExitStack() as stack:
        if request.param == LEASE_OVER_V1:
            rig = Rig(lease_client.LeasePort(request.getfixturevalue("agent_over_v1").address))
        else:
            rig = RIGS[request.param](stack, tmp_path)
        try:
            yield rig
        finally:
            for info in rig.port.groups():
                rig.port.close(info.name)


def share_of(port: ports.CpuPort, group: str) -> ports.CpuShare:
    return next(info.share for info in port.groups() if info.name == group)


def members_of(port: ports.CpuPort, group: str) -> tuple[int, ...]:
    return next(info.members for info in port.groups() if info.name == group)


def test_it_says_what_it_is(rig: Rig) -> None:
    assert rig.port.name
    assert isinstance(rig.port.enforces, bool)
    assert rig.port.host_cores > 0


@pytest.mark.parametrize("name", ["", "A", ".a", "a/b", "a..b/../c", "ä", "x" * 121, "a b", "a\n"])
def test_bad_names_are_refused(rig: Rig, name: str) -> None:
    port = rig.port
    for call in (port.open, port.usage, port.entry_files, port.close):
        with pytest.raises(errors.InvalidInputError, match="group="):
            call(name)
    with pytest.raises(errors.InvalidInputError, match="group="):
        port.apply(name, ports.IDLE)
    with pytest.raises(errors.InvalidInputError, match="group="):
        port.admit(name, 1)
    assert port.groups() == []


def test_calls_need_an_open_group(rig: Rig) -> None:
    port = rig.port
    for call in (port.usage, port.entry_files):
        with pytest.raises(KeyError):
            call("nobody")
    with pytest.raises(KeyError):
        port.apply("nobody", ports.IDLE)
    with pytest.raises(KeyError):
        port.admit("nobody", 1)


def test_a_new_group_is_unmanaged_and_empty(rig: Rig) -> None:
    rig.port.open("a")
    assert [ports.GroupInfo(name="a", share=ports.UNMANAGED, members=())] == rig.port.groups()
    assert rig.port.usage("a").used_core_s == 0.0


def test_opening_twice_changes_nothing(rig: Rig) -> None:
    rig.port.open("a")
    rig.port.apply("a", ports.CpuShare.strict(0.5), TERMS)
    rig.port.open("a")
    assert ports.CpuShare.strict(0.5) == share_of(rig.port, "a")


SHARES = [
    ports.IDLE,
    ports.UNMANAGED,
    ports.CpuShare.strict(0.25),
    ports.CpuShare.strict(0.3),
    ports.CpuShare.strict(0.75),
    ports.CpuShare(guaranteed_cores=0.0, ceiling_cores=0.5),
    ports.CpuShare(guaranteed_cores=0.25, ceiling_cores=0.875),
    ports.CpuShare(guaranteed_cores=1.0),
]


def test_every_share_can_follow_every_other(rig: Rig) -> None:
    rig.port.open("a")
    for before, after in permutations(SHARES, 2):
        assert before == rig.port.apply("a", before, TERMS)
        assert after == rig.port.apply("a", after, TERMS)
        seen = share_of(rig.port, "a")
        assert after.ceiling_cores == seen.ceiling_cores, (before, after)
        # cpu.weight counts 800 to a core, so a guarantee comes back to within 1/1600
        assert after.guaranteed_cores == pytest.approx(seen.guaranteed_cores, abs=1 / 1600), (before, after)


def test_shares_are_cut_to_the_host(rig: Rig) -> None:
    rig.port.open("a")
    most = rig.port.host_cores
    granted = rig.port.apply("a", ports.CpuShare(guaranteed_cores=most + 1, ceiling_cores=most + 2), TERMS)
    assert ports.CpuShare(guaranteed_cores=most, ceiling_cores=most) == granted


def test_a_minimum_beyond_the_host_is_refused(rig: Rig) -> None:
    rig.port.open("a")
    most = rig.port.host_cores
    before = share_of(rig.port, "a")
    greedy = dataclasses.replace(TERMS, minimum_cores=most + 1)
    with pytest.raises(errors.AdmissionRefusedError, match="minimum_cores"):
        rig.port.apply("a", ports.CpuShare(guaranteed_cores=most + 1), greedy)
    assert before == share_of(rig.port, "a")


def test_the_least_ceiling_is_a_hundredth_of_a_core(rig: Rig) -> None:
    rig.port.open("a")
    granted = rig.port.apply("a", ports.CpuShare(guaranteed_cores=0.0, ceiling_cores=0.0), TERMS)
    assert ports.CpuShare(guaranteed_cores=0.0, ceiling_cores=0.01 * rig.hosts) == granted
    assert granted.ceiling_cores == 0.01 * rig.hosts


def test_groups_are_independent(rig: Rig) -> None:
    for group in ("a", "b"):
        rig.port.open(group)
    rig.port.apply("a", ports.CpuShare.strict(0.5), TERMS)
    assert [info.name for info in rig.port.groups()] == ["a", "b"]
    assert share_of(rig.port, "b") == ports.UNMANAGED


def test_the_meter_counts_what_members_use(rig: Rig) -> None:
    port = rig.port
    port.open("a")
    with cpu_load.busy() as pid:
        port.admit("a", pid)
        before = port.usage("a").used_core_s
        if rig.burn:
            rig.burn("a")
        processes.wait_until(
            lambda: port.usage("a").used_core_s > before + 0.1, what="meter", timeout_s=20, poll_s=0.05
        )
        assert (pid,) == members_of(port, "a")
    after = port.usage("a").used_core_s
    if port.name != "cgroup-v2":  # the directory that plays kernel forgets processes that have ended
        assert after > before


def test_admission_needs_a_process(rig: Rig) -> None:
    rig.port.open("a")
    for pid in (0, -1, 2**22 + 1):  # 2^22 is the kernel's own limit
        with pytest.raises(errors.InvalidInputError, match="pid="):
            rig.port.admit("a", pid)


def test_a_process_joins_by_the_entry_files(rig: Rig) -> None:
    rig.port.open("a")
    files = rig.port.entry_files("a")
    if not files:  # then admission is the only way, as in the test above
        assert rig.port.name in {"fake", "observe-only", "lease", "hosts"}
        return
    joining = (
        "import os, sys\nfor f in sys.argv[1:]: open(f, 'w').write(str(os.getpid()))\nprint('in'); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", joining, *map(str, files)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"in\n"
            assert (process.pid,) == members_of(rig.port, "a")
        finally:
            process.kill()


def test_closing_removes_the_group(rig: Rig) -> None:
    rig.port.open("a")
    rig.port.apply("a", ports.CpuShare.strict(0.5), TERMS)
    rig.port.close("a")
    rig.port.close("a")
    rig.port.close("never-opened")
    assert rig.port.groups() == []
    with pytest.raises(KeyError):
        rig.port.usage("a")
    rig.port.open("a")
    assert share_of(rig.port, "a") == ports.UNMANAGED


def test_threads_may_share_it(rig: Rig) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            group = f"group-{number % 3}"
            for turn in range(10):
                rig.port.open(group)
                rig.port.apply(group, ports.CpuShare.strict(0.1 + 0.01 * turn), TERMS)
                rig.port.usage(group)
                rig.port.groups()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [info.name for info in rig.port.groups()] == ["group-0", "group-1", "group-2"]
    for info in rig.port.groups():
        assert ports.CpuShare.strict(0.19).ceiling_cores == pytest.approx(info.share.ceiling_cores)
