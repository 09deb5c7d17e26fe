"""Drivers of a standalone cluster, through master pages that answer as Spark's do."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.spark import follow, ticket
from airflow_mlscale.spark.adapters import master, standalone
from airflow_mlscale.spark.launch import Manager
from airflow_mlscale.spark.model import Promise
from airflow_mlscale.spark.ports import RemoteState
from airflow_mlscale.spark.settings import DeadlineSettings
from airflow_mlscale.triggers.spark import DeadlineSparkTrigger
from tests.fakes import cpu_agent
from tests.fakes.cpu import FakeCpu
from tests.fakes.spark_master import FakeMaster, spark_master
from tests.fakes.submission import FakeDriver, http_server


@pytest.fixture
def first() -> Iterator[FakeMaster]:
    with spark_master() as state:
        yield state


@pytest.fixture
def second() -> Iterator[FakeMaster]:
    with spark_master() as state:
        yield state


def application(web_url: str, driver: str | None = "driver-1", *, ui_port: int = 0) -> standalone.StandaloneApplication:
    return standalone.StandaloneApplication(web_url, driver, run="r1", ui_port=ui_port)


def test_a_master_in_standby_has_not_lost_a_driver(first: FakeMaster) -> None:
    first.drivers["driver-1"] = "RUNNING"
    found = application(first.url)
    assert found.status().state is RemoteState.RUNNING
    first.status = "STANDBY"
    with pytest.raises(errors.UnreachableError, match="it is STANDBY"):
        found.status()
    first.status, first.drivers = "ALIVE", {}
    assert found.status().state is RemoteState.LOST


def test_of_several_masters_the_one_that_leads_is_asked(first: FakeMaster, second: FakeMaster) -> None:
    first.status = "STANDBY"
    second.drivers["driver-1"] = "RUNNING"
    found = application(f"{first.url},{second.url}")
    assert found.status().state is RemoteState.RUNNING
    first.down = True
    assert found.find() == "driver-1"
    found.kill()
    assert (first.killed, second.killed) == ([], ["driver-1"])
    second.down = True
    with pytest.raises(errors.UnreachableError):
        found.status()


def test_each_master_has_a_page() -> None:
    assert master.pages("spark://a:7077,[::1]:7078") == "http://a:8080,http://[::1]:8080"


def test_a_driver_whose_id_nobody_was_told_is_found_by_its_run(first: FakeMaster) -> None:
    driver = FakeDriver("r1")

    def answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        return 200, json.dumps(driver.answer(path.removeprefix("/api/v1"))).encode()

    with http_server(answer) as url:
        port = int(url.rpartition(":")[2])
        found = application(first.url, None, ui_port=port)
        assert found.find() is None  # nothing runs yet
        first.drivers |= {"driver-0": "FINISHED", "driver-2": "RUNNING"}
        assert found.find() == "driver-2"
        assert found.page == url
        other = standalone.StandaloneApplication(first.url, None, run="another", ui_port=port)
        assert other.find() is None
        other.kill()
    assert first.killed == []


def submission(state: FakeMaster) -> ticket.Ticket:
    now = time.time()
    return ticket.Ticket(
        run="r1",
        manager=Manager.STANDALONE,
        master_url="spark://127.0.0.1:7077",
        application_id="driver-1",
        name="job",
        web_url=state.url,
        promise=Promise(started_at=now, deadline_at=now + 100.0),
        settings=DeadlineSettings(),
        profile_key="job",
        slots=2.0,
        group="job",
        driver_group="job-driver",
        host=socket.gethostname(),
        here=True,
        submitted_at=now,
    )


@pytest.mark.parametrize("away", [False, True])
def test_a_task_that_is_ended_before_its_trigger_began_leaves_no_group(
    away: bool, first: FakeMaster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(follow, "PATIENCE_S", 0.0)
    host = FakeCpu()
    for group in ("job", "job-driver"):
        host.open(group)
    first.drivers["driver-1"] = "RUNNING"
    first.down = away
    with cpu_agent.agent_thread(host, tmp_path / "agent.sock") as address:
        connection = {"conn_type": "mlscale_spark", "host": "127.0.0.1", "port": 7077, "extra": {"agent": address}}
        monkeypatch.setenv("AIRFLOW_CONN_C", json.dumps(connection))
        trigger = DeadlineSparkTrigger(conn_id="c", submission=submission(first).to_json())
        if away:
            with pytest.raises(errors.UnreachableError):
                asyncio.run(trigger.on_kill())
        else:
            asyncio.run(trigger.on_kill())
        assert host.groups() == []
    assert first.killed == ([] if away else ["driver-1"])
