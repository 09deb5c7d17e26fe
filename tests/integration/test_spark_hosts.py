"""One job over two worker hosts, each with its own agent: on loopback, 127.0.0.1 and 127.0.0.2 are two hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from airflow_mlscale.cpu import ports
from airflow_mlscale.cpu.adapters import lease_client
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark.adapters import cluster, executors, install, master
from tests.fakes import cpu_agent, cpu_host
from tests.integration import spark_task

pytestmark = [pytest.mark.engine, pytest.mark.long]

JOB = str(Path(__file__).parent / "spark_job.py")
HOSTS = ("127.0.0.1", "127.0.0.2")
TOKEN = "correct-horse-battery-staple"
MAX_CORES = 0.8


@dataclass
class Host:
    name: str
    address: str
    process: cpu_agent.AgentProcess
    agent: lease_client.LeasePort

    def group(self) -> ports.GroupInfo | None:
        """The job's."""
        return next((info for info in self.agent.groups() if info.name.startswith("spark-two-hosts")), None)

    def executors(self) -> list[psutil.Process]:
        """Those in the job's group, without the Python workers below them."""
        group = self.group()
        found = [psutil.Process(pid) for pid in (group.members if group else ())]
        return [process for process in found if executors.MAIN_CLASS in process.cmdline()]


def start_agent(stack: ExitStack, folder: Path, host: str) -> Host:
    token_file = folder / "token"
    token_file.write_text(TOKEN)
    port = processes.free_port(host)
    where = ("--listen", f"{host}:{port}", "--token-file", str(token_file))
    base = stack.enter_context(cpu_host.v1_base())
    agent = stack.enter_context(
        cpu_agent.agent_process(folder / f"{host}.sock", *where, "--base", base, "--cores", "1")
    )
    address = f"http://{host}:{port}"
    return Host(host, address, agent, lease_client.LeasePort(address, token=TOKEN))


def start_second_worker(stack: ExitStack, running: processes.Service) -> None:
    """`cluster.up` starts workers on one address only."""
    found = install.find()
    command = [found.command("spark-class"), "org.apache.spark.deploy.worker.Worker", "--host", HOSTS[1]]
    command += ["--webui-port", "0", "--cores", "1", "--memory", "1g", running.details["master"]]
    env = {**found.env(), "SPARK_LOCAL_IP": HOSTS[1], "SPARK_DAEMON_MEMORY": "384m"}
    log_path = processes.home() / "logs" / "second-worker.log"
    work = processes.home() / "spark" / "work" / "second"
    work.mkdir(parents=True)
    worker = processes.spawn("second worker", command, env=env, cwd=work, log_path=log_path)
    stack.callback(worker.end)
    processes.wait_until(
        lambda: len(master.state(running.details["web_url"]).workers) == 2,
        what="the second worker",
        timeout_s=120,
        alive=lambda: worker.poll() is None,
        log_path=log_path,
    )


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Host]]:
    """Two workers of one core each, and their agents; the connection names them."""
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path / "home"))
    port = processes.free_port()
    with ExitStack() as stack:
        stack.callback(cluster.down)
        running = cluster.up(cluster.ClusterSettings(workers=1, cores=1, memory="1g", port=port))
        start_second_worker(stack, running)
        hosts = {host: start_agent(stack, tmp_path, host) for host in HOSTS}
        extra = {"agents": {name: host.address for name, host in hosts.items()}, "agent_token": TOKEN}
        connection = {"conn_type": "mlscale_spark", "host": "127.0.0.1", "port": port, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_MLSCALE_SPARK", json.dumps(connection))
        yield hosts


def test_a_share_reaches_the_executors_of_both_hosts(farm: dict[str, Host], tmp_path: Path) -> None:
    from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator

    operator = DeadlineSparkSubmitOperator(
        task_id="task",
        application=JOB,
        application_args=[12_000, 3],
        conf={"spark.executor.memory": "512m"},
        name="two-hosts",
        deadline=timedelta(seconds=280),
        mode="reserve",
        max_cores=MAX_CORES,
        profile_store=str(tmp_path / "profiles"),
    )
    one, two = farm.values()

    def both_limited() -> bool:
        groups = [host.group() for host in farm.values()]
        ceilings = [group.share.ceiling_cores if group else None for group in groups]
        return all(host.executors() for host in farm.values()) and None not in ceilings

    with ThreadPoolExecutor(1) as pool:
        task = pool.submit(operator.execute, spark_task.context())
        processes.wait_until(both_limited, what="a ceiling on both hosts", timeout_s=120, alive=lambda: not task.done())
        for host in farm.values():
            [executor] = host.executors()
            assert executor.cmdline()[executor.cmdline().index("--hostname") + 1] == host.name
        shares = [group.share.ceiling_cores for host in farm.values() if (group := host.group())]
        assert sum(cores or 0.0 for cores in shares) == pytest.approx(MAX_CORES, abs=0.01)

        psutil.Process(two.process.pid).kill()  # the job does not need every agent to the end
        summary = task.result(timeout=300)

    assert (summary["allocator"], summary["enforced"]) == ("hosts", True)
    assert summary["executor_core_s"] > 5
    assert {point["ceiling_cores"] for point in summary["series"]} == {MAX_CORES}
    assert one.group() is None
