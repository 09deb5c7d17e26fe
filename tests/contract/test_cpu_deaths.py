"""That nothing stays limited when a controller, its watchdog or the host agent is killed. All of it for real."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports
from airflow_mlscale.cpu.adapters import cgroup, cgroup_v1, lease_client
from airflow_mlscale.runtime import processes
from tests.fakes import cpu_agent, cpu_controller, cpu_host, cpu_load


@pytest.fixture
def base() -> Iterator[str]:
    with cpu_host.v1_base() as base:
        yield base


@pytest.fixture
def kernel(base: str) -> cgroup.CgroupPort:
    """Looks at the groups from outside."""
    layout = cgroup_v1.find(base)
    assert layout is not None
    return cgroup.CgroupPort(layout)


@pytest.fixture
def busy() -> Iterator[int]:
    with cpu_load.busy() as pid:
        yield pid


def share(kernel: cgroup.CgroupPort) -> ports.CpuShare | None:
    return next((info.share for info in kernel.groups() if info.name == "a"), None)


def wait(condition: Callable[[], bool], what: str) -> None:
    processes.wait_until(condition, what=what, timeout_s=30, poll_s=0.02)


def watchdog_of(pid: int) -> psutil.Process:
    (watchdog,) = (
        child for child in psutil.Process(pid).children() if "airflow_mlscale.cpu.watchdog" in child.cmdline()
    )
    return watchdog


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("extra", [(), ("fork",)], ids=["alone", "with a fork that holds the pipe"])
def test_a_killed_controller_leaves_nothing_limited(
    base: str, kernel: cgroup.CgroupPort, busy: int, how: signal.Signals, extra: tuple[str, ...]
) -> None:
    with cpu_controller.controller(f"direct:{base}", "a", busy, *extra) as controller:
        assert share(kernel) == cpu_controller.LIMIT
        watchdog = watchdog_of(controller.pid)
        controller.send_signal(how)
        wait(lambda: share(kernel) == ports.UNMANAGED, "restored share")
    assert psutil.pid_exists(busy)
    psutil.Process(busy).kill()
    wait(lambda: share(kernel) is None, "removal of the empty group")
    watchdog.wait(timeout=30)


def test_a_controller_that_just_ends_leaves_nothing_limited(base: str, kernel: cgroup.CgroupPort, busy: int) -> None:
    with cpu_controller.controller(f"direct:{base}", "a", busy) as controller:
        assert controller.stdin
        controller.stdin.close()
        wait(lambda: share(kernel) == ports.UNMANAGED, "restored share")


def test_killing_a_process_group_spares_the_watchdog(base: str, kernel: cgroup.CgroupPort, busy: int) -> None:
    with cpu_controller.controller(f"direct:{base}", "a", busy) as controller:
        watchdog = watchdog_of(controller.pid)
        watchdog.terminate()  # ignored: it ends after its owner
        os.killpg(controller.pid, signal.SIGKILL)
        wait(lambda: share(kernel) == ports.UNMANAGED, "restored share")


def test_a_killed_watchdog_is_replaced(base: str, kernel: cgroup.CgroupPort, busy: int) -> None:
    with cpu_controller.controller(f"direct:{base}", "a", busy) as controller:
        first = watchdog_of(controller.pid)
        first.kill()
        wait(lambda: not first.is_running() and bool(psutil.Process(controller.pid).children()), "second watchdog")
        assert share(kernel) == cpu_controller.LIMIT
        controller.kill()
        wait(lambda: share(kernel) == ports.UNMANAGED, "restored share")


def test_a_killed_lease_holder_loses_its_lease(base: str, kernel: cgroup.CgroupPort, busy: int, tmp_path: Path) -> None:
    with (
        cpu_agent.agent_process(tmp_path / "agent.sock", "--base", base) as agent,
        cpu_controller.controller(agent.address, "a", busy) as holder,
    ):
        assert share(kernel) == cpu_controller.LIMIT
        holder.kill()
        wait(lambda: share(kernel) == ports.UNMANAGED, "expiry")
        (row,) = lease_client.LeasePort(agent.address).status()
        assert (row["lease_left_s"], row["members"]) == (None, [busy])


def test_a_killed_agent_leaves_nothing_limited_and_its_successor_takes_over(
    base: str, kernel: cgroup.CgroupPort, busy: int, tmp_path: Path
) -> None:
    socket, terms = tmp_path / "agent.sock", ports.Terms(ttl_s=60.0)
    with cpu_agent.agent_process(socket, "--base", base) as agent:
        port = lease_client.LeasePort(agent.address)
        port.open("a")
        port.admit("a", busy)
        port.open("empty")
        for group in ("a", "empty"):
            port.apply(group, cpu_controller.LIMIT, terms)
        os.kill(agent.pid, signal.SIGKILL)
        wait(lambda: share(kernel) == ports.UNMANAGED, "restored share")
        wait(lambda: [info.name for info in kernel.groups()] == ["a"], "removal of the empty group")
        with pytest.raises(errors.UnreachableError, match="mlscale agent"):
            port.apply("a", cpu_controller.LIMIT, terms)

    with cpu_agent.agent_process(socket, "--base", base):
        (adopted,) = port.groups()
        assert adopted == ports.GroupInfo(name="a", share=ports.UNMANAGED, members=(busy,))
        assert port.usage("empty").used_core_s == 0  # opened again by itself
        assert port.apply("a", cpu_controller.LIMIT, terms) == cpu_controller.LIMIT
        assert share(kernel) == cpu_controller.LIMIT
        assert port.usage("a").used_core_s > 0
    assert share(kernel) == ports.UNMANAGED  # an orderly end restores, too


def test_closing_the_last_group_ends_the_watchdog(base: str) -> None:
    layout = cgroup_v1.find(base)
    assert layout is not None
    port = cgroup.CgroupPort(layout)
    others = watchdogs()
    port.open("a")
    assert watchdogs() == others  # nothing is limited yet
    port.apply("a", cpu_controller.LIMIT)
    assert len(watchdogs() - others) == 1
    port.close("a")
    assert watchdogs() == others


def watchdogs() -> set[int]:
    return {child.pid for child in psutil.Process().children() if "airflow_mlscale.cpu.watchdog" in child.cmdline()}
