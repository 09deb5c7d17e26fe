"""Choosing the adapter: an agent that is gone is done without, one that is only slow is not gone past."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import detect
from airflow_mlscale.spark.adapters import allocator


@pytest.fixture
def agent_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A socket where the host agent's would be."""
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path))
    monkeypatch.delenv(detect.AGENT_VARIABLE, raising=False)
    detect.default_socket().parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(detect.default_socket()))
        yield listener


def test_a_socket_that_a_dead_agent_left_is_passed_by(agent_socket: socket.socket) -> None:
    agent_socket.close()
    assert detect.default_socket().exists()
    assert detect.detect().name != "lease"


def test_an_agent_that_does_not_answer_in_time_is_not_gone_past(agent_socket: socket.socket) -> None:
    agent_socket.listen()  # accepts, and never says a word
    with pytest.raises(errors.UnreachableError, match="host agent"):
        detect.detect()


def test_what_was_found_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path))
    detect._tell.cache_clear()
    for _ in range(2):
        detect.detect("observe-only")
    [record] = [record for record in caplog.records if record.name == detect.log.name]
    assert "only recorded on this machine (observe-only" in record.message


def test_every_name_says_where_it_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(detect.AGENT_VARIABLE, raising=False)
    for name, fix in (("kubernetes", "pods are resized where the master is k8s"), ("magic", "use one of auto, agent")):
        with pytest.raises(errors.InvalidInputError, match=fix):
            allocator.find(name, address=None, token=None, agents=None)
    assert {*detect.NAMES, "kubernetes", "executors"} == set(allocator.NAMES)


def test_agents_that_were_named_must_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nobody = {"host": f"unix:{tmp_path}/nobody.sock"}
    for name in ("auto", "agent"):
        with pytest.raises(errors.UnreachableError, match=r"nobody\.sock does not answer"):
            detect.detect(name, agents=nobody)
    assert detect.detect("observe-only", agents=nobody).name == "observe-only"
