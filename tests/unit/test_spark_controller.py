"""The controller beside a Spark application, when the world around it fails."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports
from airflow_mlscale.cpu.adapters import lease_client
from airflow_mlscale.runtime import processes
from airflow_mlscale.runtime.journal import Journal, Record
from airflow_mlscale.spark.beside import Beside
from airflow_mlscale.spark.controller import DeadlineController, Job
from airflow_mlscale.spark.model import Mode, Outlook, Profile, Promise, StageStatus
from airflow_mlscale.spark.settings import DeadlineSettings
from tests.fakes import cpu_agent
from tests.fakes.clock import FakeClock
from tests.fakes.cpu import FakeCpu
from tests.fakes.spark import FakeProgress, Part, SimulatedApplication

GONE = errors.UnreachableError("host agent", "unix:/nowhere", "start it")


def controller(cpu: FakeCpu) -> Beside:
    now = time.time()
    job = Job(
        name="job",
        group="spark-job",
        driver_group=None,
        promise=Promise(started_at=now, deadline_at=now + 3600),
        profile=None,
        settings=DeadlineSettings(),
    )
    cpu.open("spark-job")
    progress = FakeProgress(SimulatedApplication([Part(core_s=10.0, tasks=4)]))
    return Beside(DeadlineController(job=job, cpu=cpu, progress=progress, slots=2.0, journal=Journal()))


def test_an_agent_that_dies_under_a_job_does_not_fail_it() -> None:
    cpu = FakeCpu()
    with controller(cpu):
        cpu.fail = GONE
    assert cpu.applied  # it had a share before


def test_an_agent_that_dies_under_a_failing_job_does_not_hide_its_failure() -> None:
    cpu = FakeCpu()

    def fail() -> None:
        with controller(cpu):
            cpu.fail = GONE
            raise errors.SparkJobFailedError("exit code 1")

    with pytest.raises(errors.SparkJobFailedError):
        fail()


def test_a_job_without_a_port_does_not_begin() -> None:
    cpu = FakeCpu()
    refused = controller(cpu)
    cpu.fail = GONE
    with pytest.raises(errors.UnreachableError), refused:
        raise AssertionError("not reached")


def test_a_process_without_room_for_control_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(24, "Too many open files")

    cpu = FakeCpu()
    refused = controller(cpu)
    monkeypatch.setattr(asyncio.events, "new_event_loop", full)
    with pytest.raises(errors.TransientError, match=r"control could not begin.*Too many open files"), refused:
        raise AssertionError("not reached")
    assert cpu.groups() == []


DEADLINE_S = 100.0
WORK = Part(core_s=60.0, tasks=60)


class Steps:
    """A controller whose steps are taken by hand, one second each, with an application that runs as fast as it may."""

    def __init__(self, cpu: ports.CpuPort, *, host: FakeCpu | None = None, min_cores: float | None = None) -> None:
        self.host = host or cast("FakeCpu", cpu)
        self.clock = FakeClock()
        self.application = SimulatedApplication([WORK], now=self.clock.now())
        now = self.clock.now()
        self.control = DeadlineController(
            job=Job(
                name="job",
                group="job",
                driver_group=None,
                promise=Promise(started_at=now, deadline_at=now + DEADLINE_S),
                profile=Profile(key="job", plans=(self.application.plan(),)),
                settings=DeadlineSettings(mode=Mode.RESERVE, min_cores=min_cores),
            ),
            cpu=cpu,
            progress=FakeProgress(self.application),
            slots=2.0,
            clock=self.clock,
        )
        self.control.open()
        self.control.begin()
        self.policy, self.state = self.control._policy, self.control._state

    @property
    def records(self) -> list[Record]:
        return self.control.journal.records()

    def take(self, count: int = 1) -> Record:
        """Steps as `PeriodicLoop` takes them; returns the last record."""
        for _ in range(count):
            asyncio.run(self._step())
        return self.records[-1]

    async def _step(self) -> None:
        before = self.application.used_core_s
        if self.host.fail is None:
            self.application.advance(1.0, self.host.share("job").guaranteed_cores)
            self.host.burn("job", self.application.used_core_s - before)
        self.clock.advance(1.0)
        await self.control.read()
        try:
            decision, state = self.policy(await self.control.observe(), self.state, 1.0)
            await self.control.act(decision)
            self.state = state
        except errors.MlscaleError:
            pass  # told by the loop


def test_the_journal_says_why_less_is_granted_than_asked_for() -> None:
    cpu = FakeCpu()
    steps = Steps(cpu)
    assert "promised" not in steps.take(20).reason
    cpu.promised_cores = 1.7
    record = steps.take()
    assert record.changed
    asked = record.decided["asked_cores"]
    assert record.decided["guaranteed_cores"] == 0.3
    assert f"asked for {asked:.2f} cores, granted 0.30: the host's cores are promised to others" in record.reason
    # 60 core-s at 0.3 cores take longer than the hundred seconds.
    assert steps.take(15).decided["outlook"] == Outlook.WILL_MISS
    cpu.promised_cores = 0.0
    assert steps.take().changed
    assert steps.take(10).decided["outlook"] == Outlook.ON_TRACK
    assert "promised" not in steps.records[-1].reason


def test_a_host_that_is_too_small_is_no_rival() -> None:
    cpu = FakeCpu()
    steps = Steps(cpu)
    steps.take(20)
    cpu.host_cores = 0.5
    record = steps.take()
    assert f"asked for {record.decided['asked_cores']:.2f} cores, the host has 0.5" in record.reason


def test_a_minimum_that_the_host_refuses_in_mid_run_is_done_without() -> None:
    cpu = FakeCpu()
    steps = Steps(cpu, min_cores=0.5)
    steps.take(20)
    cpu.promised_cores = 1.7
    record = steps.take()
    assert record.decided["guaranteed_cores"] == 0.3
    assert "asks for at least 0.5 cores" in record.reason
    assert cpu.applied[-1][2].minimum_cores == 0.0  # the second try
    cpu.promised_cores = 0.0
    assert "at least" not in steps.take().reason
    assert cpu.applied[-1][2].minimum_cores == 0.5


def test_a_minimum_that_the_host_refuses_at_the_start_refuses_the_run() -> None:
    cpu = FakeCpu()
    cpu.promised_cores = 1.7
    with pytest.raises(errors.AdmissionRefusedError):
        Steps(cpu, min_cores=0.5)


def test_steps_without_an_agent_are_on_record_and_promise_nothing() -> None:
    cpu = FakeCpu()
    steps = Steps(cpu)
    granted_core_s = steps.take(20) and steps.control.totals.granted_core_s
    cpu.fail = GONE
    record = steps.take()
    assert (record.changed, record.decided["guaranteed_cores"], record.decided["ceiling_cores"]) == (True, 0.0, None)
    assert record.reason.startswith("no control, nothing limits the application: host agent at unix:/nowhere")
    held_core_s = steps.control.totals.granted_core_s - granted_core_s
    assert steps.take(3).decided["guaranteed_cores"] == 0.0
    assert steps.control.totals.granted_core_s == granted_core_s + held_core_s
    cpu.fail = None
    assert steps.take().decided["guaranteed_cores"] == cpu.share("job").guaranteed_cores > 0


def test_a_share_is_held_on_to_while_its_meter_fails() -> None:
    cpu = FakeCpu()
    steps = Steps(cpu)
    before = steps.take(20)
    cpu.fail_usage = errors.TransientError("the kernel refused")
    asked = len(cpu.applied)
    record = steps.take()
    assert len(cpu.applied) == asked + 1  # renewed
    assert record.decided["guaranteed_cores"] == before.decided["guaranteed_cores"]
    assert record.reason == "the last share holds: the kernel refused"
    cpu.fail_usage = None
    steps.take()
    assert steps.control.used_core_s == pytest.approx(steps.application.used_core_s)  # nothing was lost meanwhile


class SlowCpu(FakeCpu):
    """Answers only while ``quick`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.quick = threading.Event()
        self.quick.set()

    def usage(self, group: str) -> ports.CpuUsage:
        self.quick.wait(timeout=60)
        return super().usage(group)


def test_an_agent_that_answers_too_slowly_is_gone_until_it_answers_again(tmp_path: Path) -> None:
    host = SlowCpu()
    with cpu_agent.agent_thread(host, tmp_path / "agent.sock") as address:
        steps = Steps(lease_client.LeasePort(address), host=host)
        steps.take(5)
        host.quick.clear()
        try:
            assert "does not answer" in steps.take().reason
        finally:
            host.quick.set()
        processes.wait_until(
            lambda: "does not answer" not in steps.take().reason, what="control", timeout_s=30, poll_s=0.0
        )


def test_work_is_counted_on_when_somebody_removed_the_group() -> None:
    cpu = FakeCpu()
    steps = Steps(cpu)
    steps.take(20)
    used_core_s = steps.control.used_core_s
    assert used_core_s > 5.0
    cpu.close("job")
    cpu.open("job")
    steps.take()
    steps.take()
    assert steps.control.used_core_s == pytest.approx(steps.application.used_core_s)


@pytest.mark.parametrize("seconds", [600.0, -600.0])
def test_a_clock_that_is_set_moves_the_deadline_and_nothing_else(seconds: float) -> None:
    steps = Steps(FakeCpu())
    left_s = steps.take(20).seen["left_s"]
    granted_core_s = steps.control.totals.granted_core_s
    elapsed_s = steps.control.look().elapsed_s
    steps.clock.set(seconds)
    record = steps.take()
    assert record.seen["left_s"] == left_s - 1.0 - seconds  # the promise is a time of day
    assert f"the clock was set by {seconds:+.0f} s" in record.reason
    assert "the clock" not in steps.take().reason
    assert steps.control.look().elapsed_s == elapsed_s + 2.0
    assert steps.control.totals.granted_core_s <= granted_core_s + 2 * 2.0  # two seconds of two cores
    assert steps.control.learned(ended_at=steps.clock.now()) is None  # gaps of minutes, that never were


def test_a_run_by_a_steady_clock_teaches_its_plan() -> None:
    steps = Steps(FakeCpu())
    steps.take(20)
    assert steps.control.learned(ended_at=steps.clock.now()) is not None


def test_stages_that_were_never_submitted_teach_nothing() -> None:
    steps = Steps(FakeCpu())
    steps.take(20)
    reading = steps.control.latest
    assert reading is not None
    waiting = replace(reading.stages[0], status=StageStatus.PENDING, submitted_at=None, completed_at=None)
    steps.control.latest = replace(reading, stages=(waiting,))
    assert steps.control.learned(ended_at=steps.clock.now()) is None  # a plan of no stages would promise an end at once
