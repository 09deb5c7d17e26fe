"""The two control loops over fake workers and a fake host: shares, loans, places, credit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_mlscale.roma import controller, cores, deployment, fleet, lending, model, replica, settings
from airflow_mlscale.runtime import journal
from tests.fakes import roma as fakes
from tests.fakes.cpu import FakeCpu

RESERVE = settings.Settings(
    state_dir=Path("/nowhere"), control=settings.ControlSettings(mode="reserve", gateway_cores=0.0)
)
OBJECTIVE = model.Objective(milliseconds=100)
LONG_S = 30.0


class Host:
    """A fleet under both loops, stepped by hand."""

    def __init__(self, config: settings.Settings) -> None:
        self.launcher = fakes.FakeLauncher()
        self.cpu = FakeCpu(host_cores=2.0)
        self.models = fleet.Fleet(
            store=fakes.MemoryState(),
            launcher=self.launcher,
            groups=cores.CoreGroups(self.cpu),
            artefacts=fakes.AnyArtefact(),
            config=config,
        )
        self.plant = controller.ServingPlant(self.models, self.cpu, config.control, journal.Journal())
        self.control = controller.control_loop(self.plant, host_cores=2.0, control=config.control)
        self.lending = lending.lending_loop(
            lending.LendingPlant(self.plant, self.cpu), host_cores=2.0, control=config.control
        )

    async def deploy(self, **changes: object) -> deployment.Deployment:
        order = model.DeployOrder(name="m", artefact="/a", objective=OBJECTIVE, **changes)  # type: ignore[arg-type]
        one = await self.models.deploy(order)
        await one.wait_settled(5)
        return one

    def applied(self, one: replica.Replica) -> list[float | None]:
        """Ceilings written for a replica, in order."""
        return [share.ceiling_cores for group, share, _ in self.cpu.applied if group == one.group]


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    made = Host(RESERVE)
    yield made
    await made.models.end()


def ask(one: replica.Replica, deadline_s: float | None = None) -> asyncio.Future[model.Answer]:
    return one.accept(model.Call("v2", b"1"), deadline_s).answer


async def test_a_line_that_grows_is_lent_idle_cores_and_gives_them_back(host: Host) -> None:
    one = (await host.deploy()).replica()
    for _ in range(10):  # they tell what a request costs
        await ask(one)
    await host.control.step()
    assert host.applied(one) == [0.1]  # min_cores
    assert one.threads == 1
    host.launcher.automatic = False
    pending = [ask(one, deadline_s=1.0) for _ in range(200)]  # 0.95 s left, and 200 ms of work
    await host.lending.step()
    base, raised = host.applied(one)
    assert base == 0.1
    assert raised is not None
    assert raised > 0.1
    assert host.cpu.share(one.group).guaranteed_cores == 0.1  # a loan is no guarantee
    await host.control.step()  # renews both
    assert host.applied(one)[-1] == raised
    host.launcher.automatic = True
    while host.launcher.last.batches:
        host.launcher.last.answer()
        await asyncio.sleep(0)
    assert {answer.status for answer in await asyncio.gather(*pending)} == {200}
    for _ in range(50):  # until it has been held long enough
        await host.lending.step()
        if host.applied(one)[-1] == 0.1:
            break
        await asyncio.sleep(settings.ControlSettings().boost_period_s)
    assert host.applied(one)[-1] == 0.1


async def test_what_does_not_change_is_not_written_again(host: Host) -> None:
    one = (await host.deploy()).replica()
    await host.control.step()
    for _ in range(5):
        await host.lending.step()
    assert host.applied(one) == [0.1]


async def test_concurrency_follows_the_share_and_the_bounds() -> None:
    host = Host(RESERVE)
    one = await host.deploy(min_cores=1.5)
    await host.control.step()
    assert one.replica().threads == 2  # 1.5 cores
    await host.deploy(min_cores=0.5, max_cores=1.0)
    assert len(host.launcher.workers) == 1  # the same worker goes on
    await host.control.step()
    assert one.replica().threads == 1
    assert host.applied(one.replica()) == [1.5, 0.5]
    await host.models.end()


async def test_a_busy_gateway_takes_nothing_of_what_is_promised(host: Host) -> None:
    one = (await host.deploy(min_cores=1.5)).replica()
    host.plant.gateway_guarantee = 1.0
    await host.control.step()
    assert host.applied(one) == [1.5]


async def test_on_a_busy_host_executions_wait_for_a_place_and_the_most_urgent_is_next() -> None:
    config = replace(RESERVE, control=replace(RESERVE.control, mode="work_conserving"))
    host = Host(config)
    slow = (await host.deploy()).replica()
    order = model.DeployOrder(name="other", artefact="/b", objective=OBJECTIVE, max_batch=1)
    other = await host.models.deploy(order)
    await other.wait_settled(5)
    host.launcher.automatic = False
    first, second = host.launcher.workers
    busy = [ask(slow, LONG_S), ask(slow, LONG_S)]  # both places of the host
    waiting = [ask(slow, LONG_S), ask(other.replica(), LONG_S / 2)]
    assert (len(first.batches), len(second.batches)) == (2, 0)
    first.answer()
    await busy[0]
    assert (len(first.batches), len(second.batches)) == (1, 1)  # half the time left
    host.launcher.automatic = True
    second.answer()
    first.answer()
    answers = await asyncio.wait_for(asyncio.gather(*busy, *waiting), 5)
    assert [answer.status for answer in answers] == [200] * 4
    await host.models.end()


async def test_who_is_more_important_takes_a_place_in_a_full_line() -> None:
    host = Host(replace(RESERVE, queue=settings.QueueSettings(max_requests=1)))
    one = (await host.deploy(max_cores=1.0)).replica()
    host.launcher.automatic = False
    busy, ordinary = ask(one, LONG_S), ask(one, LONG_S)
    vip = one.accept(model.Call("v2", b"1"), LONG_S, priority=3).answer
    with pytest.raises(replica.RefusedError, match="more important requests took its place") as refused:
        await ordinary
    assert refused.value.status == 429
    host.launcher.automatic = True
    host.launcher.last.answer()
    assert [answer.status for answer in await asyncio.gather(busy, vip)] == [200, 200]
    await host.models.end()
