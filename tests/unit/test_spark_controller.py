"""The controller beside a Spark application, when the world around it fails."""

from __future__ import annotations

import time

import pytest

from airflow_mlscale import errors
from airflow_mlscale.runtime.journal import Journal
from airflow_mlscale.spark.beside import Beside
from airflow_mlscale.spark.controller import DeadlineController, Job
from airflow_mlscale.spark.model import Promise
from airflow_mlscale.spark.settings import DeadlineSettings
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
