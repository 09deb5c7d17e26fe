"""A DAG of a user: trains until a quality holds, and another task waits for it."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag

from airflow_mlscale.operators.federated import FederatedTrainingOperator, Quality
from airflow_mlscale.sensors.federated import FederatedAccuracySensor

CODE = "tests.fakes.federated_blobs"


@dag(schedule=None)
def federated_by_quality():
    train = FederatedTrainingOperator(
        task_id="train",
        model=f"{CODE}:build",
        client_data=f"{CODE}:of_site",
        evaluation_data=f"{CODE}:held_out",
        target=Quality("accuracy", 0.9),
        sites=["region=eu"],
        deadline=timedelta(minutes=20),
        deferrable=True,
        poll_s=0.2,
    )
    FederatedAccuracySensor(task_id="good", run_id=train.output["run_id"], at_least=0.9, deferrable=True)


federated_by_quality()
