"""One daemon hands over to the next: over real sockets, with fake workers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu.adapters import observe_only
from airflow_mlscale.roma import cores, deployment, fleet, model, settings
from airflow_mlscale.roma.adapters import handover
from tests.fakes import roma as fakes

ORDER = model.DeployOrder(name="m", artefact="/a", objective=model.Objective(milliseconds=100))


class Running:
    """A daemon that can be taken over from."""

    def __init__(self, state_dir: Path, store: fakes.MemoryState) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.lock = handover.StateLock(state_dir)
        self.lock.take()
        self.models = make(state_dir, store)
        self.left = asyncio.Event()
        door = handover.Door(
            state_dir, self.listener, self.models, self.lock, patience_s=30, leave=lambda: self.left.set()
        )
        self.waiting = asyncio.create_task(door.run())


def make(
    state_dir: Path,
    store: fakes.MemoryState | handover.HeldState,
    launcher: fakes.FakeLauncher | None = None,
    generation: int = 1,
) -> fleet.Fleet:
    return fleet.Fleet(
        store=store,
        launcher=launcher or fakes.FakeLauncher(),
        groups=cores.CoreGroups(observe_only.ObserveOnlyPort(host_cores=2.0)),
        artefacts=fakes.AnyArtefact(),
        config=settings.Settings(state_dir=state_dir),
        generation=generation,
    )


@pytest.fixture
def store() -> fakes.MemoryState:
    return fakes.MemoryState()


@pytest.fixture
async def running(tmp_path: Path, store: fakes.MemoryState) -> AsyncIterator[Running]:
    one = Running(tmp_path, store)
    await (await one.models.deploy(ORDER)).wait_settled(5)
    yield one
    one.waiting.cancel()
    await one.models.end()
    one.listener.close()
    one.lock.release()


async def knocked(state_dir: Path) -> tuple[handover.Offer, AbstractContextManager[handover.Offer]]:
    """The offer of the daemon that runs, asked for from another thread: connecting blocks."""
    context = handover.offered(state_dir)
    return await asyncio.to_thread(context.__enter__), context


async def test_a_successor_gets_the_socket_the_models_and_the_state(
    tmp_path: Path, running: Running, store: fakes.MemoryState
) -> None:
    offer, context = await knocked(tmp_path)
    assert offer.serving == {"m": "1"}
    assert offer.listener.getsockname() == running.listener.getsockname()
    with pytest.raises(deployment.NotReadyError, match="another daemon takes over"):
        await running.models.deploy(ORDER)
    held, lock = handover.HeldState(store), handover.StateLock(tmp_path)
    with pytest.raises(errors.InvalidInputError, match="another daemon uses this directory"):
        lock.take()
    successor = make(tmp_path, held, generation=offer.generation)
    assert successor.gateway_group != running.models.gateway_group
    await successor.restore()
    await offer.accept(successor, lock, held, timeout_s=5)
    await asyncio.wait_for(running.left.wait(), 5)
    assert successor["m"].replica().group != running.models["m"].replica().group
    context.__exit__(None, None, None)
    await successor.remove("m")
    assert store.saved == {}
    lock.release()


async def test_a_model_that_does_not_come_up_leaves_everything_as_it_was(
    tmp_path: Path, running: Running, store: fakes.MemoryState
) -> None:
    before = dict(store.saved)
    offer, context = await knocked(tmp_path)
    held = handover.HeldState(store)
    failing = fakes.FakeLauncher(failing_starts=1000)
    successor = make(tmp_path, held, failing, offer.generation)
    await successor.restore()
    with pytest.raises(errors.RunFailedError, match=r"version 1 of model 'm' did not come up .*cannot start"):
        await offer.accept(successor, handover.StateLock(tmp_path), held, timeout_s=5)
    assert store.saved == before
    context.__exit__(None, None, None)
    await successor.end()
    while True:  # the daemon learns of it by its own means
        try:
            await running.models.deploy(ORDER)
            break
        except deployment.NotReadyError:
            await asyncio.sleep(0.001)
    assert not running.left.is_set()
    _, context = await knocked(tmp_path)  # and waits for the next
    context.__exit__(None, None, None)


async def test_nobody_takes_over_where_no_daemon_runs(tmp_path: Path) -> None:
    with pytest.raises(errors.UnreachableError, match="mlscale roma serve"):
        await knocked(tmp_path)


def test_writes_wait_until_the_state_is_ours(store: fakes.MemoryState) -> None:
    store.save(model.Desired(name="gone"))
    held = handover.HeldState(store)
    held.save(model.Desired(name="m", loaded=False))
    held.save(model.Desired(name="m"))
    held.remove("gone")
    assert set(store.saved) == {"gone"}
    held.release()
    assert store.saved == {"m": model.Desired(name="m")}
    held.save(model.Desired(name="n"))
    held.remove("m")
    assert set(store.saved) == {"n"}
