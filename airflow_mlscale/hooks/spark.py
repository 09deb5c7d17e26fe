"""Spark through `spark-submit`, by a deadline."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
from airflow.sdk.exceptions import AirflowException, AirflowNotFoundException

from airflow_mlscale import errors
from airflow_mlscale.spark import run as runs
from airflow_mlscale.spark.adapters import cluster, install, master
from airflow_mlscale.spark.model import Promise
from airflow_mlscale.spark.settings import DeadlineSettings

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
        super().__init__(conf=dict(conf or {}), conn_id=conn_id, application_args=arguments, **kwargs)
        self._install: install.Install | None = None
        self._started: Callable[[int], None] | None = None
        self._killed = False

    @property
    def master(self) -> str:
        """Address of the cluster's master."""
        return str(self._connection["master"])

    @property
    def master_page(self) -> str | None:
        """Address of the master's web page, whether or not it answers; None for a master without one."""
        if not self.master.startswith("spark://"):
            return self._web_url()
        return self._web_url() or cluster.web_url(self.master) or f"http://{master.addresses(self.master)[0][0]}:8080"

    @property
    def killed(self) -> bool:
        """Whether `on_kill` was called."""
        return self._killed

    def test_connection(self) -> tuple[bool, str]:
        """Ask the master, in its own protocol, and its web page."""
        try:
            if self.master.startswith("local"):
                return True, f"{self.master} runs in the driver; there is no master to ask"
            master.ping(self.master)
            try:
                state = master.state(str(self.master_page))
            except errors.UnreachableError as exc:
                return True, f"The Spark master at {self.master} answers. {exc}"
            workers = f"{len(state.workers)} worker(s) with {state.cores} cores"
            return bool(state.workers), f"The Spark master at {self.master} is {state.status} and has {workers}"
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
            raise errors.InvalidInputError(
                "deploy_mode", self._connection["deploy_mode"], "use client: the controller runs beside the driver"
            )
        extra = self.get_connection(self._conn_id).extra_dejson
        return runs.DeadlineRun(
            runs.Request(
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
                agent=extra.get("agent") or None,
                agent_token=extra.get("agent_token") or None,
            )
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
            try:
                self.submit(application, stdin=subprocess.PIPE, start_new_session=True)
            except AirflowException as exc:
                raise errors.SparkJobFailedError(str(exc)) from exc
            finally:
                if self._submit_sp and self._submit_sp.stdin:
                    self._submit_sp.stdin.close()

        return run.submit(start, publish=publish)

    def on_kill(self) -> None:
        """End spark-submit with the driver's JVM and Python, and nothing else of this process."""
        self._killed = True
        if self._submit_sp is not None and self._submit_sp.poll() is None:
            # The guard asks all that descends from it to end, and makes them after the grace time.
            self._submit_sp.terminate()
        self._run_post_submit_commands()

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
        return given

    def _total_cores(self) -> int | None:
        given = self._total_executor_cores or self._conf.get("spark.cores.max")
        return int(given) if given else None

    def _web_url(self) -> str | None:
        return self.get_connection(self._conn_id).extra_dejson.get("master_web_url") or None
