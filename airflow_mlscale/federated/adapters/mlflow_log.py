"""A run in MLflow, through its public client: parameters, a metric per round, tags, the model card and the picture.

Told from where Airflow follows the run, never by sites or the federation's server. Everything is read off the run's
state, so whoever comes next (a retry, a triggerer) finds the MLflow run by its tag and logs the rounds that it lacks.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from airflow_mlscale.federated import card, following, limits, model
from airflow_mlscale.federated.adapters import environment, picture
from airflow_mlscale.federated.settings import RunSettings

log = logging.getLogger(__name__)

RUN_TAG, STATUS_TAG = "mlscale.run_id", "mlscale.status"
ROUND = "round"
"""The metric that says which rounds are logged."""
ENDS = {model.Status.FAILED: "FAILED", model.Status.ABORTED: "KILLED"}
"""MLflow's word for the end of a run; all others are FINISHED."""
USERINFO = re.compile(r"//[^/@\s]*@")
"""Name and password in an address."""


@dataclass
class MlflowLog:
    """Listens to the news of one run. What goes wrong with MLflow is told once and never disturbs the run."""

    tracking_uri: str = field(repr=False)
    """Of the tracking server or store; it may hold a password and is never logged."""
    experiment: str
    """Made if there is none of that name."""
    _run: str | None = field(default=None, init=False)
    _told: bool = field(default=False, init=False)

    def __call__(self, news: following.News) -> None:
        try:
            self._log(news)
        except Exception as exc:  # MLflow, its stores and their drivers raise what they like
            if not self._told:
                told = USERINFO.sub("//…@", str(exc).replace(self.tracking_uri, "the tracking server"))
                log.warning(
                    "run %s is not logged to MLflow for now: %s: %s", news.state.run_id, type(exc).__name__, told
                )
            self._told = True

    def _log(self, news: following.News) -> None:
        os.environ.update({name: os.environ.get(name, value) for name, value in environment.SILENT.items()})
        from mlflow import MlflowClient

        mlflow = MlflowClient(tracking_uri=self.tracking_uri)
        run_id = self._run = self._run or self._found(mlflow, news.run, news.state)
        known = mlflow.get_run(run_id)
        status = str(news.state.status)
        over = news.state.status.ended
        if over and known.data.tags.get(STATUS_TAG) == status and known.info.status != "RUNNING":
            return  # somebody before us logged the end
        for done in news.state.rounds:
            if done.number > known.data.metrics.get(ROUND, 0):
                mlflow.log_batch(run_id, metrics=_metrics(news.state, done))
        mlflow.set_tag(run_id, STATUS_TAG, status)
        for name, value in limits.values(news.run).items():
            mlflow.set_tag(run_id, f"mlscale.{name}", str(value))  # parameters cannot change, limits can
        if over:
            self._log_files(mlflow, run_id, news)
            mlflow.set_terminated(run_id, status=ENDS.get(news.state.status, "FINISHED"))
        elif known.info.status != "RUNNING":  # a retry lets it go on
            mlflow.update_run(run_id, status="RUNNING")

    def _found(self, mlflow: Any, run: RunSettings, state: model.RunState) -> str:
        """The MLflow run of our run; made if there is none."""
        known = mlflow.get_experiment_by_name(self.experiment)
        experiment_id = known.experiment_id if known else mlflow.create_experiment(self.experiment)
        found = mlflow.search_runs([experiment_id], filter_string=f"tags.`{RUN_TAG}` = '{run.run_id}'", max_results=1)
        if found:
            return str(found[0].info.run_id)
        tags = {RUN_TAG: run.run_id, "mlscale.simulated": str(state.simulated)}
        began = int(1000 * state.started_at)
        made = mlflow.create_run(experiment_id, start_time=began, tags=tags, run_name=run.run_id).info.run_id
        from mlflow.entities import Param

        mlflow.log_batch(made, params=[Param(name, str(value)[:500]) for name, value in _parameters(run).items()])
        return str(made)

    def _log_files(self, mlflow: Any, run_id: str, news: following.News) -> None:
        exported = news.state.exported
        for path in (Path(exported).parent / card.FILE,) if exported else ():
            if path.is_file():  # the model may be on the server's disk alone
                mlflow.log_artifact(run_id, str(path))
                mlflow.log_artifact(run_id, str(path.with_suffix(".json")))
        if picture.can_draw() and news.state.rounds:
            with tempfile.TemporaryDirectory(prefix="mlscale-picture-") as folder:
                mlflow.log_artifact(run_id, str(picture.draw(news.run, news.state, Path(folder) / "rounds.png")))


def _parameters(run: RunSettings) -> Mapping[str, Any]:
    names = (
        "model", "client_data", "evaluation_data", "policy", "objective", "min_nodes", "cohort", "local_epochs",
        "batch_size", "proximal_mu", "encrypted", "seed", "max_rounds", "deadline_at",
    )  # fmt: skip
    return {
        **{name: getattr(run, name) for name in names},
        "target": str(run.target),
        "aggregation": run.aggregation.rule,
        "server_optimiser": run.server_optimiser.name,
        "privacy": run.privacy.to_json() if run.privacy else None,
        **{f"budget.{name}": value for name, value in run.budget.to_json().items()},
    }


def _metrics(state: model.RunState, done: model.Round) -> list[Any]:
    from mlflow.entities import Metric

    until = [each for each in state.rounds if each.number <= done.number]
    at = int(1000 * (state.started_at + sum(each.seconds for each in until)))
    values = {
        state.metric: done.value, "target": state.target, "loss": done.loss, "seconds": done.seconds,
        "asked": len(done.asked), "answered": len(done.answered), "epochs": max(done.epochs.values(), default=0),
        "node_seconds": sum(each.node_s for each in until), "gigabytes": sum(each.gigabytes for each in until),
        "epsilon": state.epsilon if done.number == state.rounds[-1].number else None, ROUND: done.number,
    }  # fmt: skip
    return [
        Metric(name.replace(":", "."), float(value), at, done.number)
        for name, value in values.items()
        if value is not None and isfinite(value)
    ]
