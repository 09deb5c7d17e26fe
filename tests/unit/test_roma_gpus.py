"""Models with seats on GPUs: which device answers, and that nothing is lost or answered twice when a GPU goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu.adapters import observe_only
from airflow_mlscale.roma import cores, deployment, devices, fleet, gpus, model, placement, residents, settings
from airflow_mlscale.roma.adapters import gpu_turn, handover
from airflow_mlscale.runtime import journal
from tests.fakes import roma as fakes
from tests.fakes import roma_gpus

MIB = 2**20
CONFIG = settings.Settings(
    state_dir=Path("/nowhere"),
    worker=settings.WorkerSettings(backoff_first_s=0.01, backoff_max_s=0.02, drain_s=1),
    gpu=settings.GpuSettings(use=True, emulated=True, backoff_first_s=0.5, backoff_max_s=60.0),
)
OBJECTIVE = model.Objective(milliseconds=1000)


class Bench:
    """A fleet of fake workers beside fake GPUs; `step` is one turn of the loop."""

    def __init__(self, *found: devices.Gpu) -> None:
        self.workers = fakes.FakeLauncher()
        self.port = roma_gpus.FakeGpus(*found)
        self.executors = roma_gpus.FakeExecutorLauncher()
        self.book = journal.Journal()
        groups = cores.CoreGroups(observe_only.ObserveOnlyPort(host_cores=2.0))
        self.models = fleet.Fleet(
            store=fakes.MemoryState(),
            launcher=self.workers,
            groups=groups,
            artefacts=fakes.AnyArtefact(),
            config=CONFIG,
        )
        self.plant = gpus.Gpus(
            self.models,
            self.port,
            self.executors,
            groups=groups,
            control=CONFIG.gpu,
            worker=CONFIG.worker,
            book=self.book,
        )

    async def deploy(self, name: str = "m", artefact: str = "/a", **fields: Any) -> deployment.Deployment:
        fields = {"gpu_memory_mb": 1000.0, **fields}
        one = await self.models.deploy(model.DeployOrder(name=name, artefact=artefact, objective=OBJECTIVE, **fields))
        await one.wait_settled(5)
        return one

    async def step(self) -> list[placement.Action]:
        """Observe, decide, act, and let what was begun come to its end."""
        seen = await self.plant.observe()
        actions = placement.place(seen.gpus, seen.models, CONFIG.gpu)
        await self.plant.act(actions)
        loads = [one.task for host in self.plant.hosts.values() for one in host.residents.values() if one.task]
        await asyncio.gather(*loads, return_exceptions=True)
        return actions

    def placed(self, one: deployment.Deployment) -> dict[str, Any]:
        return self.plant.placed_json(one.replica())

    def reasons(self) -> list[tuple[Any, str]]:
        return [(record.decided["device"], record.reason) for record in self.book.records()]


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.models.end()
    await made.plant.end()
    assert made.port.closed
    assert all(executor.ended for executor in made.executors.executors)


def ask(one: deployment.Deployment, body: str = "1") -> asyncio.Future[model.Answer]:
    return one.replica().accept(model.Call("v2", body.encode()), None).answer


def device_of(answer: model.Answer) -> str:
    return str(json.loads(answer.body).get("device", "cpu"))


async def test_a_seat_is_named_emulated_and_answers_because_it_is_faster(bench: Bench) -> None:
    one = await bench.deploy()
    assert device_of(await ask(one)) == "cpu"
    await bench.step()
    placed = bench.placed(one)
    assert (placed["state"], placed["device"], placed["uuid"]) == ("ready", "emulated-gpu", "GPU-a")
    assert device_of(await ask(one)) == "gpu"  # 0.5 ms against 1
    assert dict(one.replica().seats.answered) == {"cpu": 1, "emulated-gpu": 1}
    assert bench.plant.as_json()[0]["device"] == "emulated-gpu"
    assert bench.reasons() == [("emulated-gpu", "1000 MiB fit into the 7000 MiB that are free")]


async def test_while_the_gpu_is_busy_the_cpu_answers_what_it_can_do_sooner(bench: Bench) -> None:
    one = await bench.deploy(max_batch=1)
    await bench.step()
    bench.executors.automatic = False
    first = ask(one, "first")
    assert bench.executors.last.batches
    others = [ask(one, str(i)) for i in range(8)]  # the GPU would need 9 · 0.5 ms for all, the CPU 1 ms for one
    answers = await asyncio.gather(*others)
    assert {device_of(answer) for answer in answers} == {"cpu"}
    assert not first.done()
    bench.executors.last.answer()
    assert device_of(await first) == "gpu"


async def test_a_lost_gpu_loses_no_request_and_answers_none_twice(bench: Bench) -> None:
    one = await bench.deploy(device="gpu")
    await bench.step()
    bench.executors.automatic = False
    asked = {str(i): ask(one, str(i)) for i in range(20)}
    executor = bench.executors.last
    assert executor.batches
    assert not bench.workers.last.seen
    bench.port.readings["GPU-a"] = devices.Reading(uuid="GPU-a", fault="XID 79", lasting=True)
    await bench.step()
    while executor.batches:
        executor.answer()  # it is late: nobody waits for it
    answers = {body: json.loads((await answer).body) for body, answer in asked.items()}
    assert {body: answer["echo"] for body, answer in answers.items()} == {body: body for body in asked}
    assert all("device" not in answer for answer in answers.values())  # all of them from the CPU
    seen = [call.body.decode() for call in bench.workers.last.seen]
    assert sorted(seen) == sorted(asked)  # each was computed there once
    totals = one.replica().meter.totals
    assert {outcome.value: count for outcome, count in totals.items()} == {"served": 20}
    assert executor.ended
    assert bench.plant.as_json()[0]["state"] == "lost"
    assert await bench.step() == []
    assert bench.reasons()[-1] == ("cpu", "the GPU is lost: XID 79")
    assert device_of(await ask(one)) == "cpu"


async def test_a_gpu_that_answers_again_is_used_again(bench: Bench) -> None:
    one = await bench.deploy()
    await bench.step()
    bench.port.readings["GPU-a"] = devices.Reading(uuid="GPU-a", fault="NVML: GPU is lost")
    await bench.step()
    assert bench.placed(one)["state"] == "none"
    bench.port.readings["GPU-a"] = devices.Reading(uuid="GPU-a")
    await bench.step()
    assert bench.placed(one)["state"] == "ready"
    assert device_of(await ask(one)) == "gpu"


async def test_a_dead_executor_loses_no_request_and_another_one_comes(bench: Bench) -> None:
    one = await bench.deploy(device="gpu")
    await bench.step()
    bench.executors.automatic = False
    asked = [ask(one, str(i)) for i in range(10)]
    bench.executors.last.die()
    answers = await asyncio.gather(*asked)
    assert {device_of(answer) for answer in answers} == {"cpu"}
    assert len(bench.workers.last.seen) == 10
    assert bench.plant.as_json()[0]["state"] == "waiting"
    bench.executors.automatic = True
    while bench.placed(one)["state"] != "ready":  # once the pause of half a second is over
        await bench.step()
    assert len(bench.executors.executors) == 2
    assert device_of(await ask(one)) == "gpu"


async def test_without_a_cpu_worker_the_gpu_goes_on(bench: Bench) -> None:
    one = await bench.deploy()
    await bench.step()
    bench.workers.failing_starts = 10**6
    bench.workers.last.die()
    await asyncio.sleep(0)
    assert one.replica().supervisor.state is model.State.RESTARTING
    assert device_of(await ask(one)) == "gpu"
    bench.workers.failing_starts = 0


async def test_the_device_may_be_changed_while_running(bench: Bench) -> None:
    one = await bench.deploy()
    await bench.step()
    bench.executors.automatic = False
    under_way = ask(one)
    await bench.deploy(device="cpu")
    await bench.step()
    assert bench.placed(one)["state"] == "closing"
    assert device_of(await ask(one)) == "cpu"  # nothing new goes there
    assert bench.executors.last.models
    bench.executors.last.answer()
    assert device_of(await under_way) == "gpu"  # what was there is finished there
    await bench.step()
    assert (bench.placed(one)["state"], bench.executors.last.models) == ("none", {})
    bench.executors.automatic = True
    await bench.deploy(device="gpu")
    await bench.step()
    assert device_of(await ask(one)) == "gpu"


async def test_a_replaced_version_leaves_its_seat(bench: Bench) -> None:
    one = await bench.deploy()
    await bench.step()
    before = set(bench.executors.last.models)
    await bench.deploy(artefact="/b")
    await bench.step()
    assert bench.placed(one)["state"] == "ready"
    assert not before & set(bench.executors.last.models)
    assert len(bench.executors.last.models) == 1


async def test_models_share_an_executor_and_memory_decides_who(bench: Bench) -> None:
    small = [await bench.deploy(f"s{i}", f"/{i}", gpu_memory_mb=2000.0) for i in range(3)]
    large = await bench.deploy("large", "/l", gpu_memory_mb=6000.0)
    await bench.step()
    assert len(bench.executors.executors) == 1
    assert [bench.placed(one)["state"] for one in (*small, large)] == ["ready"] * 3 + ["none"]
    assert bench.plant.as_json()[0]["reserved_bytes"] == (600 + 3 * 2000) * MIB
    await bench.deploy("large", "/l", gpu_memory_mb=6000.0, device="gpu")
    # It insists: 600 + 6000 + 0.05 · 8000 leave room for nobody else.
    assert [type(action) for action in await bench.step()] == [placement.Evict] * 3
    await bench.step()
    assert [bench.placed(one)["state"] for one in (*small, large)] == ["none"] * 3 + ["ready"]


async def test_memory_is_measured_where_nvml_tells(bench: Bench) -> None:
    one = await bench.deploy(gpu_memory_mb=None)

    class Grown(roma_gpus.FakeExecutor):
        async def load(self, key: str, order: Any) -> Any:
            reading = bench.port.readings["GPU-a"]
            bench.port.readings["GPU-a"] = replace(reading, used_bytes=900 * MIB, processes={self.pid: 900 * MIB})
            return await super().load(key, order)

    async def launch(gpu: devices.Gpu, entry_files: Any) -> roma_gpus.FakeExecutor:
        bench.executors.executors.append(Grown(77, bench.executors))
        return bench.executors.last

    bench.executors.launch = launch  # type: ignore[method-assign]
    (load,) = await bench.step()
    assert "128 MiB fit" in load.reason  # estimated: no files, and a workspace
    placed = bench.placed(one)
    assert (placed["measured"], placed["reserved_bytes"]) == (True, 300 * MIB)  # 900 without a context of 600


@pytest.mark.parametrize(("artefact", "why"), [("/foreign", "cannot run on a GPU"), ("/deadly-on-gpu", "killed")])
async def test_what_cannot_be_brought_there_says_why_and_serves_on(bench: Bench, artefact: str, why: str) -> None:
    if artefact == "/deadly-on-gpu":
        one = await bench.deploy(artefact="/a")
        one.replica().supervisor.order = replace(one.replica().supervisor.order, artefact=artefact)
    else:
        one = await bench.deploy(artefact=artefact)
    await bench.step()
    placed = bench.placed(one)
    assert placed["state"] == "none"
    assert why in placed["note"]
    assert await bench.step() == []  # it is not tried again at once
    assert device_of(await ask(one)) == "cpu"


async def test_a_request_does_not_wait_for_a_gpu_that_hangs(bench: Bench) -> None:
    one = await bench.deploy(max_batch=1)
    await bench.step()
    bench.executors.automatic = False
    hanging = ask(one)
    waits = [ask(one, str(i)) for i in range(2)]
    answers = await asyncio.wait_for(asyncio.gather(*waits), 10)  # the CPU takes them 250 ms later at the latest
    assert {device_of(answer) for answer in answers} == {"cpu"}
    assert not hanging.done()
    hanging.cancel()


async def test_a_successor_gets_the_gpus_once_the_daemon_before_has_let_go(tmp_path: Path, bench: Bench) -> None:
    after, stop = Bench(), asyncio.Event()
    leaves = [asyncio.Event(), asyncio.Event()]
    locks = [handover.StateLock(tmp_path, gpu_turn.LOCK) for _ in range(2)]
    one, other = await bench.deploy(device="gpu"), await after.deploy(device="gpu")
    held = [
        asyncio.create_task(gpu_turn.hold(each.plant, lock, given_up=left, stop=stop))
        for each, lock, left in zip((bench, after), locks, leaves, strict=True)
    ]
    try:
        await asyncio.sleep(0)
        assert (bench.plant.ours, after.plant.ours) == (True, False)
        await bench.step()
        assert await after.step() == []
        assert after.plant.as_json()[0]["state"] == "waiting"
        assert after.placed(other) == {"state": "none", "note": gpus.TURN_NOTE}
        bench.executors.automatic = False
        under_way, waits = ask(one, "first"), ask(one, "second")
        leaves[0].set()
        assert device_of(await waits) == "cpu"  # nothing new goes to the GPU
        assert not after.plant.ours
        bench.executors.last.answer()
        assert device_of(await under_way) == "gpu"  # what was there ends there
        await asyncio.wait_for(held[0], 10)
        assert bench.executors.last.ended
        assert await bench.step() == []
        while not after.plant.ours:
            await asyncio.sleep(0.01)
        await after.step()
        assert device_of(await ask(other)) == "gpu"
    finally:
        stop.set()
        await asyncio.gather(*held)
        await after.models.end()
        await after.plant.end()
        for lock in locks:
            lock.release()


async def test_a_daemon_that_stops_does_not_wait_for_its_turn(tmp_path: Path, bench: Bench) -> None:
    other, stop = handover.StateLock(tmp_path, gpu_turn.LOCK), asyncio.Event()
    other.take()
    lock = handover.StateLock(tmp_path, gpu_turn.LOCK)
    held = asyncio.create_task(gpu_turn.hold(bench.plant, lock, given_up=asyncio.Event(), stop=stop))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.wait_for(held, 10)
    assert not bench.plant.ours
    other.release()


async def test_a_hand_over_that_has_no_time_left_asks_again_on_the_cpu(bench: Bench) -> None:
    one, stop = await bench.deploy(device="gpu"), asyncio.Event()
    await bench.step()
    bench.executors.automatic = False
    under_way = ask(one)
    stop.set()
    await bench.plant.hand_over(stop)
    assert device_of(await under_way) == "cpu"


async def test_gpus_are_chosen_by_name() -> None:
    whole = devices.Gpu(uuid="GPU-a", name="A", total_bytes=1)
    parts = [devices.Gpu(uuid=f"MIG-{i}", name="A", total_bytes=1, parent="GPU-b") for i in (1, 2)]

    def names(*uuids: str) -> list[str]:
        control = settings.GpuSettings(use=True, uuids=uuids)
        return [gpu.uuid for gpu in residents.chosen([whole, *parts], control)]

    assert names() == ["GPU-a", "MIG-1", "MIG-2"]
    assert names("MIG-2") == ["MIG-2"]
    assert names("GPU-b") == ["MIG-1", "MIG-2"]
    with pytest.raises(errors.InvalidInputError, match="no such GPU; this host has GPU-a, MIG-1, MIG-2"):
        names("GPU-c")
