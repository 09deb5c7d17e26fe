"""Spark through `spark-submit`, by a deadline."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any

from airflow.providers.apache.spark.hooks import spark_submit
from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

from airflow_mlscale import errors
from airflow_mlscale.spark import access, cluster_run, follow, launch
from airflow_mlscale.spark import run as runs
from airflow_mlscale.spark.adapters import allocator as allocators
from airflow_mlscale.spark.adapters import cluster, executor_count, install, master, profile_store, yarn
from airflow_mlscale.spark.model import Promise
from airflow_mlscale.spark.ports import RemoteState
from airflow_mlscale.spark.settings import DeadlineSettings
from airflow_mlscale.spark.ticket import Ticket

log = logging.getLogger(__name__)

KILL_GRACE_S = 3.0
"""Airflow kills a task five seconds after it asked it to end."""


class DeadlineSparkSubmitHook(SparkSubmitHook):
    """`SparkSubmitHook` whose applications can be brought to a deadline and leave no process behind.

    Takes a connection of type ``mlscale_spark`` or a plain ``spark`` one, and all arguments of
    `SparkSubmitHook`.
    """

    conn_name_attr = "conn_id"
    default_conn_name = "mlscale_spark"
    conn_type = "mlscale_spark"
    hook_name = "ML at scale: Spark"

    def __init__(self, conf: dict[str, Any] | None = None, conn_id: str = default_conn_name, **kwargs: Any) -> None:
        """Resolve the connection.

        Raises:
            InvalidInputError: there is no such connection (`SparkSubmitHook` would fall back to YARN).
        """
        # Copied: ours are added for each submission.
        arguments = [str(argument) for argument in kwargs.pop("application_args", None) or ()]
        with _kubernetes_known():
            super().__init__(conf=dict(conf or {}), conn_id=conn_id, application_args=arguments, **kwargs)
        self._install: install.Install | None = None
        self._started: Callable[[int], None] | None = None
        self._killed = False
        self._remote: tuple[Ticket, access.Access] | None = None
        """What was submitted to the cluster, or taken up there again."""
        if self._is_kubernetes and self.in_cluster:  # the driver pod is followed, by us: spark-submit need not wait
            self._track_driver_via_k8s_api = True

    @property
    def in_cluster(self) -> bool:
        """Whether the driver is to run in the cluster."""
        return bool(self._connection["deploy_mode"] == "cluster")

    @property
    def master(self) -> str:
        """Address of the cluster's master."""
        return str(self._connection["master"])

    @property
    def master_page(self) -> str | None:
        """Address of the cluster's web page, whether or not it answers; None for a cluster without one."""
        found = self._pages() or self._rm_url()
        return found.split(",")[0] if found else None

    @property
    def killed(self) -> bool:
        """Whether `on_kill` was called."""
        return self._killed

    def test_connection(self) -> tuple[bool, str]:
        """Ask the cluster: a standalone master in its own protocol and its web page, others their REST API."""
        try:
            return cluster_run.greet(
                self.master,
                access_of(self.get_connection(self._conn_id)),
                pages=self._pages(),
                namespace=self._connection["namespace"],
                rm_url=self._rm_url(),
            )
        except errors.MlscaleError as exc:
            return False, str(exc)

    def prepare(
        self,
        application: str,
        *,
        promise: Promise,
        settings: DeadlineSettings,
        profile_store: str | None = None,
        profile_key: str | None = None,
        allocator: str = "auto",
    ) -> runs.DeadlineRun:
        """Check everything that can be checked before a submission; nothing is started.

        Raises:
            InvalidInputError: a missing file, engine or Java, or an unsupported cluster or deploy mode.
            UnreachableError: the master or a named host agent does not answer.
            DeadlineInfeasibleError: the profile says so, and ``on_infeasible`` is ``fail``.
        """
        runs.check_application(application)
        if self._connection["deploy_mode"] not in (None, "client"):
            raise errors.InvalidInputError("deploy_mode", self._connection["deploy_mode"], "use client or cluster")
        if allocator == allocators.EXECUTORS:
            executor_count.check(application=application)
        return runs.DeadlineRun(self._request(promise, settings, profile_store, profile_key, allocator))

    def prepare_in_cluster(
        self,
        application: str,
        *,
        promise: Promise,
        settings: DeadlineSettings,
        profile_store: str | None = None,
        profile_key: str | None = None,
        allocator: str = "auto",
    ) -> cluster_run.ClusterRun:
        """As `prepare`, for a driver that will run in the cluster."""
        runs.check_application(application)
        executor_count.check(in_cluster=allocator == allocators.EXECUTORS)
        return cluster_run.ClusterRun(
            self._request(promise, settings, profile_store, profile_key, allocator),
            access_of(self.get_connection(self._conn_id)),
            application,
            namespace=self._connection["namespace"],
            rm_url=self._rm_url(),
        )

    def submit_to_cluster(
        self, application: str, run: cluster_run.ClusterRun, *, announce: Callable[[Ticket], None]
    ) -> Ticket:
        """Submit and return as soon as the cluster has taken the application.

        Args:
            application: path of the program.
            run: from `prepare_in_cluster`.
            announce: see `cluster_run.ClusterRun.submit`.

        Raises:
            SparkJobFailedError: spark-submit failed.
        """

        def start(properties: Mapping[str, str], env: Mapping[str, str]) -> str | None:
            self._conf, self._install = dict(properties), run.install
            self._env_vars: dict[str, Any] = {}  # in the properties or the environment by now
            self._submit(application, env=dict(env))
            found: str | None = self._driver_id or self._yarn_application_id
            return found

        def known(ticket: Ticket) -> None:
            self._remote = (ticket, run.access)
            announce(ticket)

        return run.submit(start, announce=known)

    def take_up(self, ticket: Ticket, *, resume: bool) -> Ticket | None:
        """What was submitted before and is still of use: it runs, or has succeeded; None when there is no such thing.

        Args:
            ticket: as an earlier try announced it.
            resume: False to end it if it still runs: a new life of the task wants a run of its own.

        Raises:
            UnreachableError: the cluster does not answer; submitting now could make two of one.
        """
        known = access_of(self.get_connection(self._conn_id))
        with closing(cluster_run.remote(ticket, known)) as application:
            found = ticket.application_id or application.find()
            if found is None:
                return None
            ticket = ticket.known_as(found)
            status = application.status()
            if not resume and not status.state.over:
                application.kill()
            if not resume or (status.state.over and status.state is not RemoteState.SUCCEEDED):
                return None
            self.log.info("an earlier try has submitted %s: %s", found, status.reason)
        self._remote = (ticket, known)
        return ticket

    def follow(
        self, ticket: Ticket, *, end_at: float | None, publish: Callable[[], None] | None = None
    ) -> follow.Follower:
        """Who controls a submission from here on; see `follower`."""
        return follower(ticket, self.get_connection(self._conn_id), end_at=end_at, publish=publish)

    def _request(
        self,
        promise: Promise,
        settings: DeadlineSettings,
        profile_store: str | None,
        profile_key: str | None,
        allocator: str,
    ) -> runs.Request:
        known = access_of(self.get_connection(self._conn_id))
        return runs.Request(
            name=self._name,
            master_url=self.master,
            promise=promise,
            settings=settings,
            properties=self._properties(),
            env={name: str(value) for name, value in (self._env_vars or {}).items()},
            total_cores=self._total_cores(),
            web_url=self._web_url(),
            profile_folder=profile_store,
            profile_key=profile_key,
            allocator=allocator,
            agent=known.agent,
            agent_token=known.agent_token,
            agents=known.agents,
        )

    def submit_by_deadline(
        self, application: str, run: runs.DeadlineRun, *, publish: Callable[[], None] | None = None
    ) -> dict[str, Any]:
        """Submit and stay with the application until its end; returns the run's summary.

        Raises:
            SparkJobFailedError: the application, or spark-submit itself, failed.
            AdmissionRefusedError: the host cannot guarantee ``min_cores``.
        """

        def start(properties: Mapping[str, str], env: Mapping[str, str], started: Callable[[int], None]) -> None:
            self._conf = dict(properties)
            self._env_vars = dict(env)
            self._install = run.install
            self._started = started
            self._submit(application)

        return run.submit(start, publish=publish)

    def _submit(self, application: str, **arguments: Any) -> None:
        try:
            self.submit(application, stdin=subprocess.PIPE, start_new_session=True, **arguments)
        except AirflowException as exc:
            raise errors.SparkJobFailedError(str(exc)) from exc
        finally:
            if self._submit_sp and self._submit_sp.stdin:
                self._submit_sp.stdin.close()

    def on_kill(self) -> None:
        """End spark-submit with the driver's JVM and Python, wherever it runs, and nothing else of this process."""
        self._killed = True
        if self._submit_sp is not None and self._submit_sp.poll() is None:
            # The guard asks all that descends from it to end, and makes them after the grace time.
            self._submit_sp.terminate()
        if self._remote is not None:
            ticket, known = self._remote
            ticket = ticket if self._driver_id is None else ticket.known_as(self._driver_id)
            try:
                with closing(cluster_run.remote(ticket, known)) as application:
                    application.kill()
            except errors.MlscaleError as exc:
                name = ticket.application_id or ticket.run
                self.log.error("%s was not ended and may run on: end %s by hand: %s", ticket.name, name, exc)
        super()._run_post_submit_commands()

    def finish(self) -> None:
        """Run the commands for after the application, once."""
        super()._run_post_submit_commands()

    def _run_post_submit_commands(self) -> None:
        if not self.in_cluster:  # there spark-submit ends when the application begins; see `finish`
            super()._run_post_submit_commands()

    def _resolve_connection(self) -> dict[str, Any]:
        try:
            self.get_connection(self._conn_id)
        except AirflowNotFoundException as exc:
            raise errors.InvalidInputError(
                "conn_id", self._conn_id, "there is no such connection; add one of type mlscale_spark or spark"
            ) from exc
        resolved: dict[str, Any] = super()._resolve_connection()
        # The base class takes an unknown connection type for the scheme of the master's address.
        address = str(resolved["master"]).removeprefix(f"{self.conn_type}://")
        named = "://" in address or address.startswith(("local", "yarn"))
        resolved["master"] = address if named else f"spark://{address}"
        resolved["deploy_mode"] = resolved["deploy_mode"] or None  # an empty field of the form
        return resolved

    def _get_spark_binary_path(self) -> list[str]:
        if self._install is None:
            return list(super()._get_spark_binary_path())
        guard = [sys.executable, "-m", "airflow_mlscale.runtime.guard", "--grace", str(KILL_GRACE_S), "--"]
        return [*guard, self._install.command(self._connection["spark_binary"])]

    def _process_spark_submit_log(self, itr: Any) -> None:
        if self._started is not None and self._submit_sp is not None:
            self._started(self._submit_sp.pid)
        super()._process_spark_submit_log(itr)

    def _properties(self) -> dict[str, str]:
        given = {str(name): str(value) for name, value in self._conf.items()}
        if self._executor_cores:
            given.setdefault("spark.executor.cores", str(self._executor_cores))
        if self._num_executors and self.in_cluster:
            given.setdefault("spark.executor.instances", str(self._num_executors))
        return given

    def _total_cores(self) -> int | None:
        name = "spark.cores.max"
        given = {name: str(self._total_executor_cores or self._conf.get(name) or "")}
        return launch.whole(given, name, 0) or None

    def _pages(self) -> str | None:
        if not self.master.startswith("spark://"):
            return self._web_url()
        return self._web_url() or cluster.web_url(self.master) or master.pages(self.master)

    def _rm_url(self) -> str | None:
        if self.master != "yarn":
            return None
        given = self.get_connection(self._conn_id).extra_dejson.get("yarn_resourcemanager_webapp_address")
        return yarn.address(given) if given else None

    def _web_url(self) -> str | None:
        return self.get_connection(self._conn_id).extra_dejson.get("master_web_url") or None


def access_of(connection: Any) -> access.Access:
    """How the cluster and the host agents are reached, by a connection; errors as in `access.from_extra`."""
    return access.from_extra(connection.extra_dejson)


def follower(
    ticket: Ticket,
    connection: Any,
    *,
    end_at: float | None = None,
    publish: Callable[[], None] | None = None,
) -> follow.Follower:
    """Who controls a submission from here on; blocks while it reads the profile.

    Args:
        ticket: the submission.
        connection: of the cluster.
        end_at: see `follow.Follower`, as is ``publish``.
        publish: for whoever shows the journal.
    """
    known = access_of(connection)
    profile = profile_store.ProfileFiles(ticket.profile_folder).load(ticket.profile_key)
    if ticket.warm and profile is None:
        log.warning(
            "the profile %s is not to be had on this host: %s gets its full share; "
            "keep profiles where workers and triggerers reach them (profile_store)",
            ticket.profile_key,
            ticket.name,
        )
    return follow.Follower(
        ticket,
        cluster_run.remote(ticket, known),
        lambda: cluster_run.actuator(ticket, known),
        profile,
        end_at=end_at,
        publish=publish,
    )


_KNOWING = threading.RLock()


@contextmanager
def _kubernetes_known() -> Iterator[None]:
    """The base class refuses Kubernetes without the provider cncf.kubernetes, with which it would follow the driver.

    That is done by us, with the official client alone: any other value than None passes its check. It is put
    back, for plain `SparkSubmitHook`s need the real one.
    """
    with _KNOWING:
        client = getattr(spark_submit, "kube_client", None)
        spark_submit.kube_client = client or SparkSubmitHook
        try:
            yield
        finally:
            spark_submit.kube_client = client
