"""Choosing the adapter: an agent that is gone is done without, one that is only slow is not gone past."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import detect


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
