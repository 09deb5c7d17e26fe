"""A real federation of three sites on loopback: reach a target, survive deaths, fail clearly."""

from __future__ import annotations

import asyncio
import importlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from airflow.sdk.exceptions import TaskDeferred
from airflow.triggers.base import BaseTrigger

from airflow_mlscale import errors
from airflow_mlscale.federated import model
from airflow_mlscale.federated.adapters import local_federation
from airflow_mlscale.federated.settings import FederationSettings
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.operators.federated import FederatedTrainingOperator, Quality
from airflow_mlscale.runtime import journal, processes
from airflow_mlscale.sensors.federated import FederatedAccuracySensor
from airflow_mlscale.triggers.federated import FederatedAccuracyTrigger
from tests.fakes import federated_task

pytestmark = [pytest.mark.engine, pytest.mark.timeout(240)]

CODE = Path(__file__).parents[1] / "fakes"


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("MLSCALE_HOME", str(tmp_path_factory.mktemp("federation")))
    patch.syspath_prepend(str(CODE))
    try:
        running = local_federation.up(FederationSettings(sites=("a", "b", "c")))
        patch.setenv("AIRFLOW_CONN_MLSCALE_FEDERATED", running.connection)
        yield running
    finally:
        services = [psutil.Process(found.pid) for found in processes.services("federated-")]
        everything = [*services, *(below for each in services for below in each.children(recursive=True))]
        local_federation.down()
        patch.undo()
        assert [process for process in everything if _alive(process)] == []  # grandchildren of jobs too


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def training(task_id: str, **arguments) -> FederatedTrainingOperator:
    return FederatedTrainingOperator(
        **{
            "task_id": task_id,
            "model": "federated_blobs:build",
            "client_data": "federated_blobs:of_site",
            "evaluation_data": "federated_blobs:held_out",
            "target": Quality("accuracy", 0.95),
            "round_timeout": 20,
            "poll_s": 0.2,
            **arguments,
        }
    )


def wait_for_rounds(runs, run_id: str, count: int) -> model.RunState:
    """Follows another process's file: there is no event to wait for."""
    directory = runs.directory(run_id)

    def there() -> bool:
        state = directory.state()
        return state is not None and len(state.rounds) >= count

    processes.wait_until(there, what=f"round {count} of {run_id}", timeout_s=120, poll_s=0.05)
    return directory.state()


def test_reaches_its_target_stops_early_and_is_not_trained_twice(federation, tmp_path):
    context = federated_task.context("reaches")
    operator = training("reaches", output_dir=str(tmp_path / "model"), max_rounds=30, deadline=timedelta(minutes=5))

    result = operator.execute(context)

    assert result["reached"]
    assert result["stopped_early"]
    assert 0.95 <= result["accuracy"] == max(each["value"] for each in result["rounds_table"])
    assert 2 <= result["rounds"] < 30
    assert result["rounds"] == len(result["rounds_table"])
    assert context["ti"].pushed["run_id"] == result["run_id"]
    assert str(tmp_path / "model" / "saved_model") == result["saved_model"]
    assert Path(result["keras_model"]).is_file()
    told = context["task_state_store"].values
    assert result["rounds"] == len(told["mlscale_journal"])
    assert told["mlscale_summary"]["status"] == "reached"

    again = training("reaches", output_dir=str(tmp_path / "model"), max_rounds=30, deadline=timedelta(minutes=5))
    assert result == again.execute(context)  # a retry of a task that died after the end: the same run
    assert FederatedHook().runs.directory(result["run_id"]).last_segment()[0] == 1

    _check_signature(Path(result["saved_model"]))
    sensor = FederatedAccuracySensor(task_id="watch", run_id=result["run_id"], at_least=0.9)
    found = sensor.execute(federated_task.context("watch"))
    assert found["value"] == result["rounds_table"][found["round"] - 1]["value"] >= 0.9


def _check_signature(path: Path) -> None:
    """Clients of the served model send the input layer's name and read the output layer's."""
    import tensorflow as tf

    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    assert list(served.structured_input_signature[1]) == ["point"]
    assert list(served.structured_outputs) == ["class"]
    assert tuple(served(point=tf.zeros((2, 2)))["class"].shape) == (2, 3)


def test_a_killed_site_blocks_nothing_and_a_killed_server_job_goes_on_at_the_last_complete_round(federation):
    context = federated_task.context("dies")
    endless = {"target": Quality("accuracy", 1.0), "on_infeasible": "go_on", "on_limit": "return_best"}
    operator = training("dies", **endless, max_rounds=20, min_nodes=2)
    with ThreadPoolExecutor(1) as worker:
        result = worker.submit(operator.execute, context)
        runs = FederatedHook().runs
        processes.wait_until(lambda: "run_id" in context["ti"].pushed, what="submission", timeout_s=60)
        run_id = context["ti"].pushed["run_id"]
        directory = runs.directory(run_id)

        sensor = FederatedAccuracySensor(task_id="watch", run_id=run_id, at_least=0.5, deferrable=True)
        with pytest.raises(TaskDeferred) as deferred:
            sensor.execute(federated_task.context("watch"))
        fired = sensor.execute_complete({}, asyncio.run(_first_event(deferred.value.trigger)))
        assert fired["value"] >= 0.5  # while the run goes on

        before = wait_for_rounds(runs, run_id, 3)
        _kill_site("c")
        without_c = wait_for_rounds(runs, run_id, len(before.rounds) + 4)
        late = without_c.rounds[-2:]
        assert [done.answered for done in late] == [("a", "b"), ("a", "b")]

        psutil.Process(json.loads(directory.heartbeat())["pid"]).kill()
        left = directory.state()
        done = result.result(timeout=150)

    rounds = directory.state().rounds
    assert list(range(1, 21)) == [each.number for each in rounds]
    assert left.rounds == rounds[: len(left.rounds)]  # nothing that was complete was played again
    assert {1, 2} == {each.segment for each in rounds}
    assert not done["reached"]
    assert done["segments"] == 2
    assert list(range(1, 21)) == [record.seen["round"] for record in journal.read(directory.metrics_path)]


@pytest.mark.long
def test_a_killed_job_process_of_one_site_does_not_end_the_run(federation):
    """NVFlare fails the whole job for it, although the quorum would hold."""
    context = federated_task.context("one")
    endless = {"target": Quality("accuracy", 1.0), "on_infeasible": "go_on", "on_limit": "return_best"}
    operator = training("one", **endless, max_rounds=12)
    with ThreadPoolExecutor(1) as worker:
        result = worker.submit(operator.execute, context)
        runs = FederatedHook().runs
        processes.wait_until(lambda: "run_id" in context["ti"].pushed, what="submission", timeout_s=60)
        run_id = context["ti"].pushed["run_id"]
        wait_for_rounds(runs, run_id, 2)
        _job_process("a").kill()
        done = result.result(timeout=150)

    rounds = runs.directory(run_id).state().rounds
    assert list(range(1, 13)) == [each.number for each in rounds]
    assert done["status"] == model.Status.LIMIT
    assert done["segments"] == 2
    assert rounds[-1].answered == ("a", "b", "c")  # the next segment has it back


def _job_process(site: str) -> psutil.Process:
    guard = psutil.Process(processes.service(local_federation.SITE_SERVICE + site).pid)
    (found,) = [
        process for process in guard.children(recursive=True) if "client.worker_process" in " ".join(process.cmdline())
    ]
    return found


def _kill_site(name: str) -> None:
    """Everything of the site but the guard and its restarting shell: as if its machine had crashed and come back."""
    guard = psutil.Process(processes.service(local_federation.SITE_SERVICE + name).pid)
    shell = psutil.Process(processes.command_pid(guard.pid))
    for process in shell.children(recursive=True):
        process.kill()


def test_stops_below_its_target_at_a_limit_and_sensors_of_it_fail_at_once(federation):
    context = federated_task.context("limited")
    operator = training("limited", target=Quality("accuracy", 1.0), max_rounds=2)

    with pytest.raises(Exception, match=r"TargetNotReachedError.*max_rounds=2.*its best model is .*model\.keras"):
        operator.execute(context)

    run_id = context["ti"].pushed["run_id"]
    sensor = FederatedAccuracySensor(task_id="watch", run_id=run_id, at_least=0.9999, timeout=60)
    with pytest.raises(Exception, match=rf"TargetNotReachedError: run {run_id} ended at accuracy"):
        sensor.execute(federated_task.context("watch"))
    trigger = FederatedAccuracyTrigger(
        run_id=run_id, condition=sensor.condition.to_json(), conn_id="mlscale_federated", poll_s=0.1
    )
    event = asyncio.run(_first_event(trigger))
    assert (event["status"], event["error"]) == ("failed", "TargetNotReachedError")
    other_metric = FederatedAccuracySensor(task_id="watch", run_id=run_id, at_least=0.9, metric="auc", timeout=60)
    with pytest.raises(Exception, match=r"metric='auc'.*use that"):
        other_metric.execute(federated_task.context("watch"))


@pytest.mark.long
def test_an_error_in_the_users_data_function_is_told_with_its_site_to_a_deferred_task(federation):
    context = federated_task.context("broken")
    operator = training("broken", client_data="federated_blobs:broken", deferrable=True)

    with pytest.raises(TaskDeferred) as deferred:
        operator.execute(context)
    event = asyncio.run(_first_event(deferred.value.trigger))
    assert event["progress"] == "ended"

    resumed = training("broken", client_data="federated_blobs:broken", deferrable=True)
    with pytest.raises(errors.FederatedRunFailedError, match=r"no site could train: .*no data for [abc]"):
        getattr(resumed, deferred.value.method_name)(context, event=event, **deferred.value.kwargs)


async def _first_event(trigger: BaseTrigger):
    """What the triggerer does: rebuild the trigger from what was stored, run it to its event."""
    path, arguments = trigger.serialize()
    module, _, name = path.rpartition(".")
    rebuilt = getattr(importlib.import_module(module), name)(**json.loads(json.dumps(arguments)))
    async for event in rebuilt.run():
        return event.payload
    return None


@pytest.mark.long
def test_a_killed_task_ends_its_run(federation):
    context = federated_task.context("killed")
    operator = training("killed", target=Quality("accuracy", 1.0), on_infeasible="go_on", max_rounds=5000)
    ended = threading.Event()
    with ThreadPoolExecutor(1) as worker:
        result = worker.submit(operator.execute, context)
        result.add_done_callback(lambda _: ended.set())
        processes.wait_until(lambda: "run_id" in context["ti"].pushed, what="submission", timeout_s=60)
        runs, run_id = FederatedHook().runs, context["ti"].pushed["run_id"]
        wait_for_rounds(runs, run_id, 1)

        operator.on_kill()

        assert ended.wait(30)
    with pytest.raises(errors.FederatedRunFailedError, match="aborted: asked to stop"):
        result.result()
    assert runs.directory(run_id).state().status == model.Status.ABORTED


def test_connection_test_logs_in(federation):
    assert FederatedHook().test_connection() == (True, "logged in; connected sites: a, b, c")


def test_a_second_up_starts_nothing_and_other_sites_are_refused(federation):
    pids = {found.name: found.pid for found in processes.services("federated-")}

    assert federation.port == local_federation.up(FederationSettings(sites=("a", "b", "c"))).port
    with pytest.raises(errors.InvalidInputError, match="mlscale federated down"):
        local_federation.up(FederationSettings(sites=("a", "b")))

    assert pids == {found.name: found.pid for found in processes.services("federated-")}
