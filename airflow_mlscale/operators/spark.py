"""Spark applications that finish by a deadline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.common.compat.openlineage.utils import spark as lineage

from airflow_mlscale.cpu import detect
from airflow_mlscale.hooks.outcome import translated
from airflow_mlscale.hooks.spark import DeadlineSparkSubmitHook
from airflow_mlscale.operators.task_state import TaskStateJournal
from airflow_mlscale.runtime import deadlines
from airflow_mlscale.spark import settings
from airflow_mlscale.spark.model import Mode, Promise

PROMISE_KEY = "mlscale_deadline"


class DeadlineSparkSubmitOperator(SparkSubmitOperator):
    """`SparkSubmitOperator` whose application is done by a deadline (client mode on standalone, or local).

    Takes all arguments of `SparkSubmitOperator`, and these:

    Args:
        deadline: a ``timedelta`` or ``pendulum.duration`` from the start of the task, a ``datetime`` with a
            time zone, or a template that renders to seconds, an ISO 8601 duration or an ISO 8601 date and
            time. Fixed at the first try; retries share it. (templated)
        min_cores: cores that are never taken away; refused when the host cannot guarantee them.
        max_cores: most cores to ask for; default is all that the application can use.
        mode: ``work_conserving`` soaks up idle cycles and takes a guarantee only as far as the deadline needs
            one; ``reserve`` also caps the application, which stretches to its deadline.
        on_infeasible: ``fail`` or ``best_effort`` when the profile says that the deadline cannot be met.
        profile_store: folder of learned profiles, any fsspec address; default ``profiles`` in
            ``$MLSCALE_HOME``. (templated)
        profile_key: name of the profile; default is the name of the application. (templated)
        tuning: settings of the controller by name, such as ``{"aim": 0.9}``; see `DeadlineSettings`.
        allocator: which CPU-share adapter: ``auto``, ``agent``, ``cgroup-v1``, ``cgroup-v2``, ``observe-only``.
        name: of the application; default is ``<dag id>.<task id>``. (templated)

    Returns:
        A summary (XCom): ``deadline_s``, ``finish_s``, ``met``, ``granted_core_s``, ``used_core_s``, ``mode``,
        ``profile`` (``cold`` or ``warm``), ``series`` for a chart, and more.

    Raises:
        InvalidInputError: an argument is wrong; names it, its value and the fix.
    """

    template_fields: Sequence[str] = (
        *SparkSubmitOperator.template_fields,
        "deadline",
        "profile_store",
        "profile_key",
    )

    def __init__(
        self,
        *,
        deadline: timedelta | datetime | str,
        min_cores: float | None = None,
        max_cores: float | None = None,
        mode: str = Mode.WORK_CONSERVING.value,
        on_infeasible: str = "fail",
        profile_store: str | None = None,
        profile_key: str | None = None,
        tuning: Mapping[str, float] | None = None,
        allocator: str = "auto",
        conn_id: str = DeadlineSparkSubmitHook.default_conn_name,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(conn_id=conn_id, name=name or "", **kwargs)
        if not hasattr(deadline, "iter_references"):  # the result of another task is known later
            deadlines.check(deadline)
        settings.one_of("allocator", allocator, detect.NAMES)
        self.deadline = deadline
        self.profile_store = profile_store
        self.profile_key = profile_key
        self.allocator = allocator
        self.settings = settings.tuned(
            tuning or {}, mode=mode, min_cores=min_cores, max_cores=max_cores, on_infeasible=on_infeasible
        )

    def execute(self, context: Any) -> dict[str, Any]:
        """Check everything, submit, control until the end; returns the run's summary."""
        with translated():
            self.conf = self._with_lineage(context)
            self._hook = hook = self._get_hook()
            run = hook.prepare(
                self.application,
                promise=self._promise(context),
                settings=self.settings,
                profile_store=self.profile_store,
                profile_key=self.profile_key,
                allocator=self.allocator,
            )
            state = TaskStateJournal(context.get("task_state_store"))
            try:
                summary = hook.submit_by_deadline(
                    self.application, run, publish=lambda: state.publish(run.journal.records(), run.summary())
                )
            finally:
                if not hook.killed:  # Airflow may be gone by then, and no longer listen
                    state.publish(run.journal.records(), run.summary(), now=True)
            self._tell(summary)
            return summary

    def on_kill(self) -> None:
        """End the driver and everything it started; a task killed before it submitted has nothing to end."""
        if self._hook is not None:
            self._hook.on_kill()

    def _with_lineage(self, context: Any) -> dict[str, Any]:
        """The properties, with OpenLineage's where `SparkSubmitOperator` would add them."""
        conf = self.conf or {}
        if self._openlineage_inject_parent_job_info:
            conf = lineage.inject_parent_job_information_into_spark_properties(conf, context)
        if self._openlineage_inject_transport_info:
            conf = lineage.inject_transport_information_into_spark_properties(conf, context)
        return dict(conf)

    def _tell(self, summary: dict[str, Any]) -> None:
        message = "finished %.0f s after the start, deadline at %.0f s; %.0f core-s used, %.0f guaranteed"
        values = summary["finish_s"], summary["deadline_s"], summary["used_core_s"], summary["granted_core_s"]
        if summary["met"]:
            self.log.info(message, *values)
        else:
            self.log.warning("DEADLINE MISSED: " + message, *values)

    def _promise(self, context: Any) -> Promise:
        """The deadline as absolute times, fixed at the first try and shared by its retries."""
        ti, store = context["ti"], context.get("task_state_store")
        # Clearing a task begins a new life of it, with a deadline of its own; that moves its last try.
        life = getattr(ti, "max_tries", 0)
        known = store.get(PROMISE_KEY) if store is not None else None
        if known and known["life"] == life:
            return Promise(started_at=known["started_at"], deadline_at=known["deadline_at"])
        started = ti.start_date or datetime.now(UTC)
        deadline_at = deadlines.resolve(self.deadline, started_at=started)
        deadlines.check_ahead(self.deadline, deadline_at, now=datetime.now(UTC))
        promise = Promise(started_at=started.timestamp(), deadline_at=deadline_at.timestamp())
        if store is not None:
            store.set(PROMISE_KEY, {"life": life, "started_at": promise.started_at, "deadline_at": promise.deadline_at})
        return promise

    def _get_hook(self) -> DeadlineSparkSubmitHook:
        return DeadlineSparkSubmitHook(
            conf=self.conf,
            conn_id=self._conn_id,
            files=self.files,
            py_files=self.py_files,
            archives=self._archives,
            driver_class_path=self.driver_class_path,
            jars=self.jars,
            java_class=self._java_class,
            packages=self.packages,
            exclude_packages=self.exclude_packages,
            repositories=self._repositories,
            total_executor_cores=self._total_executor_cores,
            executor_cores=self._executor_cores,
            executor_memory=self._executor_memory,
            driver_memory=self._driver_memory,
            keytab=self.keytab,
            principal=self.principal,
            proxy_user=self.proxy_user,
            name=self.name or f"{self.dag_id}.{self.task_id}",
            num_executors=self._num_executors,
            status_poll_interval=self._status_poll_interval,
            application_args=self.application_args,
            env_vars=self.env_vars,
            verbose=self._verbose,
            spark_binary=self._spark_binary,
            properties_file=self.properties_file,
            yarn_queue=self._yarn_queue,
            deploy_mode=self._deploy_mode,
            use_krb5ccache=self._use_krb5ccache,
            post_submit_commands=self.post_submit_commands,
        )
