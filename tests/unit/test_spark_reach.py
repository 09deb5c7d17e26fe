"""Whether shares reach the executors at all, and what is said when they do not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.spark import access, cluster_run, launch, run, ticket
from airflow_mlscale.spark.adapters import allocator
from airflow_mlscale.spark.model import Promise
from airflow_mlscale.spark.settings import DeadlineSettings
from tests.fakes.spark_master import FakeMaster, spark_master

AGENTS = {"worker-1": "http://worker-1:8790"}


@pytest.mark.parametrize(
    ("name", "here", "agents", "reached"),
    [
        ("auto", True, None, True),
        ("cgroup-v1", True, None, True),
        ("auto", False, None, False),
        ("auto", False, AGENTS, True),
        ("agent", False, AGENTS, True),
        ("executors", False, None, True),
        ("observe-only", False, None, False),
    ],
)
def test_executors_elsewhere_are_reached_by_their_own_agents_only(
    name: str, here: bool, agents: dict[str, str] | None, reached: bool
) -> None:
    assert allocator.reaches(name, here=here, agents=agents, application="job") is reached


@pytest.mark.parametrize("name", ["agent", "cgroup-v1", "cgroup-v2"])
def test_one_that_was_asked_for_by_name_is_refused_where_it_reaches_nobody(name: str) -> None:
    with pytest.raises(errors.InvalidInputError, match=rf"allocator='{name}': .*name the agents"):
        allocator.reaches(name, here=False, agents=None, application="job")


def test_an_allocator_that_is_not_to_be_had_is_called_as_the_user_does() -> None:
    missing = next(name for name in ("cgroup-v1", "cgroup-v2") if not offered(name))
    with pytest.raises(errors.InvalidInputError) as caught:
        allocator.find(missing, address=None, token=None, agents=None)
    assert (caught.value.field, caught.value.value) == ("allocator", missing)


def offered(name: str) -> bool:
    from airflow_mlscale.cpu import detect

    try:
        detect.local(only=name)
    except errors.InvalidInputError:
        return False
    return True


def promise() -> Promise:
    return Promise(started_at=time.time(), deadline_at=time.time() + 100)


@pytest.mark.parametrize("manager", [launch.Manager.STANDALONE, launch.Manager.YARN])
def test_one_agent_is_not_the_agents_of_a_cluster(manager: launch.Manager, caplog: pytest.LogCaptureFixture) -> None:
    known = ticket.Ticket(
        run="r1",
        manager=manager,
        master_url="spark://elsewhere:7077",
        name="job",
        promise=promise(),
        settings=DeadlineSettings(),
        profile_key="job",
        slots=64.0,
        group="job",
        host=socket.gethostname(),
        here=False,
        submitted_at=0.0,
    )
    port = cluster_run.actuator(known, access.Access(agent="unix:/nobody/listens"))
    assert (port.enforces, port.host_cores) == (False, 64.0)
    assert "or the deadline is only watched" in caplog.text
    with pytest.raises(errors.InvalidInputError, match="allocator='agent'"):
        cluster_run.actuator(replace(known, allocator="agent"), access.Access(agent="unix:/nobody/listens"))


@pytest.fixture
def page() -> Iterator[FakeMaster]:
    with spark_master() as state:
        yield state


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port that answers one request for a file as Spark does: with its refusal."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                asked = connection.recv(4096)
                connection.sendall(asked[:8] + b"\x08" + asked[9:])

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join(10)


def test_a_cluster_of_other_hosts_is_only_watched_in_client_mode_too(
    page: FakeMaster, refusing: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    page.host = "192.0.2.1"
    request = run.Request(
        name="job",
        master_url=f"spark://2130706433:{refusing}",  # this host, but not called by a loopback address
        web_url=page.url,
        promise=promise(),
        settings=DeadlineSettings(),
        profile_folder=str(tmp_path),
    )
    found = run.DeadlineRun(request)
    assert found.target.here is False
    assert found.summary()["enforced"] is False
    assert "or the deadline is only watched" in caplog.text


@pytest.mark.parametrize("value", ["two", "1e1", "0", "-1"])
def test_a_property_that_is_no_number_is_refused_by_name(value: str) -> None:
    with pytest.raises(errors.InvalidInputError, match=f"spark.executor.cores='{value}': give a whole number"):
        launch.elastic_target("yarn", {"spark.executor.cores": value})


def test_a_property_that_is_empty_has_its_default() -> None:
    assert launch.elastic_target("yarn", {"spark.executor.cores": "", "spark.executor.instances": "3"}).cores == 3
