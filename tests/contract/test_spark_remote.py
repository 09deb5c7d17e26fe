"""Applications on Kubernetes and YARN, against HTTP servers that speak as their API servers do.

spark-submit itself is a stand-in: without a cluster it could not do anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale import errors
from airflow_mlscale.operators import lineage
from airflow_mlscale.runtime import journal
from airflow_mlscale.spark.adapters import kubernetes, yarn
from airflow_mlscale.spark.ports import RemoteState
from tests.fakes import submission
from tests.fakes.kubernetes_api import FakeKubernetes, kubernetes_api
from tests.fakes.spark_remote import STAGE, KubernetesJob, connect, deferred, ended, operator, profiled
from tests.fakes.submission import FakeDriver
from tests.fakes.yarn import FakeYarn, resource_manager
from tests.integration import spark_task, spark_trigger


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
