"""Federated training until a quality is reached."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from airflow.sdk import BaseOperator

from airflow_mlscale import errors
from airflow_mlscale.federated import adaptive, client, combination, following, summary, watch
from airflow_mlscale.federated.combination import Aggregation, Privacy, ServerOptimiser
from airflow_mlscale.federated.model import Quality, Status
from airflow_mlscale.federated.settings import FUNCTIONS, NO_BUDGET, Budget, RunSettings
from airflow_mlscale.hooks import federated_telemetry
from airflow_mlscale.hooks.federated import FederatedHook
from airflow_mlscale.hooks.federated_onlookers import Onlookers
from airflow_mlscale.hooks.mlflow import MLflow
from airflow_mlscale.hooks.outcome import translated
from airflow_mlscale.operators import federated_arguments
from airflow_mlscale.operators.task_state import TaskStateJournal
from airflow_mlscale.runtime import deadlines
from airflow_mlscale.triggers.federated import FederatedRunTrigger

__all__ = ["Aggregation", "Budget", "FederatedTrainingOperator", "MLflow", "Privacy", "Quality", "ServerOptimiser"]

ON_LIMIT = ("fail", "return_best")


class FederatedTrainingOperator(BaseOperator):
    """Trains a model on sites that keep their data, until a quality holds on held-out data or a limit comes.

    The round loop runs in the federation's server job, so this task only submits and follows: it may be
    killed, retried or deferred without a round being lost. A retry re-attaches to the run; clearing the
    task begins a new one.

    Give ``model`` and ``client_data``, or a ``client_script`` with ``model`` or ``initial_weights``.

    Args:
        model: ``module:function`` that returns a compiled Keras model; called with those of ``data_args`` that
            it takes. (templated)
        client_data: ``module:function`` called on a site as ``(site_name, **data_args)``; returns ``(x, y)``, or
            ``((x, y), (x_val, y_val))`` where the sites measure. (templated)
        evaluation_data: ``module:function`` called on the server as ``(**data_args)``; returns the held-out
            ``(x, y)``. Without it the sites measure each model that they are sent. (templated)
        validation_split: part of a site's data that it measures on and never trains on, where the sites measure.
        client_script: a program that trains by NVFlare's client API: the path of its file, absolute or below the DAG
            folder, or a module's name. (templated)
        client_script_args: words of its command line, as text or a list. (templated)
        client_script_format: how the script's parameters hold arrays: ``numpy``, ``pytorch``,
            ``keras_layer_weights``.
        initial_weights: ``module:function`` that returns arrays by name, for a client script without a Keras model;
            called with those of ``data_args`` that it takes. (templated)
        target: when to stop, `Quality` of a metric of Keras, of your own or of the client script.
        data_args: keyword arguments of the data functions, JSON values. (templated)
        sites: names of the sites that take part; default is every connected one. (templated)
        extra_modules: modules that the functions' modules import and that the sites do not have.
        deadline: latest start of another round; a ``timedelta`` or ``pendulum.duration`` from the start of the
            task, a ``datetime`` with a time zone, or a template that renders to seconds, an ISO 8601 duration or
            date and time. Fixed at the first try; retries share it. (templated)
        max_rounds: most complete rounds.
        min_nodes: quorum: a round with fewer answers does not count.
        budget: what the run may cost, `Budget` of site seconds and gigabytes; no round begins once it is spent.
        policy: who plans the rounds, one of `settings.POLICIES`; ``adaptive`` chooses cohort, epochs of each site,
            quorum and the end of a round by what it sees of the sites.
        objective: what the adaptive policy saves while it keeps the limits: ``cost`` (site seconds) or ``time``.
        cohort: answers that a round wants; default is the policy's choice (all sites, of those that choose none).
        over_selection: sites asked ÷ answers wanted, ≥ 1, of the policy of that name.
        local_epochs: passes of a site over its data in a round; default is the policy's choice.
        max_local_epochs: most that a policy may choose.
        late_answers: average answers that come after their round was closed into the next one.
        stall_rounds: rounds without progress after which the run ends; None never ends it for that.
        on_infeasible: ``stop`` the run once its learning curve shows that the target is out of reach within the
            limits, or ``go_on`` to the limit for the best that there is.
        batch_size: samples of one training step.
        proximal_mu: FedProx: how strongly sites are held near the model that they were sent; 0 for not at all.
        aggregation: which answers are believed and how they become one, `Aggregation`; default is their average.
        server_optimiser: how far the model follows them, `ServerOptimiser`; default is a momentum and an average of
            models for the adaptive policy, and all the way for the others and under privacy.
        privacy: `Privacy` clips what sites send and adds noise; the summary tells the ``epsilon`` that is spent.
        encrypted: sites encrypt their weights, the server only ever reads the round's average. Needs a federation
            that was provisioned with encryption.
        round_timeout: seconds or a ``timedelta`` after which a round closes with the answers it has.
        start_allowance: seconds that the first round of a segment may take longer, for start and data reading.
        on_limit: ``fail`` or ``return_best`` when a limit, a standstill or the verdict that the target is out of reach
            comes before the target.
        output_dir: directory on the server for ``model.keras`` and ``saved_model``, or ``model.npz`` without a Keras
            model; default is the run's own. (templated)
        mlflow: where the run is logged to in MLflow, `MLflow`; what goes wrong there never disturbs the run.
        conn_id: connection of type ``mlscale_federated``. (templated)
        deferrable: follow the run in the triggerer instead of holding a worker's slot.
        poll_s: seconds between two looks at the run.

    Returns:
        A summary, also as one XCom per key: ``run_id``, ``metric``, ``target``, ``reached``, ``accuracy`` (the
        metric of the returned model), ``rounds``, ``stopped_early``, ``stopped_reason``, ``saved_model``,
        ``keras_model``, ``rounds_table``, ``sites_table`` (speed, reliability, cost) and more. ``run_id`` is
        there from the start.

    Raises:
        InvalidInputError: an argument is wrong; names it, its value and the fix.
        UnreachableError: the federation does not answer.
        TargetNotReachedError: a limit came first and ``on_limit`` is ``fail``.
        FederatedRunFailedError: the run failed or was aborted.
    """

    template_fields: Sequence[str] = (
        "model",
        "client_data",
        "evaluation_data",
        "client_script",
        "client_script_args",
        "initial_weights",
        "data_args",
        "sites",
        "deadline",
        "output_dir",
        "conn_id",
    )

    def __init__(
        self,
        *,
        target: Quality,
        model: str | None = None,
        client_data: str | None = None,
        evaluation_data: str | None = None,
        validation_split: float = 0.2,
        client_script: str | None = None,
        client_script_args: str | Sequence[str] = (),
        client_script_format: str = "numpy",
        initial_weights: str | None = None,
        data_args: Mapping[str, Any] | None = None,
        sites: Sequence[str] | None = None,
        extra_modules: Sequence[str] = (),
        deadline: timedelta | datetime | str | None = None,
        max_rounds: int = 50,
        min_nodes: int = 2,
        cohort: int | None = None,
        over_selection: float = 1.25,
        local_epochs: int | None = None,
        max_local_epochs: int = 10,
        policy: str = "adaptive",
        objective: str = "cost",
        budget: Budget = NO_BUDGET,
        late_answers: bool = True,
        stall_rounds: int | None = 40,
        on_infeasible: str = "stop",
        batch_size: int = 32,
        proximal_mu: float = 0.0,
        aggregation: Aggregation = combination.MEAN,
        server_optimiser: ServerOptimiser | None = None,
        privacy: Privacy | None = None,
        encrypted: bool = False,
        round_timeout: float | timedelta = 60.0,
        start_allowance: float | timedelta = 120.0,
        on_limit: str = "fail",
        output_dir: str | None = None,
        mlflow: MLflow | None = None,
        conn_id: str = FederatedHook.default_conn_name,
        deferrable: bool = False,
        poll_s: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"multiple_outputs": True, **kwargs})
        self.model = model
        self.client_data = client_data
        self.evaluation_data = evaluation_data
        self.client_script = client_script
        self.client_script_args = client_script_args
        self.initial_weights = initial_weights
        self.generated_modules: Mapping[str, str] = {}
        self.target = target
        self.data_args = data_args or {}
        self.sites = sites
        self.deadline = deadline
        self.output_dir = output_dir
        self.conn_id = conn_id
        self.on_limit = on_limit
        self.mlflow = mlflow
        self.deferrable = deferrable
        self.poll_s = poll_s
        self._settings = {
            "target": target,
            "validation_split": validation_split,
            "client_script_format": client_script_format,
            "extra_modules": federated_arguments.names("extra_modules", extra_modules),
            "max_rounds": max_rounds,
            "min_nodes": min_nodes,
            "cohort": cohort,
            "over_selection": over_selection,
            "local_epochs": local_epochs,
            "max_local_epochs": max_local_epochs,
            "policy": policy,
            "objective": objective,
            "budget": budget,
            "late_answers": late_answers,
            "stall_rounds": stall_rounds,
            "on_infeasible": on_infeasible,
            "batch_size": batch_size,
            "proximal_mu": proximal_mu,
            "aggregation": aggregation,
            "server_optimiser": server_optimiser
            or adaptive.advised(policy, private=privacy is not None, averaged=evaluation_data is not None),
            "privacy": privacy,
            "encrypted": encrypted,
            "round_timeout_s": federated_arguments.seconds(round_timeout),
            "start_allowance_s": federated_arguments.seconds(start_allowance),
        }
        self._runs: client.RunClient | None = None
        self._run_id: str | None = None
        self._state: TaskStateJournal | None = None
        self._check()

    def execute(self, context: Any) -> dict[str, Any]:
        """Check everything, submit or re-attach, follow to the end; returns the summary."""
        with translated():
            told = self._attach(context, self._name(context), begin=True)
            if self.deferrable:
                self._defer(told)
            with self._onlookers(context) as onlookers:
                return self._follow(context, onlookers, told)

    def execute_complete(self, context: Any, event: dict[str, Any], run_id: str | None = None) -> dict[str, Any]:
        """Go on after the trigger: finish, or submit the run's next segment and wait again."""
        with translated():
            run_id = run_id or self._name(context)  # `dag.test()` forgets what a task was deferred with
            self._attach(context, run_id, begin=False)
            runs, _ = self._attached()
            if event["progress"] == watch.Progress.ENDED:
                with self._onlookers(context) as onlookers:
                    return self._finish(context, onlookers, runs.follower(run_id, told=event.get("told")))
            if event["progress"] != watch.Progress.LOST:
                raise errors.TransientError(event["reason"])
            self._publish(context, run_id)
            runs.next_segment(run_id, event["reason"], after=event.get("segment"))
        return self._defer(event.get("told", 0))

    def on_kill(self) -> None:
        """End the run: the task was killed, and nobody would follow it. Makes no call into Airflow."""
        if self._runs is not None and self._run_id is not None:
            try:
                self._runs.stop(self._run_id)
            except errors.MlscaleError as exc:
                self.log.warning("cannot abort run %s: %s", self._run_id, exc)

    def _attach(self, context: Any, run_id: str, *, begin: bool) -> int:
        """Returns how many records the run's journal had before; others have told of them."""
        runs = FederatedHook(self.conn_id).runs
        told = len(runs.directory(run_id).records())
        if begin:
            runs.begin(self._run(context, runs, run_id))
            context["ti"].xcom_push(key="run_id", value=run_id)
        self._runs, self._run_id = runs, run_id
        return told

    def _onlookers(self, context: Any) -> Onlookers:
        log = self.mlflow.log() if self.mlflow else None
        return Onlookers(self.log.info, federated_telemetry.of(context["ti"]), log)

    def _follow(self, context: Any, onlookers: Onlookers, told: int) -> dict[str, Any]:
        runs, run_id = self._attached()
        follower = runs.follower(run_id, told=told)
        while True:
            look = follower.look()
            if look.progress == watch.Progress.ENDED:
                return self._finish(context, onlookers, follower)
            onlookers(follower.news())
            self._publish(context, run_id)
            if look.progress == watch.Progress.LOST:
                runs.next_segment(run_id, look.reason, after=follower.seen.segment)
                follower = runs.follower(run_id, told=follower.records_seen)
            time.sleep(self.poll_s)

    def _finish(self, context: Any, onlookers: Onlookers, follower: following.Follower) -> dict[str, Any]:
        run_id = follower.directory.path.name
        result = self._attached()[0].result(run_id)
        onlookers.finished(follower.news())
        self._publish(context, run_id, now=True)
        self.log.info(
            "%srun %s %s after %d rounds at %s %s: %s",
            "simulated " if result["simulated"] else "", run_id, result["status"], result["rounds"], result["metric"],
            result["accuracy"], result["stopped_reason"],
        )  # fmt: skip
        if result["status"] in (Status.FAILED, Status.ABORTED):
            raise errors.FederatedRunFailedError(f"run {run_id} {result['status']}: {result['stopped_reason']}")
        wanted = result["reached"] or result["status"] == Status.STOPPED  # somebody asked for what there is
        if not wanted and self.on_limit == "fail":
            raise errors.TargetNotReachedError(
                f"run {run_id} ended at {result['metric']} {result['accuracy']:.4f}, target {result['target']:g}: "
                f"{result['stopped_reason']}; its best model is {result['keras_model'] or result['weights_file']}"
            )
        return result

    def _publish(self, context: Any, run_id: str, *, now: bool = False) -> None:
        runs, _ = self._attached()
        self._state = self._state or TaskStateJournal(context.get("task_state_store"))
        told = summary.for_task_state(runs.result(run_id))
        self._state.publish(runs.directory(run_id).records(), told, now=now)

    def _defer(self, told: int) -> NoReturn:
        _, run_id = self._attached()
        mlflow = self.mlflow.to_json() if self.mlflow else None
        self.defer(
            trigger=FederatedRunTrigger(
                run_id=run_id, conn_id=self.conn_id, poll_s=self.poll_s, told=told, mlflow=mlflow
            ),
            method_name="execute_complete",
            kwargs={"run_id": run_id},
        )

    def _attached(self) -> tuple[client.RunClient, str]:
        if self._runs is None or self._run_id is None:
            raise RuntimeError("the operator is not attached to a run")
        return self._runs, self._run_id

    def _run(self, context: Any, runs: client.RunClient, run_id: str) -> RunSettings:
        """The run's settings; a known run keeps its deadline."""
        known = runs.directory(run_id).settings()
        deadline_at = known.deadline_at if known else self._deadline_at(context)
        return RunSettings(
            run_id=run_id,
            **{name: getattr(self, name) for name in FUNCTIONS},
            client_script=self.client_script,
            client_script_args=federated_arguments.words(self.client_script_args),
            generated_modules=self.generated_modules,
            data_args=self.arguments(),
            sites=federated_arguments.sites(self.sites),
            deadline_at=deadline_at,
            output_dir=self.output_dir,
            **self._settings,
        )

    def arguments(self) -> dict[str, Any]:
        """What the functions are called with."""
        return dict(self.data_args)

    def _deadline_at(self, context: Any) -> float | None:
        if self.deadline is None:
            return None
        now = datetime.now(UTC)
        at = deadlines.resolve(self.deadline, started_at=getattr(context["ti"], "start_date", None) or now)
        deadlines.check_ahead(self.deadline, at, now=now)
        return at.timestamp()

    def _name(self, context: Any) -> str:
        """The run's id: the same for every try of this task instance; clearing it moves its last try."""
        ti = context["ti"]
        parts = [ti.dag_id, ti.run_id, ti.task_id, getattr(ti, "map_index", -1), getattr(ti, "max_tries", 0)]
        digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).hexdigest()[:12]
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{ti.dag_id[:40]}-{ti.task_id[:40]}").strip("-_")
        return f"{readable or 'run'}.{digest}"

    def _check(self) -> None:
        """Refuse at parse time what cannot become right at run time."""
        if self.on_limit not in ON_LIMIT:
            raise errors.InvalidInputError("on_limit", self.on_limit, f"use one of {', '.join(ON_LIMIT)}")
        if self.mlflow is not None and not isinstance(self.mlflow, MLflow):
            raise errors.InvalidInputError("mlflow", self.mlflow, "use MLflow(tracking_uri=...) or MLflow(conn_id=...)")
        federated_arguments.check(self, self._settings)
