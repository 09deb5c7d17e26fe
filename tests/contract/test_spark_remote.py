"""Applications on Kubernetes and YARN, against HTTP servers that speak as their API servers do.

spark-submit itself is a stand-in: without a cluster it could not do anything.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import AsyncCallback

from airflow_mlscale import errors
from airflow_mlscale.operators import lineage
from airflow_mlscale.runtime import journal
from airflow_mlscale.spark.adapters import kubernetes, profile_store, yarn
from airflow_mlscale.spark.model import Plan, Profile, StageProfile
from airflow_mlscale.spark.ports import RemoteState
from tests.fakes import federated_task, submission
from tests.fakes.kubernetes_api import FakeKubernetes, kubernetes_api
from tests.fakes.submission import FakeDriver
from tests.fakes.yarn import FakeYarn, resource_manager
from tests.integration import spark_task, spark_trigger

KEY = "remote"
STAGE = "count at job.py:1#0"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLSCALE_HOME", str(tmp_path / "home"))


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    with kubernetes_api() as state:
        yield state


@pytest.fixture
def manager() -> Iterator[FakeYarn]:
    with resource_manager() as state:
        yield state


def operator(folder: Path, **arguments: object) -> Any:
    from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator

    given = {
        "application": "local:///opt/job.py",
        "conf": {"spark.executor.cores": "2"},
        "num_executors": 1,
        "deploy_mode": "cluster",
        "deferrable": True,
        "deadline": timedelta(seconds=100),
        "mode": "reserve",
        "name": KEY,
        "profile_store": str(folder),
        "tuning": {"read_period_s": 0.1, "period_s": 0.1},
        **arguments,
    }
    return DeadlineSparkSubmitOperator(task_id="task", **given)


def connect(monkeypatch: pytest.MonkeyPatch, **connection: object) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLSCALE_SPARK", json.dumps({"conn_type": "mlscale_spark", **connection}))


def deferred(task: Any, store: spark_task.Store) -> Any:
    from airflow.sdk.exceptions import TaskDeferred

    with pytest.raises(TaskDeferred) as left:
        task.execute(spark_task.context(store))
    return spark_trigger.restored(left.value.trigger.serialize())


def profiled(folder: Path) -> None:
    """Earlier runs took ten core-seconds: a fraction of a core suffices for 100 s."""
    plan = Plan(stages=(StageProfile(key=STAGE, core_s=10.0, tasks=8),), runs=3)
    profile_store.ProfileFiles(str(folder)).save(Profile(key=KEY, plans=(plan,)))


class KubernetesJob:
    """What spark-submit makes in the cluster: a driver pod, and one executor with the CPU that was asked for."""

    def __init__(self, cluster: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster = cluster
        self.drivers: list[FakeDriver] = []
        cluster.proxied = self.proxied
        connect(monkeypatch, host="k8s://http://127.0.0.1", port=int(cluster.url.rpartition(":")[2]))

    def proxied(self, pod: str, path: str) -> tuple[int, Any]:
        assert pod == "job-driver:4040"
        answer = self.drivers[0].answer(path.removeprefix("/api/v1"))
        if self.drivers[0].finished:
            ended(self.cluster, "job-driver", exit_code=0)
        return 200 if answer else 404, answer

    def submit(self, arguments: list[str]) -> str:
        given = submission.properties(arguments)
        run = given["spark.kubernetes.driver.label.mlscale-run"]
        assert given["spark.kubernetes.submission.waitAppCompletion"] == "false"
        assert given["spark.kubernetes.executor.label.mlscale-run"] == run == given["spark.mlscale.run"]
        self.cluster.add("job-driver", labels={"spark-role": "driver", "mlscale-run": run})
        self.cluster.add(
            "job-exec-1",
            labels={"spark-role": "executor", "mlscale-run": run, "spark-exec-id": "1"},
            request=given["spark.kubernetes.executor.request.cores"],
            limit=given["spark.kubernetes.executor.limit.cores"],
        )
        self.drivers.append(FakeDriver(run, patience=lambda: bool(self.cluster.resizes())))
        return "LoggingPodStatusWatcherImpl: Deployed Spark application"


def test_on_kubernetes_the_trigger_resizes_pods_and_reads_the_driver_through_the_api_server(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, store = KubernetesJob(cluster, monkeypatch), spark_task.Store()
    profiled(tmp_path)
    with submission.spark_home(tmp_path / "spark", job.submit) as spark:
        monkeypatch.setenv("SPARK_HOME", str(spark))
        trigger = deferred(operator(tmp_path), store)
        assert trigger.submission["application_id"] == "default:job-driver"
        # A worker that died just now: the next one does not submit again.
        again = operator(tmp_path)
        assert deferred(again, store).submission["application_id"] == "default:job-driver"
        (facet,) = lineage.deadline_facets(again.deadline, again._promised, None).values()
        assert facet.deadlineSeconds == 100.0  # what it took up has a deadline, too
    assert len(job.drivers) == 1

    event = asyncio.run(asyncio.wait_for(spark_trigger.first_event(trigger), 60))
    assert (event["state"], event["reason"]) == (
        "succeeded",
        "pod job-driver is Succeeded, exit code 0 (Completed)",
    )
    pod, body = cluster.resizes()[0]
    assert pod == "job-exec-1"
    (container,) = body["spec"]["containers"]
    assert container["resources"]["limits"]["cpu"] != "2000m"  # 10 core-s in 100 s need no two cores
    assert cluster.cpu("job-exec-1") == ("2000m", "2000m")  # given back

    summary = operator(tmp_path).execute_complete(spark_task.context(store), event)
    assert summary["met"]
    assert summary["allocator"] == "kubernetes"
    assert [record.seen["stages"] for record in journal.from_rows(store["mlscale_journal"])][-1] == 1


HEARD: list[dict[str, Any]] = []
PAGED = threading.Event()


def heard(context: dict[str, Any]) -> None:
    HEARD.append(context)


async def page(context: dict[str, Any], team: str) -> None:
    HEARD.append({**context, "team": team})
    PAGED.set()


async def until_paged(trigger: Any) -> None:
    """The life of a triggerer that ends while the application runs."""
    running = asyncio.create_task(spark_trigger.first_event(trigger))
    paged = await asyncio.to_thread(PAGED.wait, 120)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    assert paged


def test_callbacks_of_a_deferred_task_hear_of_a_change_at_once_and_once(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    HEARD.clear()
    PAGED.clear()
    job, store, over = KubernetesJob(cluster, monkeypatch), spark_task.Store(), threading.Event()
    profiled(tmp_path)
    afterwards: list[dict[str, Any]] = []
    missing, awaited = "no.such.module.page", AsyncCallback(page, {"team": "ops"})
    late = {
        "deadline": timedelta(seconds=1),
        "on_infeasible": "best_effort",
        "on_outlook_change": [heard, missing, awaited, afterwards.append],
    }
    with submission.spark_home(tmp_path / "spark", job.submit) as spark:
        monkeypatch.setenv("SPARK_HOME", str(spark))
        first = deferred(operator(tmp_path, **late), store)
    assert "give its import path to hear of a change at once" in caplog.text
    (driver,) = job.drivers
    driver.patience = over.is_set

    first.task_instance = federated_task.TaskInstance("task", map_index=3)
    asyncio.run(until_paged(first))
    assert not driver.finished
    assert [(context["outlook"], context.get("team")) for context in HEARD] == [
        ("will_miss", None),
        ("will_miss", "ops"),
    ]
    assert (HEARD[0]["dag_id"], HEARD[0]["task_id"], HEARD[0]["map_index"]) == ("a_dag", "task", 3)

    over.set()
    second = spark_trigger.restored(first.serialize())  # in the next triggerer
    event = asyncio.run(asyncio.wait_for(spark_trigger.first_event(second), 60))
    assert event["state"] == "succeeded"
    assert afterwards == []
    summary = operator(tmp_path, **late).execute_complete(spark_task.context(store), event)
    assert not summary["met"]
    assert [context["outlook"] for context in afterwards] == ["will_miss"]
    assert f"on_outlook_change: {missing} failed" in caplog.text  # the task has tried it, too
    assert len(HEARD) == 2


def test_without_deferring_and_without_ceilings_pods_give_back_what_the_deadline_does_not_need(
    cluster: FakeKubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = KubernetesJob(cluster, monkeypatch)
    profiled(tmp_path)
    limit = timedelta(seconds=100)  # or it would wait forever for a resize that does not come
    task = operator(tmp_path, mode="work_conserving", deferrable=False, execution_timeout=limit)
    with submission.spark_home(tmp_path / "spark", job.submit) as spark:
        monkeypatch.setenv("SPARK_HOME", str(spark))
        summary = task.execute(spark_task.context(spark_task.Store()))
    assert (summary["met"], summary["mode"]) == (True, "work_conserving")
    (container,) = cluster.resizes()[0][1]["spec"]["containers"]
    asked = container["resources"]
    assert (asked["requests"]["cpu"] != "1999m", asked["limits"]["cpu"]) == (True, "2000m")
    assert cluster.cpu("job-exec-1") == ("1999m", "2000m")


def ended(cluster: FakeKubernetes, name: str, *, exit_code: int, reason: str = "Completed") -> None:
    pod = cluster.pods["default", name]
    pod["status"]["phase"] = "Failed" if exit_code else "Succeeded"
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    terminated = {"exitCode": exit_code, "reason": reason, "finishedAt": finished}
    pod["status"]["containerStatuses"][0]["state"] = {"terminated": terminated}


def test_a_driver_pod_tells_why_it_waits_why_it_failed_and_that_it_is_gone(cluster: FakeKubernetes) -> None:
    api = kubernetes.core_api(kubernetes.configuration(f"k8s://{cluster.url}"))
    application = kubernetes.KubernetesApplication(api, namespace="default", run="r1")
    assert application.status().state is RemoteState.LOST
    assert application.find() is None
    application.kill()  # nothing there: nothing to do

    pod = cluster.add("d", labels={"spark-role": "driver", "mlscale-run": "r1"}, phase="Pending")
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": "no image"}}
    waiting = application.status()
    assert waiting.state is RemoteState.WAITING
    assert waiting.reason == "pod d is Pending (ImagePullBackOff: no image)"

    ended(cluster, "d", exit_code=137, reason="OOMKilled")
    failed = application.status()
    assert failed.state is RemoteState.FAILED
    assert failed.reason == "pod d is Failed, exit code 137 (OOMKilled)"
    assert failed.ended_at == pytest.approx(time.time(), abs=60)

    application.kill()
    assert cluster.pods == {}
    application.kill()  # gone already
    assert application.status().state is RemoteState.LOST


def test_an_api_server_that_refuses_names_the_role_that_is_missing(cluster: FakeKubernetes) -> None:
    from tests.fakes.kubernetes_api import Failure

    api = kubernetes.core_api(kubernetes.configuration(f"k8s://{cluster.url}"))
    cluster.failures.append(Failure("GET", "/pods", 403))
    with pytest.raises(errors.UnreachableError, match=r"HTTP 403 .*needs get and list on pods"):
        kubernetes.KubernetesApplication(api, namespace="default", run="r1").status()


def test_on_yarn_the_trigger_reads_the_driver_through_the_resource_manager(
    manager: FakeYarn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(arguments: list[str]) -> str:
        given = submission.properties(arguments)
        run = given["spark.mlscale.run"]
        assert given["spark.yarn.submit.waitAppCompletion"] == "false"
        assert given["spark.yarn.tags"] == f"mine,mlscale-{run}"
        assert given["spark.yarn.appMasterEnv.COLOUR"] == "blue"
        manager.add("application_1_0001", tag=given["spark.yarn.tags"])
        driver = FakeDriver(run)
        manager.drivers["application_1_0001"] = driver
        answer = driver.answer

        def until_done(path: str) -> Any:
            found = answer(path)
            if driver.finished:
                manager.end("application_1_0001", "FINISHED", "SUCCEEDED", at=time.time())
            return found

        driver.answer = until_done  # type: ignore[method-assign]
        return "Submitted application application_1_0001"

    connect(monkeypatch, host="yarn", extra={"yarn_resourcemanager_webapp_address": manager.url})
    store = spark_task.Store()
    with submission.spark_home(tmp_path / "spark", submit) as spark:
        monkeypatch.setenv("SPARK_HOME", str(spark))
        task = operator(tmp_path, conf={"spark.yarn.tags": "mine"}, env_vars={"COLOUR": "blue"})
        trigger = deferred(task, store)
    assert trigger.submission["application_id"] == "application_1_0001"
    assert task.pages == {
        "mlscale_spark_ui": f"{manager.url}/proxy/application_1_0001/",
        "mlscale_spark_master": manager.url,
    }

    event = asyncio.run(asyncio.wait_for(spark_trigger.first_event(trigger), 60))
    assert event["state"] == "succeeded"
    summary = operator(tmp_path).execute_complete(spark_task.context(store), event)
    assert summary["met"]
    assert summary["enforced"] is False  # no agent of a NodeManager's host was named
    assert event["learned"]["plans"][0]["stages"][0]["key"] == STAGE


def test_yarn_states_become_ours(manager: FakeYarn) -> None:
    application = yarn.YarnApplication(manager.url, run="r1")
    assert application.status().state is RemoteState.LOST
    manager.add("application_1_0002", tag="mlscale-r1", state="ACCEPTED")
    assert application.status().state is RemoteState.WAITING
    manager.apps["application_1_0002"]["state"] = "RUNNING"
    assert application.status().state is RemoteState.RUNNING
    manager.end("application_1_0002", "FINISHED", "FAILED", at=7.0, diagnostics="User class threw exception")
    failed = application.status()
    assert (failed.state, failed.ended_at) == (RemoteState.FAILED, 7.0)
    assert failed.reason == "YARN says FINISHED/FAILED of application_1_0002: User class threw exception"
    application.kill()
    assert application.status().state is RemoteState.KILLED
    manager.down = True
    with pytest.raises(errors.UnreachableError, match="YARN at http://127"):
        application.status()


def test_a_failed_submission_leaves_nothing_and_is_not_taken_up(
    manager: FakeYarn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(arguments: list[str]) -> str:  # it fails after YARN has taken the application
        manager.add("application_1_0003", tag=submission.properties(arguments)["spark.yarn.tags"])
        raise ConnectionError

    connect(monkeypatch, host="yarn", extra={"yarn_resourcemanager_webapp_address": manager.url})
    store = spark_task.Store()
    with submission.spark_home(tmp_path / "spark", submit) as spark:
        monkeypatch.setenv("SPARK_HOME", str(spark))
        with pytest.raises(errors.SparkJobFailedError, match="Error code is: 1"):
            operator(tmp_path).execute(spark_task.context(store))
    assert manager.apps["application_1_0003"]["state"] == "KILLED"


@pytest.mark.parametrize(
    ("connection", "message"),
    [
        ({"host": "yarn"}, "yarn_resourcemanager_webapp_address=None: set it in the connection"),
        ({"host": "local[2]"}, "deploy_mode='cluster': a local master has no cluster"),
        ({"host": "mesos://h", "port": 5050}, "master='mesos://h:5050': use spark://"),
        ({"host": "yarn", "extra": {"agents": "[1]"}}, "agents='\\[1\\]': give a JSON object"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_submitted(
    connection: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    connect(monkeypatch, **connection)
    with pytest.raises(AirflowFailException, match=message):
        operator(tmp_path).execute(spark_task.context())


YARN = {"host": "yarn", "extra": {"yarn_resourcemanager_webapp_address": "http://rm:8088"}}


@pytest.mark.parametrize(
    ("allocator", "connection", "message"),
    [
        ("cgroup-v1", {"host": "k8s://h", "port": 443}, "on kubernetes use auto or kubernetes or observe-only"),
        ("agent", {"host": "k8s://h", "port": 443}, "on kubernetes use auto or kubernetes or observe-only"),
        ("kubernetes", YARN, "on yarn use auto or observe-only, or name the agents"),
        ("agent", YARN, "on yarn use auto or observe-only, or name the agents"),
    ],
)
def test_an_allocator_that_cannot_reach_the_executors_is_refused_by_name(
    allocator: str, connection: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    connect(monkeypatch, **connection)
    with pytest.raises(AirflowFailException, match=f"allocator='{allocator}': {message}"):
        operator(tmp_path, allocator=allocator).execute(spark_task.context())


def test_the_button_of_a_connection_asks_yarn(manager: FakeYarn, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_mlscale.hooks.spark import DeadlineSparkSubmitHook

    connect(monkeypatch, host="yarn", extra={"yarn_resourcemanager_webapp_address": manager.url})
    hook = DeadlineSparkSubmitHook()
    assert hook.test_connection() == (True, f"YARN 3.4.1 at {manager.url} is STARTED")
    manager.down = True
    assert hook.test_connection()[0] is False
    connect(monkeypatch, host="yarn")
    good, told = DeadlineSparkSubmitHook().test_connection()
    assert not good
    assert "set it in the connection" in told


def test_the_button_of_a_connection_asks_kubernetes(cluster: FakeKubernetes, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_mlscale.hooks.spark import DeadlineSparkSubmitHook
    from tests.fakes.kubernetes_api import Failure

    connect(monkeypatch, host="k8s://http://127.0.0.1", port=int(cluster.url.rpartition(":")[2]))
    hook = DeadlineSparkSubmitHook()
    assert hook.test_connection() == (True, f"Kubernetes v1.35.0 at {cluster.url} lets pods be read")
    cluster.failures.append(Failure("GET", "/pods", 403))
    good, told = hook.test_connection()
    assert not good
    assert "needs get and list on pods" in told
