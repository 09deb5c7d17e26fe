"""Workers that outgrow their memory: renewed beside the old one, ended beyond the hard bound, told as a crash loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu.adapters import observe_only
from airflow_mlscale.roma import cores, deployment, fleet, memory, model, settings
from airflow_mlscale.runtime import journal
from tests.fakes import roma as fakes

LIMIT_MB = 100.0
WORKER = settings.WorkerSettings(backoff_first_s=0.01, backoff_max_s=0.02, drain_s=10)


@dataclass
class Bench:
    models: fleet.Fleet
    plant: memory.MemoryPlant
    launcher: fakes.FakeLauncher
    book: journal.Journal
    one: deployment.Deployment

    async def look(self, resident_mb: float) -> None:
        """One turn of the loop, the worker being this large."""
        self.launcher.last.resident_bytes = int(resident_mb * memory.MIB)
        await self.plant.act(await self.plant.observe())

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.001)

    def ask(self) -> asyncio.Future[model.Answer]:
        return self.one.replica().accept(model.Call("v2", b"x"), 60.0).answer


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    launcher = fakes.FakeLauncher()
    config = settings.Settings(state_dir=Path("/nowhere"), worker=WORKER)
    groups = cores.CoreGroups(observe_only.ObserveOnlyPort(host_cores=2.0))
    models = fleet.Fleet(
        store=fakes.MemoryState(), launcher=launcher, groups=groups, artefacts=fakes.AnyArtefact(), config=config
    )
    order = model.DeployOrder(
        name="m", artefact="/a", objective=model.Objective(milliseconds=100), max_memory_mb=LIMIT_MB
    )
    one = await models.deploy(order)
    book = journal.Journal(tmp_path / "journal.jsonl")
    bench = Bench(models, memory.MemoryPlant(models, WORKER, book), launcher, book, one)
    await bench.until(lambda: one.settled)
    yield bench
    await models.end()
    book.close()


async def test_a_worker_within_its_memory_is_left_alone(bench: Bench) -> None:
    await bench.look(LIMIT_MB)
    assert len(bench.launcher.workers) == 1
    assert memory.resident_bytes(bench.one.replica()) == LIMIT_MB * memory.MIB


async def test_a_fresh_worker_takes_over_and_the_old_one_finishes_what_it_began(bench: Bench) -> None:
    bench.launcher.automatic = False
    old, supervisor = bench.launcher.last, bench.one.replica().supervisor
    begun = bench.ask()
    await bench.look(LIMIT_MB + 20)
    await bench.until(lambda: supervisor.outgoing is old)
    fresh = bench.launcher.last
    later = bench.ask()
    assert (len(old.batches), len(fresh.batches)) == (1, 1)
    assert not old.ended
    old.answer()
    fresh.answer()
    assert [(await each).status for each in (begun, later)] == [200, 200]
    await bench.until(lambda: old.ended)
    assert supervisor.state is model.State.READY
    assert (supervisor.worker, supervisor.restarts, supervisor.renewals) == (fresh, 0, 1)
    assert "above max_memory_mb=100" in supervisor.reason
    assert not fresh.ended


async def test_one_fresh_worker_at_a_time(bench: Bench) -> None:
    await bench.look(LIMIT_MB + 20)
    old = bench.launcher.workers[0]
    await bench.plant.act(await bench.plant.observe())
    await bench.until(lambda: old.ended)
    assert len(bench.launcher.workers) == 2


async def test_beyond_the_hard_bound_it_is_ended_at_once_and_its_requests_are_asked_again(bench: Bench) -> None:
    bench.launcher.automatic = False
    begun = bench.ask()
    old = bench.launcher.last
    bench.launcher.automatic = True
    await bench.look(1.5 * LIMIT_MB + 1)
    assert (await asyncio.wait_for(begun, 10)).status == 200
    assert old.ended
    assert bench.one.replica().supervisor.renewals == 0


async def test_the_old_one_may_die_before_the_fresh_one_is_there(bench: Bench) -> None:
    supervisor = bench.one.replica().supervisor
    bench.launcher.failing_starts = 1
    await bench.look(LIMIT_MB + 20)
    bench.launcher.workers[0].die()
    await bench.until(lambda: len(bench.launcher.workers) == 2 and supervisor.state is model.State.READY)
    assert (await bench.ask()).status == 200


async def test_without_a_fresh_one_the_old_one_goes_on(bench: Bench) -> None:
    supervisor = bench.one.replica().supervisor
    bench.launcher.failing_starts = 1
    await bench.look(LIMIT_MB + 20)
    await bench.until(lambda: bench.launcher.failing_starts == 0)
    assert (await bench.ask()).status == 200
    assert supervisor.worker is bench.launcher.workers[0]


async def test_a_model_that_outgrows_every_worker_is_a_crash_loop(bench: Bench) -> None:
    supervisor = bench.one.replica().supervisor
    states = set()
    async with asyncio.timeout(10):
        while model.State.CRASH_LOOP not in states:
            await bench.look(LIMIT_MB + 20)
            await asyncio.sleep(0.001)
            states.add(supervisor.state)
    assert "above max_memory_mb=100" in supervisor.reason
    assert supervisor.renewals == WORKER.crash_loop_after - 1


async def test_another_limit_needs_no_new_worker(bench: Bench) -> None:
    order = model.DeployOrder(name="m", artefact="/a", max_memory_mb=200.0)
    await bench.models.deploy(order)
    await bench.look(LIMIT_MB + 20)
    assert len(bench.launcher.workers) == 1


@pytest.mark.parametrize("limit", [0, -1, True, float("nan"), "1", 2.0**31])
def test_limits_that_make_no_sense(limit: object) -> None:
    spec = model.ModelSpec(name="m", version="1", artefact="/a", objective=model.Objective(milliseconds=1))
    with pytest.raises(errors.InvalidInputError, match="max_memory_mb"):
        replace(spec, max_memory_mb=limit)  # type: ignore[arg-type]
