"""A new version on a part of the requests: who gets it, when it counts as worse, what promoting and leaving it do."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu.adapters import observe_only
from airflow_mlscale.roma import canary, controller, cores, deployment, fleet, measurement, model, rollout, settings
from airflow_mlscale.roma.adapters import inference
from airflow_mlscale.runtime import journal
from tests.fakes import roma as fakes
from tests.fakes import roma_served

OBJECTIVE = model.Objective(milliseconds=100)
TRIAL = model.Canary(fraction=0.25, min_requests=20)
CONFIG = settings.Settings(
    state_dir=Path("/nowhere"), worker=settings.WorkerSettings(backoff_first_s=0.001, backoff_max_s=0.002, drain_s=1)
)
TARGET = inference.Target(name="m")
CALL = model.Call("v2", b"1")


def counts(requests: int, errors: int = 0, late: int = 0, nan: int = 0) -> canary.Counts:
    return canary.Counts(requests=requests, errors=errors, late=max(errors, late), nan=nan)


def finding(new: canary.Counts, stable: canary.Counts, trial: model.Canary = TRIAL) -> canary.Finding:
    return canary.judge(new, stable, trial, OBJECTIVE).finding


def test_the_deterministic_split_gives_exactly_its_part() -> None:
    splitter = canary.Splitter()
    taken = [splitter.takes(TRIAL) for _ in range(12)]
    assert taken == 3 * [False, False, False, True]  # every fourth
    none = model.Canary(fraction=0)
    assert not any(splitter.takes(none) or splitter.takes(none, "key") for _ in range(100))


def test_a_route_key_always_leads_to_the_same_version() -> None:
    first, second = canary.Splitter(salt="m 2"), canary.Splitter(salt="m 2")
    keys = [f"client-{number}" for number in range(4000)]
    taken = [first.takes(TRIAL, key) for key in keys]
    assert taken == [second.takes(TRIAL, key) for key in keys]
    assert abs(sum(taken) / 4000 - 0.25) < 0.03  # 4 standard deviations: 4·√(0.25·0.75/4000) = 0.027
    assert taken != [canary.Splitter(salt="m 3").takes(TRIAL, key) for key in keys]


def test_the_random_split_takes_its_part_by_chance() -> None:
    splitter = canary.Splitter(chance=random.Random(1))
    trial = model.Canary(fraction=0.25, split="random")
    assert abs(sum(splitter.takes(trial, "same") for _ in range(4000)) / 4000 - 0.25) < 0.03


def test_intervals_are_those_of_the_literature() -> None:
    # Newcombe (1998), table II, method 10: 56/70 against 48/80, 95 %: 0.0524 to 0.3339
    assert canary.least_difference(56, 70, 48, 80, z=1.959964) == pytest.approx(0.0524, abs=1e-4)
    # Wilson for 10 of 10: 10/(10 + z²) to 1
    assert canary.wilson(10, 10, z=2.0) == pytest.approx((10 / 14, 1.0))


def test_nothing_is_concluded_from_few_requests() -> None:
    assert finding(counts(19, errors=19), counts(500)) == canary.Finding.WAITING
    assert finding(counts(500), counts(19)) == canary.Finding.WAITING


def test_more_failures_than_the_stable_version_are_worse() -> None:
    assert finding(counts(20, errors=10), counts(60)) == canary.Finding.WORSE
    assert finding(counts(2000, errors=20), counts(2000, errors=15)) == canary.Finding.FINE
    assert finding(counts(60, errors=30), counts(200, errors=100)) == canary.Finding.FINE  # both fail alike


def test_more_answers_with_nan_than_the_stable_version_are_worse() -> None:
    opinion = canary.judge(counts(60, nan=30), counts(200), TRIAL, OBJECTIVE)
    assert opinion.finding == canary.Finding.WORSE
    assert opinion.reason == "50.0 % of 60 answered NaN, of the stable version 0.0 % of 200"
    assert finding(counts(60, nan=30), counts(200, nan=100)) == canary.Finding.FINE  # both compute it alike


def test_missing_the_objective_counts_only_if_the_stable_version_does_better() -> None:
    assert finding(counts(200, late=60), counts(600, late=6)) == canary.Finding.WORSE
    assert finding(counts(200, late=60), counts(600, late=180)) == canary.Finding.FINE
    # 4 % are allowed by a 95th percentile, even if the stable version misses none
    assert finding(counts(5000, late=200), counts(5000)) == canary.Finding.FINE


def test_a_version_that_is_as_good_is_hardly_ever_rolled_back() -> None:
    """Looked at every second for ten minutes, at 20 requests a second of which 3 % fail."""
    chance = random.Random(3)
    trial = model.Canary()
    rolled_back = 0
    for _ in range(60):
        new, stable = [], []
        for _ in range(600):
            new.append(sum(chance.random() < 0.03 for _ in range(2)))
            stable.append(sum(chance.random() < 0.03 for _ in range(18)))
            failed, other = sum(new[-60:]), sum(stable[-60:])
            seconds = min(60, len(new))
            if finding(counts(2 * seconds, failed), counts(18 * seconds, other), trial) == canary.Finding.WORSE:
                rolled_back += 1
                break
    assert rolled_back <= 2  # of 60


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"fraction": 1}, "canary.fraction"),
        ({"fraction": True}, "canary.fraction"),
        ({"split": "odd"}, "canary.split"),
        ({"window_s": 0}, "canary.window_s"),
        ({"min_requests": 0}, "canary.min_requests"),
        ({"confidence": 1}, "canary.confidence"),
        ({"max_error_increase": -1}, "canary.max_error_increase"),
        ({"automatic": 1}, "canary.automatic"),
        ({"part": 0.1}, "canary"),
    ],
)
def test_bad_canaries_are_named(fields: dict[str, object], field: str) -> None:
    with pytest.raises(errors.InvalidInputError) as refused:
        model.order_from_json("m", {"artefact": "/a", "canary": fields})
    assert refused.value.field == field


@pytest.fixture
def launcher() -> fakes.FakeLauncher:
    return fakes.FakeLauncher()


@pytest.fixture
def store() -> fakes.MemoryState:
    return fakes.MemoryState()


def make(launcher: fakes.FakeLauncher, store: fakes.MemoryState) -> fleet.Fleet:
    groups = cores.CoreGroups(observe_only.ObserveOnlyPort(host_cores=2.0))
    return fleet.Fleet(store=store, launcher=launcher, groups=groups, artefacts=fakes.AnyArtefact(), config=CONFIG)


@pytest.fixture
async def models(launcher: fakes.FakeLauncher, store: fakes.MemoryState) -> AsyncIterator[fleet.Fleet]:
    made = make(launcher, store)
    yield made
    await made.end()


async def deploy(
    models: fleet.Fleet, artefact: str, trial: model.Canary | None = None, **changes: object
) -> deployment.Deployment:
    order = model.DeployOrder(
        name="m",
        artefact=artefact,
        objective=OBJECTIVE,
        canary=trial,
        **changes,  # type: ignore[arg-type]
    )
    one = await models.deploy(order)
    await one.wait_settled(5)
    return one


async def tried(models: fleet.Fleet, trial: model.Canary = TRIAL) -> deployment.Deployment:
    await deploy(models, "/a")
    one = await deploy(models, "/b", trial)
    assert one.trial is not None
    return one


async def answered(
    models: fleet.Fleet, count: int, target: inference.Target = TARGET, **wishes: object
) -> Counter[str]:
    """Versions that answered so many requests."""
    versions: Counter[str] = Counter()
    for _ in range(count):
        answer = await inference.answer(models, target, CALL, inference.Wishes(**wishes))  # type: ignore[arg-type]
        versions[json.loads(answer.body)["version"]] += answer.status == 200
    return versions


async def test_a_canary_gets_its_part_until_it_is_promoted(models: fleet.Fleet, store: fakes.MemoryState) -> None:
    one = await tried(models)
    assert await answered(models, 40) == {"1": 30, "2": 10}
    assert len(await answered(models, 10, key="somebody")) == 1
    assert await answered(models, 3, inference.Target(name="m", label="canary")) == {"2": 3}
    assert await answered(models, 3, inference.Target(name="m", label="stable")) == {"1": 3}
    assert await answered(models, 3, inference.Target(name="m", version="2")) == {"2": 3}
    await models.promote("m", "2")
    assert await answered(models, 10) == {"2": 10}
    saved = store.saved["m"]
    assert saved.active is not None
    assert saved.previous is not None
    assert (saved.active.version, saved.previous.version, saved.candidate, saved.canary) == ("2", "1", None, None)
    await models.promote("m", "2")  # once more changes nothing
    with pytest.raises(deployment.UnknownVersionError, match="tries no other"):
        await models.promote("m")
    assert one.trial is None


@pytest.mark.parametrize("began", [1000.0, 1000.02, 1000.98])
def test_requests_of_the_second_in_which_a_trial_began_belong_to_it(began: float) -> None:
    meter = measurement.Meter()
    meter.record(began + 0.01, measurement.Outcome.SERVED, 0.001)
    for now in (began + 0.02, began + 0.5, began + 1.5, began + 30):
        assert meter.window(now, rollout.compared_s(TRIAL, began, now), 95).requests == 1
    assert rollout.compared_s(TRIAL, began, began + 3600) == TRIAL.window_s


async def test_a_canary_shows_in_the_metrics_and_the_status() -> None:
    async with roma_served.serving() as served:
        body = {"artefact": "/b", "canary": {"fraction": 0.25, "min_requests": 20}}
        assert (await served.http.put("/v2/mlscale/models/m", json=body)).status_code in (200, 202)
        await served.models["m"].wait_settled(5)
        for _ in range(8):
            await served.http.post("/v2/models/m/infer", content=b"{}")
        trial = (await served.http.get("/v2/mlscale/models/m")).json()["canary"]
        assert (trial["version"], trial["state"], trial["fraction"]) == ("2", "waiting", 0.25)
        assert (trial["requests"], trial["errors"], trial["late"], trial["stable"]["requests"]) == (2, 0, 0, 6)
        assert "2 of 20 requests of the canary" in trial["reason"]
        assert 'canary_fraction{model="m",version="2"} 0.25' in (await served.http.get("/metrics")).text
        states = (await served.http.get("/v1/models/m")).json()["model_version_status"]
        assert [(one["version"], one["state"]) for one in states] == [("1", "AVAILABLE"), ("2", "AVAILABLE")]
        path = "/v2/mlscale/models/m"
        assert (await served.http.post(f"{path}/promote", json={"version": "9"})).status_code == 404
        assert (await served.http.post(f"{path}/promote", json={"what": 1})).status_code == 400
        assert (await served.http.post(f"{path}/rollback", json={"reason": ""})).status_code == 400
        back = (await served.http.post(f"{path}/rollback", json={"reason": "by hand"})).json()
        assert (back["version"], back["failure"]) == ("1", {"version": "2", "reason": "by hand"})
        records = (await served.http.get(f"{path}/journal")).json()["records"]
        assert [one["decided"] for one in records] == [{"rollout": "rolled back"}]
        assert (await served.http.post(f"{path}/rollback", json={})).status_code == 404  # nothing to go back to


async def test_a_version_that_loads_beside_another_is_told_of() -> None:
    async with roma_served.serving() as served:
        await served.http.put("/v2/mlscale/models/m", json={"artefact": "/slow"})
        path = "/v1/models/m/versions/2"
        (status,) = (await served.http.get(path)).json()["model_version_status"]
        assert (status["version"], status["state"]) == ("2", "LOADING")
        assert (await served.http.post(f"{path}:predict", content=b"{}")).status_code == 404


async def test_a_first_version_has_nothing_to_be_compared_with(models: fleet.Fleet) -> None:
    one = await deploy(models, "/a", TRIAL)
    assert (one.spec.version, one.trial, one.desired.canary) == ("1", None, None)


async def test_a_repeated_order_finds_its_canary(models: fleet.Fleet, launcher: fakes.FakeLauncher) -> None:
    one = await tried(models)
    workers = len(launcher.workers)
    await deploy(models, "/b", model.Canary(fraction=0.5))
    assert len(launcher.workers) == workers
    assert await answered(models, 10) == {"1": 5, "2": 5}
    await deploy(models, "/b")  # without a canary it is meant to serve
    assert len(launcher.workers) == workers
    assert (one.spec.version, one.candidate) == ("2", None)


async def test_a_canary_can_be_left_by_hand(models: fleet.Fleet, store: fakes.MemoryState) -> None:
    one = await tried(models)
    await models.roll_back("m", "not today", "2")
    await models.roll_back("m", "not today", "2")  # once more changes nothing
    assert await answered(models, 8) == {"1": 8}
    assert (one.desired.failure, one.desired.failed_version) == ("not today", "2")
    assert store.saved["m"].candidate is None
    with pytest.raises(deployment.UnknownVersionError, match="no version before 1"):
        await models.roll_back("m", "further")


async def test_a_promoted_version_can_be_left_for_the_one_before(models: fleet.Fleet) -> None:
    await deploy(models, "/a")
    one = await deploy(models, "/b")
    await models.roll_back("m", "worse after all")
    await one.wait_settled(5)
    assert await answered(models, 4) == {"1": 4}
    assert (one.desired.failure, one.desired.failed_version) == ("worse after all", "2")
    with pytest.raises(deployment.UnknownVersionError, match="no version before"):
        await models.roll_back("m", "and back again")


async def test_a_rollback_outlives_a_crash(launcher: fakes.FakeLauncher, store: fakes.MemoryState) -> None:
    first = make(launcher, store)
    await deploy(first, "/a")
    await deploy(first, "/b")
    first["m"].roll_back("worse")
    crashed = fakes.MemoryState()
    crashed.saved = dict(store.saved)
    again = make(launcher, crashed)
    await again.restore()
    one = again["m"]
    await one.wait_settled(5)
    assert (one.spec.version, one.desired.failure, one.desired.failed_version) == ("1", "worse", "2")
    assert one.desired.previous is None
    await first.end()
    await again.end()


async def test_a_daemon_that_comes_back_goes_on_trying(
    models: fleet.Fleet, launcher: fakes.FakeLauncher, store: fakes.MemoryState
) -> None:
    await tried(models)
    again = make(launcher, store)
    await again.restore()
    await again["m"].wait_settled(5)
    assert await answered(again, 8) == {"1": 6, "2": 2}
    await again.end()


async def test_no_version_is_tried_before_the_serving_one_is_back(
    launcher: fakes.FakeLauncher, store: fakes.MemoryState
) -> None:
    first = make(launcher, store)
    launcher.slow.set()
    await deploy(first, "/slow")
    launcher.slow.clear()
    again = make(launcher, store)
    await again.restore()
    with pytest.raises(deployment.NotReadyError, match="no version yet to try another beside"):
        await again.deploy(model.DeployOrder(name="m", artefact="/b", canary=TRIAL))
    launcher.slow.set()
    await again["m"].wait_settled(5)
    await first.end()
    await again.end()


@pytest.mark.parametrize("status", [500, 400])
async def test_what_a_canary_fails_or_refuses_the_stable_version_answers(
    models: fleet.Fleet, launcher: fakes.FakeLauncher, status: int
) -> None:
    one = await tried(models, model.Canary(fraction=0.5, min_requests=5))
    assert one.trial is not None
    bad = launcher.last
    bad.infer = lambda calls: failing(bad, calls, status)  # type: ignore[method-assign]
    assert await answered(models, 20) == {"1": 20}
    window = one.trial.meter.window(time.monotonic(), 60, 95)
    assert (window.requests, window.errors) == (10, 10)
    asked = await inference.answer(models, inference.Target(name="m", version="2"), CALL, inference.Wishes())
    assert asked.status == status  # who names the version gets what it says
    launcher.workers[0].infer = lambda calls: failing(launcher.workers[0], calls, 400)  # type: ignore[method-assign]
    told = [await inference.answer(models, TARGET, CALL, inference.Wishes()) for _ in range(4)]
    assert {answer.status for answer in told} == {400}
    window = one.trial.meter.window(time.monotonic(), 60, 95)
    assert window.errors == (13 if status == 500 else 10)  # a mistake that both tell of is the client's


async def test_a_deadline_too_short_for_the_canary_alone_is_its_failure(models: fleet.Fleet) -> None:
    one = await tried(models, model.Canary(fraction=0.5, min_requests=5))
    assert one.active is not None
    assert one.trial is not None
    assert await answered(models, 2) == {"1": 1, "2": 1}
    one.active.times.least_s, one.trial.times.least_s = 0.001, 20.0
    assert await answered(models, 4, use_s=10.0) == {"1": 4}
    assert one.trial.meter.window(time.monotonic(), 60, 95).errors == 2


def failing(worker: fakes.FakeWorker, calls: object, status: int = 500) -> asyncio.Future[object]:
    automatic, worker._launcher.automatic = worker._launcher.automatic, False
    future = fakes.FakeWorker.infer(worker, calls)  # type: ignore[arg-type]
    worker._launcher.automatic = automatic
    worker.answer(status)
    return future  # type: ignore[return-value]


async def test_a_canary_that_fails_is_rolled_back_and_the_journal_says_why(
    models: fleet.Fleet, launcher: fakes.FakeLauncher
) -> None:
    one = await tried(models, model.Canary(fraction=0.5, min_requests=20))
    book = journal.Journal()
    loop = rollout.rollout_loop(rollout.RolloutPlant(models, book))
    await loop.step()
    bad = launcher.last
    bad.infer = lambda calls: failing(bad, calls)  # type: ignore[method-assign]
    await answered(models, 60)
    await loop.step()
    assert one.trial is None
    assert [record.decided["rollout"] for record in book.records()] == ["canary waiting", "rolled back"]
    assert "100.0 % of 30 failed, of the stable version 0.0 % of 60" in book.records()[-1].reason
    assert "the canary is worse" in str(one.desired.failure)
    assert await answered(models, 10) == {"1": 10}
    await loop.step()
    assert len(book.records()) == 2


async def test_a_canary_that_is_only_watched_stays(models: fleet.Fleet, launcher: fakes.FakeLauncher) -> None:
    one = await tried(models, model.Canary(fraction=0.5, min_requests=5, automatic=False))
    bad = launcher.last
    bad.infer = lambda calls: failing(bad, calls)  # type: ignore[method-assign]
    await answered(models, 40)
    await rollout.rollout_loop(rollout.RolloutPlant(models, journal.Journal())).step()
    assert one.trial is not None
    seen = rollout.look(one, time.monotonic())
    assert seen is not None
    assert seen.opinion.finding == canary.Finding.WORSE


async def test_a_canary_in_a_crash_loop_is_rolled_back(models: fleet.Fleet, launcher: fakes.FakeLauncher) -> None:
    one = await tried(models)
    trial = one.trial
    assert trial is not None
    launcher.failing_starts = 1000
    launcher.last.die()
    while trial.supervisor.state is not model.State.CRASH_LOOP:
        assert await answered(models, 4) == {"1": 4}  # nobody waits for it
        await asyncio.sleep(0.001)
    assert "5 times in a row" in trial.supervisor.reason
    await rollout.rollout_loop(rollout.RolloutPlant(models, journal.Journal())).step()
    assert one.trial is None
    launcher.failing_starts = 0


async def test_a_worker_that_dies_again_and_again_is_in_a_crash_loop_until_one_is_up(
    models: fleet.Fleet, launcher: fakes.FakeLauncher
) -> None:
    one = await deploy(models, "/a")
    launcher.failing_starts = 6
    launcher.refusal = OSError(24, "Too many open files")  # of the system, not of the model
    launcher.last.die()
    states = set()
    while one.state is not model.State.READY or launcher.failing_starts:
        states.add(one.state)
        await asyncio.sleep(0)
    assert states >= {model.State.RESTARTING, model.State.CRASH_LOOP}
    assert await answered(models, 1) == {"1": 1}


async def test_a_canary_holds_its_part_of_the_guarantee(models: fleet.Fleet) -> None:
    await deploy(models, "/a", min_cores=0.8)
    one = await deploy(models, "/b", TRIAL)
    assert [(each.name, each.spec.min_cores) for each in one.serving()] == [
        ("m", pytest.approx(0.6)),
        ("m@2", pytest.approx(0.2)),
    ]
    port = observe_only.ObserveOnlyPort(host_cores=2.0)
    plant = controller.ServingPlant(models, port, settings.ControlSettings(), journal.Journal())
    assert [seen.name for seen in await plant.observe()] == ["m", "m@2"]


async def test_switching_under_load_fails_no_request(models: fleet.Fleet, launcher: fakes.FakeLauncher) -> None:
    await deploy(models, "/a")
    stop = asyncio.Event()
    versions: Counter[str] = Counter()

    async def client() -> None:
        while not stop.is_set():
            versions.update(await answered(models, 1))
            await asyncio.sleep(0)

    clients = [asyncio.create_task(client()) for _ in range(4)]
    await deploy(models, "/b", model.Canary(fraction=0.0))
    assert set(versions) == {"1"}  # warm, but not asked
    await models.promote("m")
    while not versions["2"]:
        await asyncio.sleep(0)
    await models.roll_back("m", "back")
    await models["m"].wait_settled(5)
    before = versions["1"]
    while versions["1"] == before:
        await asyncio.sleep(0)
    stop.set()
    await asyncio.gather(*clients)
    assert set(versions) == {"1", "2"}
