"""One application run to its deadline: what is checked before, what goes on beside, what is known after.

The caller submits; this module says with which properties and environment, controls meanwhile, and learns.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from airflow_mlscale import errors
from airflow_mlscale.cpu.adapters import observe_only
from airflow_mlscale.cpu.ports import CpuPort
from airflow_mlscale.runtime import processes
from airflow_mlscale.runtime.journal import Journal
from airflow_mlscale.spark import launch, narration, outlook, summary
from airflow_mlscale.spark import profile as profiles
from airflow_mlscale.spark.adapters import allocator, entry, executor_count, executors, install, profile_store, rest
from airflow_mlscale.spark.beside import Beside
from airflow_mlscale.spark.controller import DeadlineController, Job
from airflow_mlscale.spark.model import Observation, Plan, Profile, Promise
from airflow_mlscale.spark.settings import DeadlineSettings

log = logging.getLogger(__name__)

Finder = executors.LocalExecutors | executors.OneProcess | executors.SpreadExecutors


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    name: str
    """Of the application, for people."""
    master_url: str
    promise: Promise
    settings: DeadlineSettings
    properties: Mapping[str, str] = field(default_factory=dict)
    """The user's Spark properties."""
    env: Mapping[str, str] = field(default_factory=dict)
    """The user's environment for spark-submit and the driver."""
    total_cores: int | None = None
    """Most cores the application takes from the cluster; None for all of them."""
    web_url: str | None = None
    """The master's web page, where it is not found by itself."""
    profile_folder: str | None = None
    profile_key: str | None = None
    allocator: str = "auto"
    """How shares are enforced: one of `allocator.NAMES`."""
    agent: str | None = None
    agent_token: str | None = field(default=None, repr=False)
    agents: Mapping[str, str] | None = None
    """Address of each worker host's agent, where executors run on several hosts."""


class DeadlineRun:
    """Everything around one submission. Creating it checks everything and starts nothing."""

    def __init__(self, request: Request) -> None:
        """Find the parts, ask the master, load the profile, and judge whether the deadline is feasible.

        Raises:
            InvalidInputError: the full pyspark, Java, a usable master or store is missing.
            UnreachableError: the master or a named host agent does not answer.
            DeadlineInfeasibleError: the profile says so, and `on_infeasible` is ``fail``.
        """
        self.request = request
        self.install = install.find()
        self.cpu: CpuPort = allocator.find(
            request.allocator, address=request.agent, token=request.agent_token, agents=request.agents
        )
        self.target = where = launch.target(request.master_url, web_url=request.web_url, host_cores=self.cpu.host_cores)
        if not allocator.reaches(request.allocator, here=where.here, agents=request.agents, application=request.name):
            self.cpu = observe_only.ObserveOnlyPort(host_cores=where.cores or None)
        self.store = profile_store.ProfileFiles(request.profile_folder)
        self.key = request.profile_key or request.name
        self.profile = self.store.load(self.key)
        self.journal = Journal()
        self.run_id = uuid.uuid4().hex[:12]
        if request.allocator == allocator.EXECUTORS:
            self.cpu = self._counted(self.cpu)
        self.controller: DeadlineController | None = None
        self._ended_at: float | None = None
        self._succeeded = False
        judge(self.profile, self.key, promise=request.promise, settings=request.settings, slots=self.slots)

    @property
    def slots(self) -> float:
        """Tasks that can run at once, as far as that is known before the application runs."""
        known = [cores for cores in (self.target.cores, self.request.total_cores) if cores]
        return min([float(cores) for cores in known], default=self.cpu.host_cores)

    def submit(
        self,
        start: Callable[[Mapping[str, str], Mapping[str, str], Callable[[int], None]], None],
        *,
        publish: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        """Run ``start(properties, environment, started)`` under control and return the `summary`.

        Args:
            start: submits, calls ``started`` with the process id of spark-submit, and returns when the
                application has succeeded; whatever it raises passes through.
            publish: called every two seconds in a thread of its own.
        """
        group = group_name(self.request.name, self.run_id)
        # Groups enter the submission by their entry files. In local mode the driver is the executor.
        # Where executors are on several hosts, nothing says that one of their agents is this host's.
        driver_group = None if self.target.local_mode or executors.is_spread(self.cpu) else f"{group}-driver"
        narrator = narration.Narrator(self.request.promise, self.profile, self.look)
        self.journal.listen(narrator)
        try:
            properties, env, finder = self._submission(group, driver_group or group)
            self.controller = self._controller(self._job(group, driver_group), properties, env, finder, publish)
        except BaseException:
            for opened in (group, driver_group):
                if opened:
                    self.cpu.close(opened)
            raise

        def started(pid: int) -> None:
            if isinstance(finder, executors.OneProcess):
                finder.pid = pid

        try:
            with Beside(self.controller):
                start(properties, env, started)
                self._ended_at = time.time()
                self._succeeded = True
        finally:
            narrator.finish()
        self._learn()
        return self.summary()

    @property
    def full_cores(self) -> float:
        """Most cores worth asking for, as far as known before the application runs."""
        return self.request.settings.high(self.slots)

    @property
    def ui_url(self) -> str | None:
        """Address of the driver's page; None until it answers."""
        control = self.controller
        return getattr(control.progress, "url", None) if control and control.latest else None

    def look(self) -> Observation | None:
        """What is known of the application now; None before it is submitted."""
        return self.controller.look() if self.controller else None

    def summary(self) -> dict[str, Any]:
        """What is known of the run so far, as plain values."""
        return summary.tell(
            application=self.request.name,
            promise=self.request.promise,
            settings=self.request.settings,
            warm=self.profile is not None,
            cpu=self.cpu,
            journal=self.journal,
            control=self.controller,
            ended_at=self._ended_at,
        )

    def _submission(self, group: str, driver_group: str) -> tuple[Mapping[str, str], Mapping[str, str], Finder | None]:
        """Properties and environment of spark-submit, and who looks for executors that cannot enter the group."""
        where, request = self.target, self.request
        given, own_env = request.properties, request.env
        if isinstance(self.cpu, executor_count.ExecutorCountPort):
            own_env = {**own_env, **executor_count.launch_env(self.cpu, given, own_env)}
            given = executor_count.launch_properties(given, self.cpu.settings)
        entries = self._entries(group) if where.here else {}  # this host's groups do not reach other hosts
        properties = launch.properties(
            where, run=self.run_id, ui_port=processes.free_port(), entry_env=entries, given=given
        )
        env = launch.environment(where, self.install, entry_env=self._entries(driver_group), given=own_env)
        # Executors enter by themselves, but one may come at a moment when the group is made anew: looked for, too.
        enters = bool(entries) and where.local_mode
        return properties, env, None if enters else self._finder(group, launch.ui_address(where, properties, env))

    def _entries(self, group: str) -> Mapping[str, str]:
        self.cpu.open(group)
        java_home = Path(self.request.env.get("JAVA_HOME") or self.install.java_home)
        return entry.env(self.cpu.entry_files(group), java_home)

    def _job(self, group: str, driver_group: str | None) -> Job:
        request = self.request
        return Job(
            name=request.name,
            group=group,
            driver_group=driver_group,
            promise=request.promise,
            profile=self.profile,
            settings=request.settings,
        )

    def _controller(
        self,
        job: Job,
        properties: Mapping[str, str],
        env: Mapping[str, str],
        finder: Finder | None,
        publish: Callable[[], None] | None,
    ) -> DeadlineController:
        return DeadlineController(
            job=job,
            cpu=self.cpu,
            progress=rest.RestProgress(launch.ui_address(self.target, properties, env), self.run_id),
            slots=self.slots,
            journal=self.journal,
            executors=finder,
            publish=publish,
        )

    def _counted(self, meter: CpuPort) -> CpuPort:
        """Shares of this application as a number of its executors."""
        given = self.request.properties
        executor_count.check(local_mode=self.target.local_mode, given=given)
        cores = launch.whole(given, "spark.executor.cores", 1)
        most = min(int(self.slots) // cores, ceil(self.full_cores / cores))
        settings = executor_count.CountSettings(executor_cores=cores, most=max(1, most))
        return executor_count.ExecutorCountPort(meter, settings, group=group_name(self.request.name, self.run_id))

    def _finder(self, group: str, driver_url: str) -> Finder | None:
        if self.target.local_mode:
            return executors.OneProcess()
        if finder := executors.spread(self.cpu, group, executors.over_http(driver_url)):
            return finder
        return executors.LocalExecutors() if self.target.here else None  # a part of them would be a wrong meter

    def _learn(self) -> None:
        plan = self.controller.learned(ended_at=self._ended_at) if self.controller and self._ended_at else None
        learn(self.store, self.key, plan, rate=self.request.settings.learning_rate)


def judge(
    profile: Profile | None, key: str, *, promise: Promise, settings: DeadlineSettings, slots: float
) -> outlook.Prediction | None:
    """Compare the earliest possible finish with the time left; returns the prediction, None without a profile.

    Raises:
        DeadlineInfeasibleError: the profile says so, and ``settings.on_infeasible`` is ``fail``.
    """
    left_s = promise.deadline_at - time.time()
    high = settings.high(slots)
    known = outlook.before_start(profile, cores=high, confidence=settings.confidence)
    if known is None:
        log.info("no profile of %s yet: the full share of %g cores, and this run is learned from", key, high)
    else:
        message = "profile of %s: about %.0f s (%.0f to %.0f s) at %g cores, %.0f s are left"
        log.info(message, key, known.left_s, known.low_s, known.high_s, high, left_s)
    found = known or outlook.Prediction(0.0, 0.0, 0.0)
    if left_s >= found.left_s and left_s > 0:
        return known
    detail = _grounds(profile, key, found, high) if known else ""
    infeasible = errors.DeadlineInfeasibleError(needed_s=found.left_s, left_s=left_s, detail=detail)
    if settings.on_infeasible == "fail":
        raise infeasible
    log.warning("%s; going on as fast as possible", infeasible)
    return known


def _grounds(profile: Profile | None, key: str, found: outlook.Prediction, high: float) -> str:
    courses = len(profile.plans) if profile else 0
    heaviest = f"the heaviest of its {courses} courses, " if courses > 1 else ""
    return (
        f"{heaviest}{found.low_s:.0f} to {found.high_s:.0f} s at {high:g} cores; see 'mlscale spark profile show {key}'"
    )


def learn(store: profile_store.ProfileFiles, key: str, plan: Plan | None, *, rate: float) -> None:
    """Merge the plan of a run that succeeded into its profile; what goes wrong is told, never raised.

    The profile is read again: other runs of the application may have ended since this one began.
    """
    if plan is None:
        log.warning("nothing was learned from this run of %s", key)
        return
    try:
        store.save(profiles.learn(store.latest(key), key, plan, rate=rate))
    except errors.TransientError as exc:  # the work is done: its profile must not fail it
        log.warning("%s; nothing was learned from this run of %s", exc, key)
        return
    log.info("learned from this run: %.1f core-s in %d stages", plan.core_s, len(plan.stages))


def group_name(application: str, run: str) -> str:
    """Name of the CPU group of an application's executors."""
    readable = re.sub(r"[^a-z0-9._-]+", "-", application.lower()).strip("-._")[:80]
    return f"spark-{readable or 'application'}-{run[:8]}"


def check_application(application: str) -> None:
    """Refuse a local application file that does not exist; addresses of other stores are Spark's to check.

    Raises:
        InvalidInputError: it is empty, missing or a folder.
    """
    parts = urlsplit(application)
    path = Path(parts.path if parts.scheme == "file" else application)
    if parts.scheme not in ("", "file"):
        return
    if not application or not path.is_file():
        raise errors.InvalidInputError(
            "application", application, "there is no such file on this worker; give an absolute path to a .py or .jar"
        )
