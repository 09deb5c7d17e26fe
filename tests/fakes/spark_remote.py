"""Applications in clusters that are HTTP servers, and the tasks that submit them there."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_mlscale.spark.adapters import profile_store
from airflow_mlscale.spark.model import Plan, Profile, StageProfile
from tests.fakes import submission
from tests.fakes.kubernetes_api import FakeKubernetes
from tests.fakes.submission import FakeDriver
from tests.integration import spark_task, spark_trigger

KEY = "remote"
STAGE = "count at job.py:1#0"


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


def ended(cluster: FakeKubernetes, name: str, *, exit_code: int, reason: str = "Completed") -> None:
    pod = cluster.pods["default", name]
    pod["status"]["phase"] = "Failed" if exit_code else "Succeeded"
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    terminated = {"exitCode": exit_code, "reason": reason, "finishedAt": finished}
    pod["status"]["containerStatuses"][0]["state"] = {"terminated": terminated}
