"""Everything that can die of a real federation of six sites, while nothing of a run is lost or played twice.

A site's job process and the server's job process die in `test_federated_runs`; here the server's own process dies and
leaves its job process behind. Sites that send nonsense are in `test_federated_combining` and `test_federated_scripts`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from airflow.sdk.exceptions import TaskDeferred

from airflow_mlscale.federated import model
from airflow_mlscale.federated.adapters import local_federation, run_directory
from airflow_mlscale.federated.settings import FederationSettings
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.operators.federated import FederatedTrainingOperator, Quality
from airflow_mlscale.runtime import processes
from tests.fakes import federated_task

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

HERE = Path(__file__).parent
CODE = HERE.parent / "fakes"
SITES = ("a", "b", "c", "d", "e", "g")
ROUND_TIMEOUT_S = 15.0
ENDLESS = {
    "client_script": "federated_steady.py",
    "initial_weights": "federated_numpy:start",
    "extra_modules": ["federated_numpy", "federated_blobs"],
    "policy": "over_selection",  # asks every site in every round
    "round_timeout": ROUND_TIMEOUT_S,
    "on_infeasible": "go_on",
    "on_limit": "return_best",
    "stall_rounds": None,
    "max_rounds": 2000,
    "poll_s": 0.2,
}
OUT_OF_REACH = {"metric": "accuracy", "value": 1.0}


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MLSCALE_HOME", str(tmp_path_factory.mktemp("federation")))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(CODE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]))
    patch.syspath_prepend(str(CODE))
    try:
        running = local_federation.up(FederationSettings(sites=SITES))
        patch.setenv("AIRFLOW_CONN_MLSCALE_FEDERATED", running.connection)
        yield running
    finally:
        everything = list(_everything())
        local_federation.down()
        patch.undo()
        assert [process for process in everything if _alive(process)] == []


@pytest.fixture
def started(federation, tmp_path):
    """Starts processes as Airflow would, each of which ends with the test."""
    children = []

    def start(program: str, arguments: object) -> tuple[psutil.Process, processes.Child, Path]:
        result = tmp_path / f"{len(children)}.json"
        command = [sys.executable, str(HERE / program), json.dumps(arguments), str(result)]
        child = processes.spawn(program, command, log_path=result.with_suffix(".log"))
        children.append(child)
        processes.wait_until(lambda: processes.command_pid(child.pid), what=program, timeout_s=30, poll_s=0.05)
        return psutil.Process(processes.command_pid(child.pid)), child, result

    yield start
    for child in children:
        child.end()


@pytest.mark.long
def test_a_killed_task_goes_on_and_a_third_of_the_sites_comes_back(started):
    """kill -9 of the task's process; of a third of the sites in mid-round, which NVFlare lets into no running job."""
    arguments = {"task_id": "task", **ENDLESS, "target": OUT_OF_REACH, "deadline": 200}
    task, _, _ = started("federated_process.py", arguments)
    run_id = operator("task")._name(federated_task.context("task"))
    wait_for_rounds(run_id, 3)
    deadline_at = directory(run_id).settings().deadline_at
    task.kill()

    alone = wait_for_rounds(run_id, 6)  # nobody follows the run
    assert alone.rounds[-1].answered

    _, retry, result = started("federated_process.py", arguments)
    for site in ("e", "g"):
        kill(local_federation.SITE_SERVICE + site)
    left = wait_for_rounds(run_id, len(directory(run_id).state().rounds) + 4)
    assert set(left.rounds[-1].answered) <= {"a", "b", "c", "d"}
    assert len(left.rounds[-1].answered) >= 3
    before = records(left)

    back = wait_for(run_id, lambda state: {"e", "g"} <= set(state.rounds[-1].answered), "the lost sites", 150)
    assert (back.segment, back.renewals) == (2, 1)
    assert all(records(back)[site].answered >= known.answered for site, known in before.items())  # and no worse known

    assert FederatedHook().runs.end(run_id, by="the test", why="it has seen enough")
    assert retry.wait(timeout_s=60) == 0
    told = json.loads(result.read_text())
    assert (told["run_id"], told["status"], told["segments"]) == (run_id, "stopped", 2)
    assert Path(told["weights_file"]).is_file()
    assert told["accuracy"] > 0.9
    assert deadline_at == directory(run_id).settings().deadline_at
    whole(run_id)


@pytest.mark.long
def test_a_killed_triggerer_a_frozen_site_and_a_killed_server_whose_job_outlives_it(started):
    """kill -9 of the triggerer, SIGSTOP and SIGCONT of a site, kill -9 of the server's process alone."""
    deferred = operator("deferred", deferrable=True)
    context = federated_task.context("deferred")
    with pytest.raises(TaskDeferred) as first:
        deferred.execute(context)
    run_id, trigger = context["ti"].pushed["run_id"], first.value.trigger.serialize()
    triggerer, _, _ = started("spark_trigger.py", trigger)
    wait_for_rounds(run_id, 3)
    triggerer.kill()
    seen = directory(run_id).state()

    _, again, fired = started("spark_trigger.py", trigger)
    with frozen(site("g")):
        without = wait_for_rounds(run_id, len(seen.rounds) + 6)
        assert "g" not in without.rounds[-1].answered
        assert "g" in without.rounds[-1].asked
    wait_for(run_id, lambda state: "g" in state.rounds[-1].answered, "the frozen site", 60)
    before = directory(run_id).state()
    assert before.segment == 1  # it needs no new segment

    server, orphan = server_and_its_job()
    its_log = Path(server.cwd()) / directory(run_id).last_segment()[1] / "log.txt"
    with frozen([orphan]):  # until another one plays the run: the worst moment for it to go on
        server.kill()
        assert again.wait(timeout_s=60) == 0
        event = json.loads(fired.read_text())
        assert (event["progress"], event["reason"]) == ("lost", "its job ended before the run did")
        assert before.status == directory(run_id).state().status == model.Status.RUNNING  # which nobody plays

        resumed = operator("deferred", deferrable=True)
        with pytest.raises(TaskDeferred) as second:
            getattr(resumed, first.value.method_name)(context, event=event, **first.value.kwargs)
        _, last, ended = started("spark_trigger.py", second.value.trigger.serialize())
        after = wait_for(run_id, lambda state: state.rounds[-1].segment == 2, "the next segment", 90)
        assert before.rounds == after.rounds[: len(before.rounds)]
        assert _alive(orphan)
    processes.wait_until(lambda: not _alive(orphan), what="the end of the orphan", timeout_s=60)
    assert "segment 2 has taken this run over from segment 1" in its_log.read_text()
    assert FederatedHook().runs.end(run_id, by="the test", why="it has seen enough")
    assert last.wait(timeout_s=60) == 0
    found = operator("deferred", deferrable=True).execute_complete(
        context, event=json.loads(ended.read_text()), run_id=run_id
    )
    assert (found["status"], found["segments"]) == ("stopped", 2)
    whole(run_id)


@pytest.mark.long
def test_a_site_that_stood_still_for_so_long_that_the_server_gave_it_up_is_back_at_last(started):
    arguments = {"task_id": "given-up", **ENDLESS, "target": OUT_OF_REACH, "deadline": 240}
    _, task, _ = started("federated_process.py", arguments)
    run_id = operator("given-up")._name(federated_task.context("given-up"))
    wait_for_rounds(run_id, 3)
    with frozen(site("g")):
        admin = FederatedHook().admin
        processes.wait_until(lambda: "g" not in admin.sites(), what="the server to give g up", timeout_s=90)
    wait_for(run_id, lambda state: "g" in state.rounds[-1].answered, "the site", 150)
    assert FederatedHook().runs.end(run_id, by="the test", why="it has seen enough")
    assert task.wait(timeout_s=60) == 0
    whole(run_id)


@pytest.mark.long
def test_a_site_twenty_times_slower_than_the_rest_holds_up_no_round_and_is_heard(started):
    slow = operator("slow", client_script_args="--pace-s 0.2 --slow g", max_rounds=18)
    result = slow.execute(federated_task.context("slow"))
    rounds = directory(result["run_id"]).state().rounds
    assert len(rounds) == 18
    # one answer of g takes 4 s, of the others 0.2 s: it is asked each time, no round stays open for it, and it is heard
    assert all("g" in done.asked for done in rounds)
    assert sum("g" in done.answered for done in rounds) <= 2
    assert sum("g" in done.late for done in rounds) >= 3
    whole(result["run_id"])


def operator(task_id: str, **arguments) -> FederatedTrainingOperator:
    return FederatedTrainingOperator(**{"task_id": task_id, **ENDLESS, "target": Quality(**OUT_OF_REACH), **arguments})


def directory(run_id: str) -> run_directory.RunDirectory:
    return FederatedHook().runs.directory(run_id)


def wait_for(run_id: str, there, what: str, timeout_s: float) -> model.RunState:
    """Follows another process's file: there is no event to wait for."""

    def ready() -> bool:
        state = directory(run_id).state()
        return state is not None and bool(state.rounds) and there(state)

    processes.wait_until(ready, what=what, timeout_s=timeout_s, poll_s=0.05)
    return directory(run_id).state()


def wait_for_rounds(run_id: str, count: int) -> model.RunState:
    return wait_for(run_id, lambda state: len(state.rounds) >= count, f"round {count} of {run_id}", 120)


def records(state: model.RunState) -> dict:
    return {site.name: site for site in state.sites}


def whole(run_id: str) -> None:
    """Each round was complete once, none lasted longer than it may, and no process of the run is left."""
    rounds = directory(run_id).state().rounds
    assert list(range(1, len(rounds) + 1)) == [done.number for done in rounds]
    told = [record.seen["round"] for record in directory(run_id).records() if "round" in record.seen]
    assert told == [done.number for done in rounds]
    assert all(before.segment <= after.segment for before, after in pairwise(rounds))
    starting = {next(done.number for done in rounds if done.segment == segment) for segment in (1, rounds[-1].segment)}
    assert all(done.seconds < ROUND_TIMEOUT_S + 5 for done in rounds if done.number not in starting)
    processes.wait_until(lambda: not list(job_processes()), what="the end of its processes", timeout_s=60)


def job_processes() -> Iterator[psutil.Process]:
    for process in _everything():
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if any(name in line for name in ("runner_process", "worker_process", "federated_steady")):
            yield process


def _everything() -> Iterator[psutil.Process]:
    for found in processes.services("federated-"):
        service = psutil.Process(found.pid)
        yield service
        yield from service.children(recursive=True)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def below_shell(service: str) -> list[psutil.Process]:
    """Everything of a service but its guard and its restarting shell."""
    guard = psutil.Process(processes.service(service).pid)
    return psutil.Process(processes.command_pid(guard.pid)).children(recursive=True)


def kill(service: str) -> None:
    """As if its machine had crashed and come back."""
    for process in below_shell(service):
        process.kill()


def site(name: str) -> list[psutil.Process]:
    return below_shell(local_federation.SITE_SERVICE + name)


def server_and_its_job() -> tuple[psutil.Process, psutil.Process]:
    """NVFlare's server, and the process of its only job."""
    (server,) = psutil.Process(processes.command_pid(processes.service(local_federation.SERVER_SERVICE).pid)).children()
    (job,) = server.children()
    return server, job


class frozen:
    """Processes that all stand still."""

    def __init__(self, still: list[psutil.Process]) -> None:
        self.processes = still

    def __enter__(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
