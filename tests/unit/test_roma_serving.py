"""Replicas and deployments over fake workers: nothing accepted is lost; the old version stays until the new is warm."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu.adapters import observe_only
from airflow_mlscale.roma import (
    comeback,
    controller,
    cores,
    deployment,
    fleet,
    measurement,
    model,
    ports,
    post,
    runtimes,
    settings,
)
from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.runtime import journal
from tests.fakes import roma as fakes
from tests.fakes.cpu import FakeCpu

CONFIG = settings.Settings(
    state_dir=Path("/nowhere"),
    queue=settings.QueueSettings(max_requests=4, max_bytes=1000, give_up_factor=10),
    worker=settings.WorkerSettings(backoff_first_s=0.01, backoff_max_s=0.02, drain_s=1),
)
OBJECTIVE = model.Objective(milliseconds=100)
LONG_S = 30.0


@pytest.fixture
def launcher() -> fakes.FakeLauncher:
    return fakes.FakeLauncher()


@pytest.fixture
def store() -> fakes.MemoryState:
    return fakes.MemoryState()


@pytest.fixture
async def models(launcher: fakes.FakeLauncher, store: fakes.MemoryState) -> AsyncIterator[fleet.Fleet]:
    made = make(launcher, store)
    yield made
    await made.end()


def make(
    launcher: fakes.FakeLauncher,
    store: fakes.MemoryState,
    config: settings.Settings = CONFIG,
    artefacts: fakes.AnyArtefact | None = None,
) -> fleet.Fleet:
    groups = cores.CoreGroups(observe_only.ObserveOnlyPort(host_cores=2.0))
    artefacts = artefacts or fakes.AnyArtefact()
    return fleet.Fleet(store=store, launcher=launcher, groups=groups, artefacts=artefacts, config=config)


async def deploy(models: fleet.Fleet, artefact: str = "/a", **changes: object) -> deployment.Deployment:
    order = model.DeployOrder(name="m", artefact=artefact, objective=OBJECTIVE, **changes)  # type: ignore[arg-type]
    one = await models.deploy(order)
    await one.wait_settled(5)
    return one


def ask(one: deployment.Deployment, body: str = "1", deadline_s: float | None = None) -> asyncio.Future[model.Answer]:
    return one.replica().accept(model.Call("v2", body.encode()), deadline_s).answer


def version_of(answer: model.Answer) -> str:
    return str(json.loads(answer.body)["version"])


async def test_a_deployed_model_answers(models: fleet.Fleet) -> None:
    one = await deploy(models)
    assert one.state == model.State.READY
    answer = await ask(one, "hello")
    assert json.loads(answer.body) == {"echo": "hello", "version": "1"}


async def test_the_old_version_serves_until_the_new_one_is_warm(
    models: fleet.Fleet, launcher: fakes.FakeLauncher
) -> None:
    await deploy(models)
    await models.deploy(model.DeployOrder(name="m", artefact="/slow"))
    one = models["m"]
    assert not one.settled
    assert version_of(await ask(one)) == "1"
    launcher.slow.set()
    await one.wait_settled(5)
    assert version_of(await ask(one)) == "2"
    assert one.spec.objective == OBJECTIVE  # what an order does not name stays


async def test_a_swap_answers_what_the_old_version_had_accepted(
    models: fleet.Fleet, launcher: fakes.FakeLauncher
) -> None:
    one = await deploy(models)
    launcher.automatic = False
    pending = [ask(one, deadline_s=LONG_S) for _ in range(4)]  # two at the worker, two in the line
    old = launcher.last
    await deploy(models, "/b")
    assert one.spec.version == "2"
    launcher.automatic = True
    while old.batches:
        old.answer()
        await asyncio.sleep(0)
    assert {version_of(answer) for answer in await asyncio.gather(*pending)} == {"1"}


async def test_a_version_that_cannot_be_loaded_leaves_the_old_one(
    models: fleet.Fleet, store: fakes.MemoryState
) -> None:
    await deploy(models)
    one = await deploy(models, "/broken")
    assert (one.state, one.spec.version) == (model.State.READY, "1")
    assert one.desired.failed_version == "2"
    assert "TensorFlow cannot load it" in str(one.desired.failure)
    saved = store.saved["m"]
    assert saved.active is not None
    assert (saved.active.version, saved.candidate) == ("1", None)  # a restart brings back version 1 alone


async def test_a_first_version_that_cannot_be_loaded_is_failed(models: fleet.Fleet) -> None:
    one = await deploy(models, "/broken")
    assert one.state == model.State.FAILED
    with pytest.raises(deployment.NotReadyError, match="failed"):
        one.replica()


async def test_a_wrong_order_changes_nothing(models: fleet.Fleet, store: fakes.MemoryState) -> None:
    with pytest.raises(errors.ModelArtefactError):
        await deploy(models, "/missing")
    with pytest.raises(errors.AdmissionRefusedError, match=r"min_cores=3 .* 2 cores, the gateway 0\.25"):
        await deploy(models, min_cores=3.0)
    with pytest.raises(errors.InvalidInputError, match="objective"):
        await models.deploy(model.DeployOrder(name="m", artefact="/a"))
    assert list(models) == []
    assert store.saved == {}


async def test_a_model_that_failed_is_guaranteed_nothing(models: fleet.Fleet) -> None:
    async def other(min_cores: float) -> deployment.Deployment:
        return await models.deploy(
            model.DeployOrder(name="other", artefact="/o", objective=OBJECTIVE, min_cores=min_cores)
        )

    assert (await deploy(models, "/broken", min_cores=1.75)).state == model.State.FAILED
    await (await other(0.5)).wait_settled(5)
    with pytest.raises(errors.AdmissionRefusedError, match=r"guaranteed 0\.5 of this host's 2 cores"):
        await deploy(models, "/a", min_cores=1.75)
    with pytest.raises(errors.AdmissionRefusedError):
        await models.load("m")


async def test_a_version_that_is_being_loaded_holds_its_guarantee_already(models: fleet.Fleet) -> None:
    await deploy(models, min_cores=0.1)
    await models.deploy(model.DeployOrder(name="m", artefact="/slow", min_cores=1.5))
    other = model.DeployOrder(name="other", artefact="/o", objective=OBJECTIVE, min_cores=1.0)
    with pytest.raises(errors.AdmissionRefusedError, match=r"guaranteed 1\.5 of"):
        await models.deploy(other)
    await models.deploy(model.DeployOrder(name="m", artefact="/a"))  # withdraws it
    await models.deploy(other)


async def test_the_same_files_are_not_loaded_twice(models: fleet.Fleet, launcher: fakes.FakeLauncher) -> None:
    await deploy(models)
    one = await deploy(models, min_cores=0.5)
    assert (one.spec.version, one.spec.min_cores) == ("1", 0.5)
    assert len(launcher.workers) == 1


async def test_another_runtime_is_another_version(models: fleet.Fleet, launcher: fakes.FakeLauncher) -> None:
    await deploy(models)
    one = await deploy(models, runtime=runtimes.Runtime(name="openvino"))
    assert (one.spec.version, launcher.last.order and launcher.last.order.runtime.name) == ("2", "openvino")
    one = await deploy(models)  # what is left out stays
    assert (one.spec.version, one.spec.runtime.name, len(launcher.workers)) == ("2", "openvino", 2)


async def test_a_restarted_worker_keeps_the_runtime_that_was_chosen(
    models: fleet.Fleet, launcher: fakes.FakeLauncher
) -> None:
    one = await deploy(models, runtime=runtimes.Runtime(name="auto"))
    assert launcher.last.order is not None
    assert launcher.last.order.runtime.name == "auto"
    launcher.last.die()
    await ask(one)
    assert launcher.last.order.runtime.name == "tensorflow"  # which the fake chose
    assert one.active is not None
    assert one.active.loaded is not None
    assert one.active.loaded.runtime["asked"] == "auto"


async def test_a_model_that_is_fetched_keeps_no_other_waiting(
    launcher: fakes.FakeLauncher, store: fakes.MemoryState
) -> None:
    artefacts = fakes.AnyArtefact()
    models = make(launcher, store, artefacts=artefacts)
    remote = asyncio.create_task(deploy(models, "remote"))
    again = asyncio.create_task(deploy(models, "/b"))
    other = model.DeployOrder(name="other", artefact="/a", objective=OBJECTIVE)
    await (await models.deploy(other)).wait_settled(5)
    await models.unload("other")
    assert not remote.done()
    assert not again.done()  # orders for one model are taken in their order
    artefacts.arriving.set()
    await remote
    assert (await again).spec.artefact == "/b"
    await models.end()


async def test_what_any_version_may_need_is_kept(launcher: fakes.FakeLauncher, store: fakes.MemoryState) -> None:
    artefacts = fakes.AnyArtefact()
    models = make(launcher, store, artefacts=artefacts)
    for path in ("/a", "/b", "/c", "/d"):
        await deploy(models, path)
    assert artefacts.kept == {"/b", "/c", "/d"}  # as /d began to load: it, the one that served, the one before
    await models.end()


async def test_a_disk_that_refuses_the_state_changes_nothing(
    models: fleet.Fleet, launcher: fakes.FakeLauncher, store: fakes.MemoryState
) -> None:
    one = await deploy(models)
    store.full = True
    for changes in ({"priority": 5}, {"artefact": "/b"}):
        with pytest.raises(errors.TransientError, match="full"):
            await deploy(models, **changes)  # type: ignore[arg-type]
    with pytest.raises(errors.TransientError, match="full"):
        await models.unload("m")
    assert (one.spec.priority, one.spec.artefact, one.candidate, len(launcher.workers)) == (0, "/a", None, 1)
    assert version_of(await ask(one)) == "1"


async def test_a_version_that_is_warm_serves_even_if_that_cannot_be_saved(
    models: fleet.Fleet, launcher: fakes.FakeLauncher, store: fakes.MemoryState
) -> None:
    await deploy(models)
    one = await models.deploy(model.DeployOrder(name="m", artefact="slow"))
    store.full = True
    launcher.slow.set()
    await one.wait_settled(5)
    assert version_of(await ask(one)) == "2"


async def test_a_crash_loses_no_model(launcher: fakes.FakeLauncher, store: fakes.MemoryState) -> None:
    first = make(launcher, store)
    await deploy(first)
    await first.deploy(model.DeployOrder(name="m", artefact="/slow"))  # dies while version 2 loads
    second = make(launcher, store)
    launcher.slow.set()
    await second.restore()
    await second["m"].wait_settled(5)
    assert second["m"].spec.version == "2"
    await asyncio.gather(first.end(), second.end())


async def test_what_a_dead_worker_held_is_asked_again(models: fleet.Fleet, launcher: fakes.FakeLauncher) -> None:
    one = await deploy(models)
    launcher.automatic = False
    pending = [ask(one, deadline_s=LONG_S) for _ in range(4)]
    launcher.automatic = True
    launcher.last.die()
    answers = await asyncio.wait_for(asyncio.gather(*pending), 5)
    assert [answer.status for answer in answers] == [200] * 4
    assert len(launcher.workers) == 2
    assert one.active is not None
    assert one.active.supervisor.restarts == 1


async def test_a_call_that_kills_every_worker_is_given_up_and_takes_nobody_with_it(
    models: fleet.Fleet, launcher: fakes.FakeLauncher
) -> None:
    one = await deploy(models)
    launcher.automatic = False
    deadly = ask(one, "deadly", deadline_s=LONG_S)
    launcher.last.die()
    while len(launcher.workers) < 2 or not launcher.last.batches:
        await asyncio.sleep(0.001)
    innocent = ask(one, "innocent", deadline_s=LONG_S)
    launcher.automatic = True
    launcher.last.die()
    with pytest.raises(replicas.RefusedError, match="worker ended"):
        await deadly
    assert (await asyncio.wait_for(innocent, 5)).status == 200


async def test_without_time_for_another_worker_a_call_is_refused_at_once(
    launcher: fakes.FakeLauncher, store: fakes.MemoryState
) -> None:
    models = make(launcher, store, replace(CONFIG, worker=settings.WorkerSettings(backoff_first_s=30)))
    one = await deploy(models)
    launcher.automatic = False
    pending = ask(one)  # ten times 100 ms, but the next worker starts in 30 s
    launcher.last.die()
    with pytest.raises(replicas.RefusedError) as refused:
        await asyncio.wait_for(pending, 5)
    assert refused.value.status == 503
    assert refused.value.retry_after_s == pytest.approx(30, abs=1)
    with pytest.raises(replicas.RefusedError, match="restarting"):
        ask(one)
    await models.end()


async def test_a_worker_that_dies_while_loading_is_tried_again(
    models: fleet.Fleet, launcher: fakes.FakeLauncher
) -> None:
    launcher.failing_starts = 2
    assert (await deploy(models)).state == model.State.READY
    assert (await deploy(models, "/deadly")).desired.failed_version == "2"


async def test_a_full_line_refuses(models: fleet.Fleet, launcher: fakes.FakeLauncher) -> None:
    one = await deploy(models, max_cores=1.0)
    launcher.automatic = False
    pending = [ask(one, deadline_s=LONG_S) for _ in range(5)]  # one at the worker, four in the line
    with pytest.raises(replicas.RefusedError) as refused:
        ask(one)
    assert refused.value.status == 429
    with pytest.raises(replicas.RefusedError):
        ask(one, "x" * 2000)
    launcher.automatic = True
    launcher.last.answer()
    assert {answer.status for answer in await asyncio.gather(*pending)} == {200}


async def test_what_waits_too_long_is_given_up_even_if_the_worker_hangs(
    models: fleet.Fleet, launcher: fakes.FakeLauncher
) -> None:
    one = await deploy(models, max_cores=1.0)
    launcher.automatic = False
    executing = ask(one, deadline_s=LONG_S)
    with pytest.raises(replicas.RefusedError, match="cannot be answered within 50 ms"):
        await asyncio.wait_for(ask(one, deadline_s=0.05), 5)
    launcher.last.answer()
    assert (await executing).status == 200


@pytest.mark.parametrize("factor", [1, 10])
async def test_no_lost_request_is_within_the_objective_however_short_its_deadline(
    launcher: fakes.FakeLauncher, store: fakes.MemoryState, factor: float
) -> None:
    limits = replace(CONFIG.queue, give_up_factor=factor, max_requests=1)
    models = make(launcher, store, replace(CONFIG, queue=limits, worker=settings.WorkerSettings(backoff_first_s=30)))
    one = await deploy(models, max_cores=1.0)
    replica = one.replica()
    launcher.automatic = False
    answered = ask(one, deadline_s=0.05)
    launcher.last.answer(status=500)
    assert (await answered).status == 500
    at_worker, waiting = ask(one, deadline_s=0.05), ask(one, deadline_s=0.05)
    with pytest.raises(replicas.RefusedError) as full:
        ask(one, deadline_s=0.001)
    assert full.value.status == 429
    with pytest.raises(replicas.RefusedError, match="cannot be answered within 50 ms"):
        await asyncio.wait_for(waiting, 5)
    with pytest.raises(replicas.RefusedError, match="still being executed"):
        await asyncio.wait_for(at_worker, 5)
    launcher.last.die()
    while one.state is model.State.READY:
        await asyncio.sleep(0)
    with pytest.raises(replicas.RefusedError, match="restarting"):
        ask(one, deadline_s=0.001)
    for rank in (1, 95):
        window = replica.meter.window(time.monotonic(), 60, rank)
        assert (window.requests, window.errors) == (5, 5)
        assert window.percentile_s is not None
        assert window.percentile_s > 1.9 * OBJECTIVE.seconds
    await models.end()


async def test_a_wider_objective_does_not_forgive_lost_requests(
    models: fleet.Fleet, launcher: fakes.FakeLauncher
) -> None:
    one = await deploy(models)
    answered = ask(one)
    assert (await answered).status == 200
    launcher.automatic = False
    failed = ask(one)
    launcher.last.answer(status=500)
    await failed
    launcher.automatic = True
    wider = model.Objective(milliseconds=100_000)
    await models.deploy(model.DeployOrder(name="m", artefact="/a", objective=wider))
    assert one.spec.objective == wider
    percentile_s = one.replica().meter.window(time.monotonic(), 60, 95).percentile_s
    assert percentile_s is not None
    assert percentile_s > wider.seconds


async def test_a_request_whose_client_left_is_not_computed(models: fleet.Fleet, launcher: fakes.FakeLauncher) -> None:
    one = await deploy(models, max_cores=1.0)
    launcher.automatic = False
    first = ask(one, "first", deadline_s=LONG_S)
    replica = one.replica()
    left = replica.accept(model.Call("v2", b"left"), LONG_S)
    last = ask(one, "last", deadline_s=LONG_S)
    replica.forget(left)
    launcher.automatic = True
    launcher.last.answer()
    await asyncio.gather(first, last)
    assert replica.executed == 2


async def test_unload_and_load(models: fleet.Fleet, store: fakes.MemoryState) -> None:
    one = await deploy(models)
    await models.unload("m")
    assert one.state == model.State.UNLOADED
    assert not store.saved["m"].loaded
    await models.load("m")
    await one.wait_settled(5)
    assert version_of(await ask(one)) == "1"
    with pytest.raises(fleet.UnknownModelError):
        await models.load("unheard-of")


async def test_a_model_under_the_root_can_be_loaded_by_name(models: fleet.Fleet) -> None:
    one = await models.load("found")
    await one.wait_settled(5)
    assert (one.spec.version, one.spec.artefact) == ("3", "/root/found")


async def test_removing_a_model_ends_its_worker(
    models: fleet.Fleet, launcher: fakes.FakeLauncher, store: fakes.MemoryState
) -> None:
    await deploy(models)
    await models.remove("m")
    assert store.saved == {}
    assert launcher.last.ended
    with pytest.raises(fleet.UnknownModelError, match="unknown model"):
        models["m"]


async def test_another_version_than_the_serving_one_is_unknown(models: fleet.Fleet) -> None:
    one = await deploy(models)
    assert one.replica("1") is one.active
    with pytest.raises(deployment.UnknownVersionError, match="serves version 1"):
        one.replica("2")


async def test_a_later_order_takes_the_place_of_one_still_loading(
    models: fleet.Fleet, launcher: fakes.FakeLauncher
) -> None:
    await models.deploy(model.DeployOrder(name="m", artefact="/slow", objective=OBJECTIVE))
    loading = None
    while loading is None:
        await asyncio.sleep(0)
        loading = launcher.workers[0] if launcher.workers and launcher.workers[0].order else None
    one = await deploy(models, "/b")
    assert one.spec.artefact == "/b"
    assert loading.ended


async def test_nobody_waits_for_an_execution_beyond_the_give_up_time(
    launcher: fakes.FakeLauncher, store: fakes.MemoryState
) -> None:
    models = make(launcher, store)
    one = await deploy(models)
    launcher.automatic = False
    pending = ask(one, deadline_s=0.05)
    with pytest.raises(replicas.RefusedError, match="still being executed") as refused:
        await asyncio.wait_for(pending, 10)
    assert refused.value.status == 503
    assert one.replica().meter.reasons == {(measurement.Outcome.FAILED, "executing"): 1}
    launcher.last.answer()  # too late, and so for nobody
    await models.end()


async def test_a_version_is_not_changed_under_its_name(launcher: fakes.FakeLauncher, store: fakes.MemoryState) -> None:
    models = make(launcher, store)
    await deploy(models, "/a", version="7")
    with pytest.raises(errors.InvalidInputError, match="version='7': version 7 serves other files"):
        await deploy(models, "/b", version="7")
    assert (await deploy(models, "/a", version="7", priority=3)).spec.priority == 3
    await models.end()


async def test_no_version_number_is_given_twice(launcher: fakes.FakeLauncher, store: fakes.MemoryState) -> None:
    models = make(launcher, store)
    await deploy(models, "/a")
    await deploy(models, "/b")
    one = models["m"]
    await models.roll_back("m", "worse")
    await one.wait_settled(5)
    await deploy(models, "/a", priority=3)  # after which nothing is said of version 2 any more
    assert (one.spec.version, one.desired.failed_version) == ("1", None)
    crashed = make(launcher, store)
    await crashed.restore()
    assert (await deploy(crashed, "/c")).spec.version == "3"
    await asyncio.gather(models.end(), crashed.end())


async def test_a_trial_keeps_its_own_settings_when_its_rules_change(
    launcher: fakes.FakeLauncher, store: fakes.MemoryState
) -> None:
    models = make(launcher, store)
    await deploy(models, "/a")
    one = await deploy(models, "/b", canary=model.Canary(fraction=0.1), priority=5)
    await deploy(models, "/b", canary=model.Canary(fraction=0.3))
    assert (one.trial is not None, one.desired.canary) == (True, model.Canary(fraction=0.3))
    assert one.candidate is not None
    assert one.candidate.spec.priority == 5
    await models.end()


async def test_a_hung_worker_is_replaced(launcher: fakes.FakeLauncher, store: fakes.MemoryState) -> None:
    models = make(launcher, store, replace(CONFIG, worker=replace(CONFIG.worker, execution_timeout_s=0.05)))
    one = await deploy(models)
    launcher.automatic = False
    pending = ask(one, deadline_s=LONG_S)
    hung = launcher.last
    while launcher.last is hung or not launcher.last.batches:
        await asyncio.sleep(0.001)
    launcher.last.answer()
    assert (await pending).status == 200
    assert hung.ended
    await models.end()


async def test_a_hung_worker_is_replaced_sooner_once_nobody_waits(
    launcher: fakes.FakeLauncher, store: fakes.MemoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(post, "HUNG_LEAST_S", 0.02)
    monkeypatch.setattr(post, "HUNG_FACTOR", 2.0)
    models = make(launcher, store)
    one = await deploy(models)
    launcher.automatic = False
    patient, hung = ask(one, deadline_s=LONG_S), launcher.last
    await asyncio.sleep(0.1)
    assert not hung.ended  # somebody waits for it
    with pytest.raises(replicas.RefusedError, match="still being executed"):
        await ask(one, deadline_s=0.1)
    while not hung.ended:  # of two executions nobody waits for one
        await asyncio.sleep(0.001)
    while launcher.last is hung or not launcher.last.batches:
        await asyncio.sleep(0.001)
    launcher.last.answer()
    assert (await patient).status == 200
    await models.end()


def test_only_an_execution_that_was_timed_hangs_before_the_limit() -> None:
    assert [post.hung_after_s(expected_s, 300) for expected_s in (0, 0.001, 2, 100)] == [300, 30, 100, 300]


async def test_a_deadline_that_no_execution_can_meet_is_the_clients_mistake(models: fleet.Fleet) -> None:
    one = await deploy(models)
    with pytest.raises(errors.InvalidInputError, match=r"deadline_ms='0.5': the quickest execution .* took 1 ms"):
        ask(one, deadline_s=0.0005)
    assert one.replica().meter.totals == {}
    assert (await ask(one, deadline_s=LONG_S)).status == 200


async def test_a_version_that_served_is_tried_again_until_it_comes_back(
    launcher: fakes.FakeLauncher, store: fakes.MemoryState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comeback, "FIRST_PAUSE_S", 0.01)
    first = make(launcher, store)
    await deploy(first)
    await first.end()
    launcher.failing_starts = 2 * CONFIG.worker.start_attempts
    second = make(launcher, store)
    await second.restore()
    one = second["m"]
    seen = set()
    while one.active is None:
        seen.add(one.state)
        await asyncio.sleep(0)
    assert model.State.CRASH_LOOP in seen
    assert model.State.FAILED not in seen
    assert (one.state, one.desired.failure, one.desired.failed_version) == (model.State.READY, None, None)
    assert (await ask(one)).status == 200
    await second.end()


async def test_a_version_that_waits_for_another_try_can_be_replaced(
    launcher: fakes.FakeLauncher, store: fakes.MemoryState
) -> None:
    first = make(launcher, store)
    await deploy(first)
    await first.end()
    launcher.failing_starts = CONFIG.worker.start_attempts
    second = make(launcher, store)
    await second.restore()
    await second["m"].wait_settled(5)
    assert (second["m"].state, second["m"].reason) == (model.State.CRASH_LOOP, "cannot start")
    assert second.ready  # it waits for no model that crashes
    one = await deploy(second, "/b")
    assert (one.state, version_of(await ask(one))) == (model.State.READY, one.spec.version)
    await second.end()


def test_lost_workers_are_worth_another_try() -> None:
    assert ports.WorkerLostError("x").retryable


async def test_nothing_in_flight_is_drained_in_no_time(models: fleet.Fleet) -> None:
    one = await deploy(models)
    assert await one.replica().drain(0)


async def test_a_port_that_stays_away_is_told_once_and_stops_no_control(
    models: fleet.Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    await deploy(models)
    cpu, book = FakeCpu(), journal.Journal()
    plant = controller.ServingPlant(models, cpu, settings.ControlSettings(), book)
    loop = controller.control_loop(plant, host_cores=2.0, control=settings.ControlSettings())
    cpu.fail = errors.UnreachableError("host agent", "unix:/nowhere", "start it")
    for _ in range(3):
        await loop.step()
    told = [record for record in caplog.records if "not applied" in record.message and record.levelname == "WARNING"]
    assert len(told) == 1
    assert loop.health.failures == 0
    assert [record.changed for record in book.records()] == [True]  # idle steps that repeat are not written
