"""The host agent's decisions, with a clock that jumps and a host in memory."""

from __future__ import annotations

import os

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import agent as agents
from airflow_mlscale.cpu import ports
from tests.fakes import clock as fake_clock
from tests.fakes import cpu as fake_cpu

TERMS = ports.Terms(ttl_s=10.0)


@pytest.fixture
def clock() -> fake_clock.FakeClock:
    return fake_clock.FakeClock()


@pytest.fixture
def host() -> fake_cpu.FakeCpu:
    return fake_cpu.FakeCpu(host_cores=2.0)


@pytest.fixture
def agent(host: fake_cpu.FakeCpu, clock: fake_clock.FakeClock) -> agents.Agent:
    return agents.Agent(host, agents.Settings(most_groups=3), clock=clock)


def tick(agent: agents.Agent) -> None:
    agent.expire(agent.due())


def test_a_lease_opens_its_group(agent: agents.Agent, host: fake_cpu.FakeCpu) -> None:
    assert agent.renew("a", ports.CpuShare.strict(0.5), TERMS) == ports.CpuShare.strict(0.5)
    assert host.share("a") == ports.CpuShare.strict(0.5)


def test_a_lease_runs_out(agent: agents.Agent, host: fake_cpu.FakeCpu, clock: fake_clock.FakeClock) -> None:
    agent.renew("a", ports.CpuShare.strict(0.5), TERMS)
    clock.advance(9.9)
    tick(agent)
    assert host.share("a") == ports.CpuShare.strict(0.5)
    clock.advance(0.1)
    tick(agent)
    assert host.share("a") == ports.UNMANAGED
    assert agent.counts.expiries == 1


def test_a_renewal_keeps_it(agent: agents.Agent, host: fake_cpu.FakeCpu, clock: fake_clock.FakeClock) -> None:
    for _ in range(5):
        agent.renew("a", ports.CpuShare.strict(0.5), TERMS)
        clock.advance(9.0)
        tick(agent)
    assert host.share("a") == ports.CpuShare.strict(0.5)
    assert agent.counts.renewals == 5


def test_a_newcomer_with_priority_takes_from_the_others(agent: agents.Agent, host: fake_cpu.FakeCpu) -> None:
    agent.renew("batch", ports.CpuShare(guaranteed_cores=2.0), TERMS)
    agent.renew("serving", ports.CpuShare(guaranteed_cores=1.5), ports.Terms(priority=ports.SERVING_PRIORITY))
    assert host.share("batch").guaranteed_cores == 0.5  # 2 − 1.5
    agent.close("serving")
    assert host.share("batch").guaranteed_cores == 2.0


def test_a_refused_lease_changes_nothing(agent: agents.Agent, host: fake_cpu.FakeCpu) -> None:
    agent.renew("a", ports.CpuShare.strict(1.5), ports.Terms(minimum_cores=1.5))
    with pytest.raises(errors.AdmissionRefusedError):
        agent.renew("b", ports.CpuShare.strict(1.0), ports.Terms(minimum_cores=1.0))
    assert [info.name for info in host.groups()] == ["a"]
    assert host.share("a") == ports.CpuShare.strict(1.5)
    assert (agent.counts.refusals, set(agent.leases)) == (1, {"a"})


def test_the_number_of_groups_is_limited(agent: agents.Agent) -> None:
    for group in ("a", "b", "c"):
        agent.open(group)
    with pytest.raises(errors.AdmissionRefusedError, match="3 CPU groups"):
        agent.open("d")
    agent.open("a")  # is open already


def test_only_changes_reach_the_other_groups(agent: agents.Agent, host: fake_cpu.FakeCpu) -> None:
    agent.renew("a", ports.CpuShare(guaranteed_cores=0.5), TERMS)
    agent.renew("b", ports.CpuShare(guaranteed_cores=0.5), TERMS)
    host.applied.clear()
    agent.renew("b", ports.CpuShare(guaranteed_cores=1.0), TERMS)
    assert [group for group, _, _ in host.applied] == ["b"]


def test_a_host_that_fails_for_a_while_is_brought_up_to_date_later(
    agent: agents.Agent, host: fake_cpu.FakeCpu, clock: fake_clock.FakeClock
) -> None:
    agent.renew("a", ports.CpuShare.strict(0.5), TERMS)
    clock.advance(11)
    host.fail = errors.TransientError("the kernel refused")
    tick(agent)
    host.fail = None
    assert host.share("a") == ports.CpuShare.strict(0.5)
    tick(agent)
    assert host.share("a") == ports.UNMANAGED


def test_starting_takes_over_what_is_there(agent: agents.Agent, host: fake_cpu.FakeCpu) -> None:
    for group in ("busy", "empty"):
        host.open(group)
        host.apply(group, ports.CpuShare.strict(0.1))
    host.admit("busy", os.getpid())
    agent.start()
    assert [ports.GroupInfo(name="busy", share=ports.UNMANAGED, members=(os.getpid(),))] == host.groups()
    assert [info.name for info in agent.groups()] == ["busy"]


def test_stopping_releases_everything(agent: agents.Agent, host: fake_cpu.FakeCpu) -> None:
    agent.renew("a", ports.CpuShare.strict(0.5), TERMS)
    agent.open("b")
    agent.stop()
    assert host.groups() == []


def test_unused_groups_go_after_a_while(
    agent: agents.Agent, host: fake_cpu.FakeCpu, clock: fake_clock.FakeClock
) -> None:
    linger_s = agent.settings.empty_group_linger_s
    agent.open("empty")
    agent.open("busy")
    agent.open("leased")
    host.admit("busy", os.getpid())
    agent.tidy()
    clock.advance(linger_s)
    agent.renew("leased", ports.CpuShare.strict(0.5), TERMS)
    agent.tidy()
    assert [info.name for info in host.groups()] == ["busy", "leased"]


def test_groups_of_a_holder_that_is_gone_go_soon(
    agent: agents.Agent, host: fake_cpu.FakeCpu, clock: fake_clock.FakeClock
) -> None:
    for group in ("a", "back"):
        agent.renew(group, ports.CpuShare.strict(0.5), TERMS)
    clock.advance(TERMS.ttl_s)
    tick(agent)
    agent.renew("back", ports.CpuShare.strict(0.5), TERMS)
    agent.tidy()
    clock.advance(agent.settings.orphan_linger_s)
    agent.tidy()
    assert [info.name for info in host.groups()] == ["back"]


def test_fewer_cores_may_be_divided_than_there_are(host: fake_cpu.FakeCpu) -> None:
    agent = agents.Agent(host, agents.Settings(cores=1.0))
    assert agent.renew("a", ports.CpuShare(guaranteed_cores=2.0), TERMS).guaranteed_cores == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [("policy", "nobody"), ("cores", 0.0), ("cores", float("nan")), ("tick_s", 0.0), ("most_groups", 0)],
)
def test_bad_settings(field: str, value: object) -> None:
    with pytest.raises(errors.InvalidInputError, match=f"{field}="):
        agents.Settings(**{field: value})
