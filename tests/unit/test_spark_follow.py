"""Control of an application in a cluster that fails, is away, or cannot be controlled."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports as cpu_ports
from airflow_mlscale.spark import follow, ticket
from airflow_mlscale.spark.controller import DeadlineController, Job
from airflow_mlscale.spark.launch import Manager
from airflow_mlscale.spark.model import Promise
from airflow_mlscale.spark.ports import RemoteState, RemoteStatus
from airflow_mlscale.spark.settings import DeadlineSettings
from tests.fakes.cpu import FakeCpu
from tests.fakes.spark import FakeProgress, Part, SimulatedApplication

AWAY = errors.UnreachableError("the master", "here", "it is away")


class Application:
    """A `RemoteApplication` whose answers are given."""

    page = None

    def __init__(self, *answers: RemoteState | errors.MlscaleError) -> None:
        self.answers = list(answers)
        self.refusals: list[errors.MlscaleError] = []
        """What the next calls of `kill` raise."""
        self.killed = False

    def find(self) -> str | None:
        return "driver-1"

    def status(self) -> RemoteStatus:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, errors.MlscaleError):
            raise answer
        return RemoteStatus(state=answer, reason="so it is")

    def driver(self, path: str) -> Any:
        raise errors.UnreachableError("the Spark driver", "nowhere", path)

    def kill(self) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.killed = True

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def submission(*, ago_s: float = 0.0) -> ticket.Ticket:
    now = time.time() - ago_s
    return ticket.Ticket(
        run="r1",
        manager=Manager.STANDALONE,
        master_url="spark://here:7077",
        application_id="driver-1",
        name="job",
        promise=Promise(started_at=now, deadline_at=now + 100.0),
        settings=DeadlineSettings(period_s=0.1, read_period_s=0.1),
        profile_key="job",
        slots=2.0,
        group="job",
        host="worker",
        here=True,
        submitted_at=now,
    )


def follower(
    application: Application, actuator: Callable[[], cpu_ports.CpuPort] = FakeCpu, **arguments: Any
) -> follow.Follower:
    return follow.Follower(submission(), application, actuator, None, **arguments)


@pytest.mark.parametrize("state", [RemoteState.FAILED, RemoteState.KILLED, RemoteState.LOST])
def test_an_application_that_did_not_succeed_has_met_no_deadline(state: RemoteState) -> None:
    outcome = asyncio.run(follower(Application(state)).run())
    assert outcome.status.state is state
    assert (outcome.summary["met"], outcome.summary["finish_s"], outcome.plan) == (None, None, None)


def test_one_that_succeeded_has() -> None:
    outcome = asyncio.run(follower(Application(RemoteState.SUCCEEDED)).run())
    assert outcome.summary["met"] is True


def test_what_ended_while_nobody_watched_may_have_met_its_deadline_or_not() -> None:
    late = follow.Follower(submission(ago_s=1000.0), Application(RemoteState.SUCCEEDED), FakeCpu, None)
    summary = asyncio.run(late.run()).summary
    assert (summary["met"], summary["finish_s"]) == (None, None)
    watched = follow.Follower(
        submission(ago_s=1000.0), Application(RemoteState.RUNNING, RemoteState.SUCCEEDED), FakeCpu, None
    )
    assert asyncio.run(watched.run()).summary["met"] is False


def test_an_actuator_that_is_not_to_be_had_leaves_the_outcome_to_the_application() -> None:
    def refused() -> cpu_ports.CpuPort:
        raise errors.InvalidInputError("agent_token", "…", "is not the agent's")

    outcome = asyncio.run(follower(Application(RemoteState.RUNNING, RemoteState.SUCCEEDED), refused).run())
    assert outcome.status.state is RemoteState.SUCCEEDED
    assert outcome.summary["enforced"] is False


def test_a_home_that_cannot_be_written_stops_nobody(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    home.write_text("a file, where a folder should be")
    outcome = asyncio.run(follower(Application(RemoteState.RUNNING, RemoteState.SUCCEEDED)).run())
    assert outcome.status.state is RemoteState.SUCCEEDED
    assert outcome.records
    assert "the decision journal is not written to" in caplog.text


def test_a_kill_at_the_end_of_the_time_is_tried_until_the_cluster_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "STATUS_EVERY_S", 0.01)
    application = Application(RemoteState.RUNNING)
    application.refusals = [AWAY, AWAY]
    outcome = asyncio.run(follower(application, end_at=time.time() - 1).run())
    assert application.killed
    assert outcome.status.state is RemoteState.KILLED


def test_groups_of_a_submission_that_was_never_controlled_are_given_back() -> None:
    cpu = FakeCpu()
    cpu.open("job")  # as the worker that submitted it did
    follower(Application(RemoteState.KILLED), lambda: cpu).give_back()
    assert cpu.groups() == []


class Threads(FakeCpu):
    """Tells in which threads it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: dict[str, set[int]] = {}
        self.let_go = False

    def apply(
        self, group: str, share: cpu_ports.CpuShare, terms: cpu_ports.Terms = cpu_ports.Terms()
    ) -> cpu_ports.CpuShare:
        self.callers.setdefault("apply", set()).add(threading.get_ident())
        self.let_go = share == cpu_ports.UNMANAGED
        return super().apply(group, share, terms)


def test_letting_go_does_not_block_the_event_loop_of_others() -> None:
    cpu, begun = Threads(), asyncio.Event()

    async def cancelled() -> None:
        loop = asyncio.get_running_loop()
        found = follower(Application(RemoteState.RUNNING), lambda: cpu)
        found.journal.listen(lambda _: loop.call_soon_threadsafe(begun.set))
        running = asyncio.create_task(found.run())
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancelled())
    assert cpu.let_go
    assert threading.get_ident() not in cpu.callers["apply"]


def test_a_ticket_of_another_version_is_read_as_far_as_it_goes() -> None:
    known = submission()
    given = known.to_json()
    given["news"] = 1
    given["settings"]["news"] = 2
    del given["settings"]["caution"], given["ui_port"]
    assert ticket.from_json(given) == known
    del given["master_url"]
    with pytest.raises(errors.InvalidInputError, match="not of this version"):
        ticket.from_json(given)


@pytest.mark.parametrize("retryable", [True, False])
def test_a_submission_is_kept_as_long_as_nobody_knows_that_it_is_over(retryable: bool) -> None:
    from airflow_mlscale.operators import in_cluster
    from tests.integration.spark_task import Store

    store = Store({in_cluster.SUBMISSION_KEY: {"life": 0, "ticket": {}}})
    with pytest.raises(errors.MlscaleError, match="no control"):
        in_cluster.concluded(
            {"task_state_store": store}, {"state": "error", "reason": "no control", "retryable": retryable}
        )
    assert in_cluster.SUBMISSION_KEY in store
    with pytest.raises(errors.SparkJobFailedError):
        in_cluster.concluded({"task_state_store": store}, {"state": "lost", "reason": "gone"})
    assert store == {}


def test_executors_are_admitted_beside_the_event_loop() -> None:
    callers: set[int] = set()

    class Found:
        def find(self, application_id: str) -> frozenset[int]:
            return frozenset({os.getpid()})

    class Admitting(FakeCpu):
        def admit(self, group: str, pid: int) -> None:
            callers.add(threading.get_ident())
            super().admit(group, pid)

    cpu, known = Admitting(), submission()
    application = SimulatedApplication([Part(core_s=10.0, tasks=4)])
    application.advance(10.0, 1.0)  # past the start of its executors
    control = DeadlineController(
        job=Job(
            name="job", group="job", driver_group=None, promise=known.promise, profile=None, settings=known.settings
        ),
        cpu=cpu,
        progress=FakeProgress(application),
        slots=2.0,
        executors=Found(),
    )
    control.open()
    asyncio.run(control.read())
    asyncio.run(control._admit())
    assert cpu.groups()[0].members == (os.getpid(),)
    assert threading.get_ident() not in callers
