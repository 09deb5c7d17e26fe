"""Try a new version of the flight-delay model on a tenth of the requests, ask a person, then promote it or not;
and train it anew when it has become worse.

`flight_delay_rollout` takes the directory of a SavedModel. ROMA itself rolls the new version back if it fails or
misses its objective more often than the old one. Otherwise a person decides, on the task's *Required Actions* tab;
without an answer within a day the new version is left.

`flight_delay_degraded` starts `flight_delay_retraining` when the feedback to the served model, or its response time,
has become worse than it should be.
"""

from datetime import timedelta

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Asset, AssetWatcher, Param, TriggerRule, dag

from airflow_mlscale.operators.roma import (
    Canary,
    Objective,
    RomaDeployOperator,
    RomaPromoteOperator,
    RomaRollbackOperator,
)
from airflow_mlscale.roma.degradation import DegradedCondition
from airflow_mlscale.sensors.roma import RomaObjectiveSensor
from airflow_mlscale.triggers.roma import RomaDegradedTrigger

MODEL = Asset(name="flight_delay_model", uri="roma://models/flight_delay")
DEGRADED = Asset(
    name="flight_delay_degraded",
    watchers=[
        AssetWatcher(
            name="flight_delay_quality",
            trigger=RomaDegradedTrigger(
                model_name="flight_delay",
                condition=DegradedCondition(min_accuracy=0.85, objective=True, min_records=200),
            ),
        )
    ],
)


@dag(
    schedule=None,
    catchup=False,
    tags=["mlscale", "example"],
    doc_md=__doc__,
    params={"artefact": Param("/tmp/flight_delay/model", type="string", description="Directory of the SavedModel")},
)
def flight_delay_rollout():
    try_it = RomaDeployOperator(
        task_id="try_it",
        model_name="flight_delay",
        artefact="{{ params.artefact }}",
        objective=Objective(milliseconds=50, percentile=95),
        canary=Canary(fraction=0.1, min_requests=100),
        deferrable=True,
    )
    version = "{{ ti.xcom_pull('try_it')['version'] }}"

    holds = RomaObjectiveSensor(
        task_id="objective_holds", model_name="flight_delay", version=version, min_requests=100, timeout=3600
    )

    ask = ApprovalOperator(
        task_id="ask",
        subject="Promote version {{ ti.xcom_pull('try_it')['version'] }} of flight_delay?",
        body="""It answered {{ ti.xcom_pull('objective_holds')['requests'] }} requests,
p95 {{ ti.xcom_pull('objective_holds')['p95_ms'] }} ms of {{ ti.xcom_pull('objective_holds')['objective_ms'] }} ms,
{{ ti.xcom_pull('objective_holds')['errors'] }} errors.""",
        response_timeout=timedelta(hours=24),
    )

    promote = RomaPromoteOperator(
        task_id="promote", model_name="flight_delay", version=version, outlets=[MODEL], deferrable=True
    )
    leave = RomaRollbackOperator(
        task_id="leave",
        model_name="flight_delay",
        version=version,
        reason="a person decided against it",
        trigger_rule=TriggerRule.ALL_SKIPPED,
    )
    leave_unproven = RomaRollbackOperator(
        task_id="leave_unproven",
        model_name="flight_delay",
        version=version,
        reason="its objective was not seen to hold, or nobody answered",
        trigger_rule=TriggerRule.ONE_FAILED,
    )
    try_it >> holds >> ask >> promote >> leave
    [holds, ask] >> leave_unproven


@dag(schedule=[DEGRADED], catchup=False, max_active_runs=1, tags=["mlscale", "example"], doc_md=__doc__)
def flight_delay_degraded():
    TriggerDagRunOperator(task_id="retrain", trigger_dag_id="flight_delay_retraining", skip_when_already_exists=True)


flight_delay_rollout()
flight_delay_degraded()
