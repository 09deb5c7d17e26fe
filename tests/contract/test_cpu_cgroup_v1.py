"""That the kernel really enforces what the cgroup v1 adapter writes: busy processes, measured by the kernel's meter."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from airflow_mlscale.cpu import ports
from airflow_mlscale.cpu.adapters import cgroup, cgroup_v1, mounts
from airflow_mlscale.runtime import processes
from tests.fakes import cpu_host, cpu_load


@pytest.fixture
def base() -> Iterator[str]:
    with cpu_host.v1_base() as base:
        yield base


@pytest.fixture
def port(base: str) -> Iterator[cgroup.CgroupPort]:
    layout = cgroup_v1.find(base)
    assert layout is not None
    port = cgroup.CgroupPort(layout)
    yield port
    for info in port.groups():
        port.close(info.name)


def until_used(port: cgroup.CgroupPort, groups: list[str], core_s: float) -> dict[str, float]:
    """Core-seconds of each group, counted until together they have used so many more."""
    start = {group: port.usage(group).used_core_s for group in groups}

    def used() -> dict[str, float]:
        return {group: port.usage(group).used_core_s - start[group] for group in groups}

    processes.wait_until(lambda: sum(used().values()) >= core_s, what="load", timeout_s=60, poll_s=0.02)
    return used()


def test_a_ceiling_limits_a_busy_process(port: cgroup.CgroupPort) -> None:
    port.open("a")
    with cpu_load.busy() as pid:
        port.admit("a", pid)
        port.apply("a", ports.CpuShare.strict(0.3))
        until_used(port, ["a"], 0.1)  # what the bucket held at the start
        started = time.monotonic()
        used = until_used(port, ["a"], 0.6)["a"]
        assert 0.2 < used / (time.monotonic() - started) < 0.45
        assert port.usage("a").throttled_periods > 5

        port.apply("a", ports.CpuShare(guaranteed_cores=1.0))
        before = port.usage("a").throttled_periods
        until_used(port, ["a"], 0.6)
        assert before == port.usage("a").throttled_periods


@pytest.mark.parametrize(
    ("strong", "weak", "least_ratio"),
    [
        (ports.CpuShare(guaranteed_cores=1.0), ports.CpuShare(guaranteed_cores=0.25), 2.5),  # 4:1 by weight
        (ports.UNMANAGED, ports.IDLE, 10.0),
        (ports.CpuShare(guaranteed_cores=1.0), ports.CpuShare(guaranteed_cores=0.0, ceiling_cores=0.9), 10.0),
    ],
    ids=["weights", "idle class", "ceiling without guarantee"],
)
def test_weights_divide_a_contended_core(
    port: cgroup.CgroupPort, strong: ports.CpuShare, weak: ports.CpuShare, least_ratio: float
) -> None:
    core = min(os.sched_getaffinity(0))
    with ExitStack() as stack:
        for group, share in (("strong", strong), ("weak", weak)):
            pid = stack.enter_context(cpu_load.busy())
            os.sched_setaffinity(pid, {core})
            port.open(group)
            port.apply(group, share)
            port.admit(group, pid)
        used = until_used(port, ["strong", "weak"], 1.5)
    assert used["strong"] > least_ratio * used["weak"], used


def test_children_of_a_member_follow_it(port: cgroup.CgroupPort, base: str) -> None:
    port.open("a")
    files = " ".join(map(str, port.entry_files("a")))
    child = processes.spawn("nested", ["sh", "-c", f"for f in {files}; do echo $$ > $f; done; sh -c 'sleep 600'; :"])
    try:
        # the joined shell, and the shell or the sleep that it started
        processes.wait_until(lambda: len(port.groups()[0].members) >= 2, what="child", timeout_s=20, poll_s=0.02)
    finally:
        child.end()


def test_unchanged_shares_are_not_written_again(port: cgroup.CgroupPort) -> None:
    # Each write of a quota refills the bucket: rewritten every 20 ms, 0.2 cores were measured to be 0.8.
    port.open("a")
    share = ports.CpuShare.strict(0.2)
    with cpu_load.busy() as pid:
        port.admit("a", pid)
        port.apply("a", share)
        until_used(port, ["a"], 0.1)
        started, start = time.monotonic(), port.usage("a").used_core_s
        while (used := port.usage("a").used_core_s - start) < 0.4:
            port.apply("a", share)
            time.sleep(0.005)  # the rate of writing is what is tested
        assert used / (time.monotonic() - started) < 0.35


def test_a_closed_group_runs_unlimited_and_goes_when_it_is_empty(port: cgroup.CgroupPort) -> None:
    port.open("a")
    directory = port.entry_files("a")[0].parent
    with cpu_load.busy() as pid:
        port.admit("a", pid)
        port.apply("a", ports.CpuShare.strict(0.1))
        port.close("a")
        assert port.groups() == []
        assert enforced(directory) == ports.UNMANAGED
    processes.wait_until(lambda: port.groups() == [] and not directory.exists(), what="removal", timeout_s=20)


def test_a_group_that_vanished_is_made_again(port: cgroup.CgroupPort) -> None:
    port.open("a")
    for file in port.entry_files("a"):
        file.parent.rmdir()
    assert port.usage("a").used_core_s == 0.0
    for file in port.entry_files("a"):
        file.parent.rmdir()
    assert port.apply("a", ports.IDLE) == ports.IDLE
    assert [info.share for info in port.groups()] == [ports.IDLE]


def test_a_second_port_adopts_a_group_as_unmanaged(port: cgroup.CgroupPort, base: str) -> None:
    port.open("a")
    with cpu_load.busy() as pid:
        port.admit("a", pid)
        port.apply("a", ports.CpuShare.strict(0.125))
        layout = cgroup_v1.find(base)
        assert layout is not None
        second = cgroup.CgroupPort(layout)
        second.open("a")
        assert [ports.GroupInfo(name="a", share=ports.UNMANAGED, members=(pid,))] == second.groups()
        # and what the first one asks next is enforced again: nothing is cached
        port.apply("a", ports.CpuShare.strict(0.125))
        assert [info.share for info in second.groups()] == [ports.CpuShare.strict(0.125)]


def enforced(directory: Path) -> ports.CpuShare:
    text = {name: (directory / name).read_text().strip() for name in ("cpu.shares", "cpu.cfs_quota_us", "cpu.idle")}
    assert text["cpu.idle"] == "0"
    assert text["cpu.cfs_quota_us"] == "-1"
    return ports.CpuShare(guaranteed_cores=int(text["cpu.shares"]) / 8192)


def test_the_base_may_limit_the_host(base: str) -> None:
    cpu = mounts.v1_mount("cpu")
    assert cpu is not None
    (cpu / base / "cpu.cfs_quota_us").write_text("50000")
    layout = cgroup_v1.find(base)
    assert layout is not None
    assert cgroup.CgroupPort(layout).host_cores == 0.5
