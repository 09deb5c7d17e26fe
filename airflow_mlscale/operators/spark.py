"""Spark applications that finish by a deadline."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.common.compat.openlineage.utils import spark as lineage
from airflow.providers.common.compat.sdk import conf
from airflow.sdk import BaseOperatorLink, RetryPolicy

from airflow_mlscale import errors
from airflow_mlscale.hooks import callbacks
from airflow_mlscale.hooks.outcome import translated
from airflow_mlscale.hooks.spark import DeadlineSparkSubmitHook
from airflow_mlscale.links.spark import SparkMasterLink, SparkUiLink
from airflow_mlscale.operators import dag_deadline, in_cluster, onlookers, promises
from airflow_mlscale.operators import lineage as our_lineage
from airflow_mlscale.operators.promises import PROMISE_KEY
from airflow_mlscale.operators.retry import DeadlineRetryPolicy
from airflow_mlscale.operators.task_state import TaskStateJournal
from airflow_mlscale.runtime import deadlines, journal
from airflow_mlscale.spark import cluster_run, settings
from airflow_mlscale.spark.adapters import allocator as allocators
from airflow_mlscale.spark.model import Mode, Promise
from airflow_mlscale.spark.ticket import Ticket
from airflow_mlscale.triggers.spark import DeadlineSparkTrigger, event

__all__ = ["PROMISE_KEY", "DeadlineRetryPolicy", "DeadlineSparkSubmitOperator"]


class DeadlineSparkSubmitOperator(SparkSubmitOperator):
    """`SparkSubmitOperator` whose application is done by a deadline.

    In client mode (standalone clusters, or local) the task controls it; in cluster mode (``deploy_mode`` or the
    connection; Kubernetes, YARN, or JVM applications on standalone) a trigger does, or the task.

    Takes all arguments of `SparkSubmitOperator`, and these:

    Args:
        deadline: a ``timedelta`` or ``pendulum.duration`` from the start of the task, a ``datetime`` with a
            time zone, a template that renders to seconds, an ISO 8601 duration or an ISO 8601 date and
            time, or ``"dag"`` for the deadline of the DAG run (`DeadlineAlert`). Fixed at the first try;
            retries share it. (templated)
        min_cores: cores that are never taken away; refused when the host cannot guarantee them.
        max_cores: most cores to ask for; default is all that the application can use.
        mode: ``work_conserving`` soaks up idle cycles and takes a guarantee only as far as the deadline needs
            one; ``reserve`` also caps the application, which stretches to its deadline.
        policy: ``remaining_work``, or ``paper`` (dynaSpark as published).
        on_infeasible: ``fail`` or ``best_effort`` when the profile says that the deadline cannot be met.
        on_outlook_change: a function, a notifier, an import path, an ``AsyncCallback`` or ``SyncCallback``, or
            a list of these: called with the task's context and ``outlook``, ``previous``,
            ``predicted_finish``, ``interval`` and ``deadline`` when the outlook turns to ``on_track``,
            ``at_risk`` or ``will_miss``. While the task is deferred, the triggerer calls those that it can
            import; the others hear of it at the end.
        profile_store: folder of learned profiles, any fsspec address; default ``profiles`` in
            ``$MLSCALE_HOME``. (templated)
        profile_key: name of the profile; default is the name of the application. (templated)
        tuning: settings of the controller by name, such as ``{"aim": 0.9}``; see `DeadlineSettings`.
        allocator: how the share is enforced: ``auto``, ``agent``, ``cgroup-v1``, ``cgroup-v2``,
            ``observe-only``, ``kubernetes`` (pods are resized), or ``executors`` (their number is changed).
        name: of the application; default is ``<dag id>.<task id>``. (templated)
        deferrable: in cluster mode, leave the worker while the application runs; default is Airflow's
            ``[operators] default_deferrable``. A task that comes again takes up what it has submitted.
        retry_policy: default is `DeadlineRetryPolicy`, which gives up when the time left cannot suffice.

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
    operator_extra_links: Collection[BaseOperatorLink] = (SparkUiLink(), SparkMasterLink())
    retry_policy: RetryPolicy | None

    def __init__(
        self,
        *,
        deadline: timedelta | datetime | str,
        min_cores: float | None = None,
        max_cores: float | None = None,
        mode: str = Mode.WORK_CONSERVING.value,
        policy: str = settings.POLICIES[0],
        on_infeasible: str = "fail",
        on_outlook_change: Any = None,
        profile_store: str | None = None,
        profile_key: str | None = None,
        tuning: Mapping[str, float] | None = None,
        allocator: str = "auto",
        deferrable: bool | None = None,
        conn_id: str = DeadlineSparkSubmitHook.default_conn_name,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(conn_id=conn_id, name=name or "", **kwargs)
        self._check_deadline(deadline)
        settings.one_of("allocator", allocator, allocators.NAMES)
        self.deadline = deadline
        self.on_outlook_change = callbacks.checked(on_outlook_change)
        self.profile_store = profile_store
        self.profile_key = profile_key
        self.allocator = allocator
        usual = deferrable is None and conf.getboolean("operators", "default_deferrable", fallback=False)
        self.deferrable = bool(deferrable or usual)
        self.settings = settings.tuned(
            tuning or {},
            mode=mode,
            min_cores=min_cores,
            max_cores=max_cores,
            on_infeasible=on_infeasible,
            policy=policy,
        )
        if not self.has_retry_policy:  # neither the arguments nor the DAG's default_args name one
            self.retry_policy = DeadlineRetryPolicy()
        self.pages: dict[str, str] | None = None
        """Addresses of Spark's pages by link; None before this process has submitted anything."""
        self._promised: Promise | None = None
        self._summary: dict[str, Any] | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """Check everything, submit, control until the end; returns the run's summary."""
        with translated():
            self.conf = self._with_lineage(context)
            self._hook = hook = self._get_hook()
            if hook.in_cluster:
                return self._execute_in_cluster(context, hook)
            run = hook.prepare(
                self.application,
                promise=self._promise(context),
                settings=self.settings,
                profile_store=self.profile_store,
                profile_key=self.profile_key,
                allocator=self.allocator,
            )
            promises.note_full_share(context, run.full_cores)
            state, pages = TaskStateJournal(context.get("task_state_store")), onlookers.Pages(context["ti"])
            self.pages = pages.known
            pages.show(SparkMasterLink(), hook.master_page)

            def publish() -> None:
                pages.show(SparkUiLink(), run.ui_url)
                state.publish(run.journal.records(), run.summary())

            try:
                with onlookers.looking_on(run.journal, context, self.on_outlook_change) as metrics:
                    summary = hook.submit_by_deadline(self.application, run, publish=publish)
            finally:
                self._summary = run.summary()
                if not hook.killed:  # Airflow may be gone by then, and no longer listen
                    state.publish(run.journal.records(), self._summary, now=True)
            metrics.finished(summary)
            self._tell(summary)
            return summary

    def _execute_in_cluster(self, context: Any, hook: DeadlineSparkSubmitHook) -> dict[str, Any]:
        """Submit, or take up what an earlier try has submitted; then leave it to a trigger, or control it here."""
        ticket = in_cluster.taken_up(context, hook) if self.durable else None
        if ticket is None:
            run = hook.prepare_in_cluster(
                self.application,
                promise=self._promise(context),
                settings=self.settings,
                profile_store=self.profile_store,
                profile_key=self.profile_key,
                allocator=self.allocator,
            )
            promises.note_full_share(context, run.full_cores)
            announce = functools.partial(in_cluster.keep, context)
            ticket = hook.submit_to_cluster(self.application, run, announce=announce)
        self._promised = ticket.promise
        pages = onlookers.Pages(context["ti"])
        self.pages = pages.known
        pages.show(SparkMasterLink(), hook.master_page)
        pages.show(SparkUiLink(), cluster_run.page(ticket))
        limit = self.execution_timeout
        end_at = None if limit is None else time.time() + limit.total_seconds()
        if self.deferrable:
            submission = ticket.to_json()
            trigger = DeadlineSparkTrigger(
                conn_id=self._conn_id,
                submission=submission,
                end_at=end_at,
                on_outlook_change=callbacks.travelling(self.on_outlook_change),
            )
            self.defer(trigger=trigger, method_name="execute_complete")
        return self._concluded(context, self._followed(context, hook, ticket, end_at, pages))

    def _followed(
        self, context: Any, hook: DeadlineSparkSubmitHook, ticket: Ticket, end_at: float | None, pages: onlookers.Pages
    ) -> dict[str, Any]:
        """Control the application from here until its end; returns what a trigger would send."""
        state = TaskStateJournal(context.get("task_state_store"))

        def publish() -> None:
            pages.show(SparkUiLink(), follower.ui_url)
            state.publish(follower.journal.records(), follower.tell())

        follower = hook.follow(ticket, end_at=end_at, publish=publish)
        with onlookers.looking_on(follower.journal, context, self.on_outlook_change) as metrics:
            outcome = asyncio.run(follower.run())
        metrics.finished(outcome.summary)
        return event(ticket, outcome)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        """The application has ended: publish, learn, and return the run's summary."""
        with translated():
            onlookers.told_afterwards(event, context, self.on_outlook_change)
            onlookers.metrics(context).finished(event.get("summary", {}))
            self._promised = promises.known(context)
            self._hook = self._get_hook()
            return self._concluded(context, event)

    def _concluded(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(self._hook, DeadlineSparkSubmitHook)  # noqa: S101 (for the type checker)
        self._summary = summary = event.get("summary") or {}
        if summary and not self._hook.killed:
            state = TaskStateJournal(context.get("task_state_store"))
            state.publish(journal.from_rows(event["journal"]), summary, now=True)
        if event["state"] != "error":
            self._hook.finish()
        in_cluster.concluded(context, event)
        self._tell(summary)
        return dict(summary)

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
        if summary["finish_s"] is None:
            self.log.warning(
                "finished while nobody watched, and the cluster does not tell when: met or missed is unknown"
            )
            return
        message = "finished %.0f s after the start, deadline at %.0f s; %.0f core-s used, %.0f guaranteed"
        values = summary["finish_s"], summary["deadline_s"], summary["used_core_s"], summary["granted_core_s"]
        if summary["met"]:
            self.log.info(message, *values)
        else:
            self.log.warning("DEADLINE MISSED: " + message, *values)

    def _check_deadline(self, deadline: Any) -> None:
        """Refuse what can never work while the DAG is parsed.

        Raises:
            InvalidInputError: no deadline, or one that the task's other arguments make impossible.
        """
        if hasattr(deadline, "iter_references"):  # the result of another task is known later
            return
        if deadline == dag_deadline.DAG:
            if self.has_dag():
                dag_deadline.check(self.dag)
            return
        deadlines.check(deadline)
        limit = self.execution_timeout
        if isinstance(deadline, timedelta) and limit is not None and limit < deadline:
            raise errors.InvalidInputError(
                "execution_timeout",
                limit,
                f"ends the task before its deadline of {deadline}, which it may use up; leave it out or make it longer",
            )

    def chance(self, context: Any) -> promises.Chance | None:
        """What another try would have; None before there is a promise."""
        key = self.profile_key or self.name or f"{self.dag_id}.{self.task_id}"
        found = promises.chance(context, settings=self.settings, store=self.profile_store, key=key)
        runs_on = self.durable and in_cluster.submitted(context)
        return None if found is None else dataclasses.replace(found, runs_on=runs_on)

    def get_openlineage_facets_on_start(self) -> Any:
        """The deadline, for OpenLineage."""
        return our_lineage.operator_lineage(our_lineage.deadline_facets(self.deadline, self._promised, self._summary))

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """The deadline and what became of it, for OpenLineage."""
        return self.get_openlineage_facets_on_start()

    def get_openlineage_facets_on_failure(self, task_instance: Any) -> Any:
        """As on completion, as far as it came."""
        return self.get_openlineage_facets_on_start()

    def _promise(self, context: Any) -> Promise:
        """The deadline as absolute times, fixed at the first try and shared by its retries."""
        strict = self.settings.on_infeasible == "fail"
        self._promised = promises.fixed(self.deadline, context, strict=strict)
        return self._promised

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
