"""Host agents for tests: a real one in a process of its own, and one in a thread over any backend."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.cpu import agent as agents
from airflow_mlscale.cpu import listeners, ports, server
from airflow_mlscale.cpu.adapters import lease_client
from airflow_mlscale.runtime import processes


class AgentProcess:
    """``mlscale agent`` as a user starts it."""

    def __init__(self, socket: Path, *arguments: str) -> None:
        self.socket = socket
        self.address = f"unix:{socket}"
        self.log_path = socket.with_suffix(".log")
        command = [sys.executable, "-m", "airflow_mlscale.cli", "agent", "--socket", str(socket), *arguments]
        self.child = processes.spawn("agent", command, log_path=self.log_path, grace_s=5.0)

    def wait_until_ready(self) -> None:
        """Return once it answers."""
        processes.wait_until(
            lambda: answers(self.address),
            what="host agent",
            timeout_s=60,
            alive=lambda: self.child.poll() is None,
            log_path=self.log_path,
            poll_s=0.05,
        )

    @property
    def pid(self) -> int:
        """Of the agent itself, below its guard."""
        pid = self.child.command_pid()
        assert pid is not None
        return pid


@contextmanager
def agent_process(socket: Path, *arguments: str) -> Iterator[AgentProcess]:
    """A running agent; ended afterwards, whatever happens."""
    agent = AgentProcess(socket, *arguments)
    try:
        agent.wait_until_ready()
        yield agent
    finally:
        agent.child.end()


@contextmanager
def agent_thread(
    backend: ports.CpuPort, socket: Path, settings: agents.Settings = agents.Settings(), *, token: str | None = None
) -> Iterator[str]:
    """An agent over ``backend`` in a thread of this process; yields the address of its Unix socket."""
    listener = listeners.unix_socket(socket)
    service = server.Service(agents.Agent(backend, settings))
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(service.run([(listener, token)], stop)))
    thread.start()
    try:
        processes.wait_until(
            lambda: answers(f"unix:{socket}", token), what="agent", timeout_s=20, alive=thread.is_alive, poll_s=0.02
        )
        yield f"unix:{socket}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def answers(address: str, token: str | None = None) -> bool:
    """Whether an agent answers there."""
    try:
        lease_client.LeasePort(address, token=token)
    except errors.UnreachableError:
        return False
    return True
