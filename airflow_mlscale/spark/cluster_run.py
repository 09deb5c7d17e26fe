"""One submission whose driver runs in the cluster: what is checked before, and the ticket with which control goes on.

Belongs here: everything until the cluster has taken the application. Controlling it is `follow`'s.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.cpu import ports
from airflow_mlscale.cpu.adapters import observe_only
from airflow_mlscale.runtime import processes
from airflow_mlscale.spark import launch
from airflow_mlscale.spark import run as runs
from airflow_mlscale.spark.access import Access
from airflow_mlscale.spark.adapters import (
    allocator,
    cluster,
    entry,
    executors,
    install,
    kubernetes,
    master,
    profile_store,
    standalone,
    yarn,
)
from airflow_mlscale.spark.launch import Manager
from airflow_mlscale.spark.ports import RemoteApplication
from airflow_mlscale.spark.ticket import Ticket

log = logging.getLogger(__name__)

PYTHON = (".py", ".zip", ".egg")


Start = Callable[[Mapping[str, str], Mapping[str, str]], str | None]
"""Submits with Spark properties and an environment; returns the cluster's id, if spark-submit told it."""


class ClusterRun:
    """Everything before one submission. Creating it checks everything and starts nothing."""

    def __init__(
        self, request: runs.Request, access: Access, application: str, *, namespace: str | None, rm_url: str | None
    ) -> None:
        """Find the parts, ask the cluster, load the profile, and judge whether the deadline is feasible.

        Args:
            request: what the user asked for; its ``web_url`` is the standalone master's.
            access: to the cluster.
            application: path of the program.
            namespace: on Kubernetes.
            rm_url: the ResourceManager's web address, on YARN.

        Raises:
            InvalidInputError: an unsupported cluster or kind of application, or no full pyspark or Java.
            UnreachableError: the cluster or a named host agent does not answer.
            DeadlineInfeasibleError: the profile says so, and `on_infeasible` is ``fail``.
        """
        self.request = request
        self.access = access
        self.manager = launch.manager(request.master_url)
        self._check(application, rm_url)
        self._check_allocator()
        self.install = install.find()
        self.run_id = uuid.uuid4().hex[:12]
        self.namespace = namespace or "default"
        self.rm_url = rm_url
        self.target = self._target()
        self.store = profile_store.ProfileFiles(request.profile_folder)
        self.key = request.profile_key or request.name
        self.profile = self.store.load(self.key)
        runs.judge(self.profile, self.key, promise=request.promise, settings=request.settings, slots=self.slots)
        self.cpu: ports.CpuPort | None = None
        if self.manager is Manager.STANDALONE:
            self.cpu = actuator(self._ticket({}), access, partly=False)
        with contextlib.closing(self.application()) as cluster_:  # whether the cluster answers
            cluster_.find()

    @property
    def slots(self) -> float:
        """Tasks that can run at once, as far as that is known before the application runs."""
        cores = self.target.cores
        if self.manager is Manager.STANDALONE and cores:  # the driver has its place among them
            cores = max(1, cores - launch.driver_cores(self.request.properties))
        known = [number for number in (cores, self.request.total_cores) if number]
        return float(min(known, default=1))

    @property
    def full_cores(self) -> float:
        """Most cores worth asking for."""
        return self.request.settings.high(self.slots)

    def application(self, ticket: Ticket | None = None) -> RemoteApplication:
        """The submission in the cluster."""
        return remote(ticket or self._ticket({}), self.access)

    def submit(self, start: Start, *, announce: Callable[[Ticket], None] = lambda _: None) -> Ticket:
        """Submit by ``start`` and return what is needed to control the application.

        Args:
            start: submits, and returns once the cluster has taken the application.
            announce: called with the ticket just before the submission, and again with the cluster's id: kept,
                it lets another try find the application.

        Raises:
            SparkJobFailedError: spark-submit failed; nothing of it is left.
        """
        ui_port = processes.free_port()
        opened: dict[str, float] = {}
        try:
            properties, env = self._submission(ui_port, opened)
            ticket = self._ticket(opened, ui_port=ui_port)
            announce(ticket)
            before_s = _children_s()
            ticket = self._submitted(ticket, start, properties, env)
            if ticket.driver_group:  # spark-submit has entered it as well, on the way to the driver
                opened[ticket.driver_group] += _children_s() - before_s
                ticket = replace(ticket, used_before={**ticket.used_before, **opened})
        except BaseException:
            for group in opened:
                if self.cpu:
                    self.cpu.close(group)
            raise
        announce(ticket)
        return ticket

    def _submitted(self, ticket: Ticket, start: Start, properties: Mapping[str, str], env: Mapping[str, str]) -> Ticket:
        try:
            return ticket.known_as(start(properties, env) or self._found(ticket))
        except BaseException:  # the cluster may have taken it all the same
            with contextlib.suppress(errors.MlscaleError), contextlib.closing(self.application(ticket)) as application:
                application.kill()
            raise

    def _found(self, ticket: Ticket) -> str:
        with contextlib.closing(self.application(ticket)) as application:
            found = application.find()
        if found is None:
            raise errors.SparkJobFailedError(
                f"spark-submit ended well, but {self.request.master_url} does not know the application"
            )
        return found

    def _check_allocator(self) -> None:
        possible: tuple[str, ...] = allocator.NAMES
        if self.manager is Manager.KUBERNETES:
            possible = ("auto", allocator.KUBERNETES, allocator.OBSERVE_ONLY)
        if self.manager is Manager.YARN:
            possible = ("auto", "agent", allocator.OBSERVE_ONLY) if self.access.agents else ("auto", "observe-only")
        if self.request.allocator not in possible:
            agents = "" if self.access.agents else ", or name the agents of its hosts (agents in the connection)"
            hint = agents if self.manager is Manager.YARN else ""
            raise errors.InvalidInputError(
                "allocator", self.request.allocator, f"on {self.manager} use {' or '.join(possible)}{hint}"
            )

    def _check(self, application: str, rm_url: str | None) -> None:
        if self.manager is Manager.LOCAL:
            raise errors.InvalidInputError("deploy_mode", "cluster", "a local master has no cluster; use client")
        if self.manager is Manager.STANDALONE and application.endswith(PYTHON):
            raise errors.InvalidInputError(
                "deploy_mode",
                "cluster",
                f"Spark runs no Python drivers on a standalone cluster ({application}); use deploy_mode='client', "
                "or submit a JVM application (.jar)",
            )
        if self.manager is Manager.YARN:
            _known(rm_url)

    def _target(self) -> launch.Target:
        if self.manager is not Manager.STANDALONE:
            return launch.elastic_target(self.request.master_url, self.request.properties)
        return launch.target(self.request.master_url, web_url=self._web_url(), host_cores=0)

    def _web_url(self) -> str | None:
        if self.manager is not Manager.STANDALONE:
            return self.rm_url
        url = self.request.master_url
        return self.request.web_url or cluster.web_url(url) or master.pages(url)

    def _submission(self, ui_port: int, opened: dict[str, float]) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Properties and environment of spark-submit; opens the groups that executors and driver enter."""
        request, where = self.request, self.target
        if self.manager is Manager.KUBERNETES:
            given = launch.kubernetes_properties(
                request.properties,
                run=self.run_id,
                cores=where.worker_cores,
                env=request.env,
                capped=request.settings.capped,
            )
            return given, self.install.env()
        if self.manager is Manager.YARN:
            given = launch.yarn_properties(
                request.properties, run=self.run_id, cores=where.worker_cores, env=request.env
            )
            return given, {**self.install.env(), **request.env}
        group, driver_group = self._groups()
        entries = self._entries(group, opened) if where.here else {}
        driver_entries = self._entries(driver_group, opened) if driver_group else {}
        given = launch.properties(where, run=self.run_id, ui_port=ui_port, entry_env=entries, given=request.properties)
        # spark-submit would give up after 10 s, though a busy master has taken the application; this is the usual time.
        given = {"spark.rpc.askTimeout": "120s", **given}
        env = launch.environment(where, self.install, entry_env={}, given={})
        if driver_entries:
            # Spark would let only its own variables through; ours are chosen already.
            given = {**given, launch.FILTER_PROPERTY: "false"}
        return given, launch.carried(env, given=request.env, entry_env=driver_entries)

    def _groups(self) -> tuple[str, str | None]:
        group = runs.group_name(self.request.name, self.run_id)
        cpu = self.cpu
        # Where executors are on several hosts, nothing says that one of their agents is the driver's.
        one_host = self.target.here and cpu is not None and not executors.is_spread(cpu)
        return group, f"{group}-driver" if one_host else None

    def _entries(self, group: str, opened: dict[str, float]) -> Mapping[str, str]:
        if self.cpu is None:
            return {}
        self.cpu.open(group)
        opened[group] = self.cpu.usage(group).used_core_s
        return entry.env(self.cpu.entry_files(group), Path(self.request.env.get("JAVA_HOME") or self.install.java_home))

    def _ticket(self, opened: Mapping[str, float], *, ui_port: int = 0) -> Ticket:
        request = self.request
        group, driver_group = self._groups()
        return Ticket(
            run=self.run_id,
            manager=self.manager,
            master_url=request.master_url,
            name=request.name,
            web_url=self._web_url(),
            namespace=self.namespace if self.manager is Manager.KUBERNETES else None,
            ui_port=launch.whole(request.properties, "spark.ui.port", ui_port, least=0),
            promise=request.promise,
            settings=request.settings,
            profile_folder=request.profile_folder,
            profile_key=self.key,
            warm=self.profile is not None,
            slots=self.slots,
            group=group,
            driver_group=driver_group,
            # Groups of a run are its own: their meters begin at nothing.
            used_before={group: 0.0, **opened},
            allocator=request.allocator,
            host=socket.gethostname(),
            here=self.target.here,
            submitted_at=time.time(),
        )


def _children_s() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def remote(ticket: Ticket, access: Access) -> RemoteApplication:
    """The application of a ticket, in its cluster."""
    if ticket.manager is Manager.KUBERNETES:
        api = kubernetes.core_api(kubernetes.configuration(ticket.master_url, config_file=access.kube_config))
        return kubernetes.KubernetesApplication(api, namespace=ticket.namespace or "default", run=ticket.run)
    if ticket.manager is Manager.YARN:
        return yarn.YarnApplication(str(ticket.web_url), run=ticket.run, user=access.user)
    return standalone.StandaloneApplication(
        str(ticket.web_url), ticket.application_id, run=ticket.run, ui_port=ticket.ui_port
    )


def page(ticket: Ticket) -> str | None:
    """Address of the driver's web page, for people, as far as the submission tells: on YARN."""
    on_yarn = ticket.manager is Manager.YARN and ticket.application_id
    return yarn.page(str(ticket.web_url), str(ticket.application_id)) if on_yarn else None


def greet(
    master_url: str, access: Access, *, pages: str | None, namespace: str | None, rm_url: str | None
) -> tuple[bool, str]:
    """Ask a cluster whether it could be used; says so, and what it answers.

    Args:
        master_url: of the cluster.
        access: to it.
        pages: of a standalone cluster's masters.
        namespace: on Kubernetes.
        rm_url: the ResourceManager's web address, on YARN.

    Raises:
        InvalidInputError: an address is missing or malformed.
        UnreachableError: it does not answer.
    """
    match launch.manager(master_url):
        case Manager.LOCAL:
            return True, f"{master_url} runs in the driver; there is no master to ask"
        case Manager.YARN:
            with contextlib.closing(yarn.YarnApplication(_known(rm_url), run="", user=access.user)) as manager:
                return True, manager.ask()
        case Manager.KUBERNETES:
            api = kubernetes.core_api(kubernetes.configuration(master_url, config_file=access.kube_config))
            with contextlib.closing(
                kubernetes.KubernetesApplication(api, namespace=namespace or "default", run="")
            ) as server:
                return True, server.ask()
    master.ping(master_url)
    try:
        state = master.state(str(pages))
    except errors.UnreachableError as exc:
        return True, f"The Spark master at {master_url} answers. {exc}"
    workers = f"{len(state.workers)} worker(s) with {state.cores} cores"
    return bool(state.workers), f"The Spark master at {master_url} is {state.status} and has {workers}"


def _known(rm_url: str | None) -> str:
    if not rm_url:
        raise errors.InvalidInputError(
            "yarn_resourcemanager_webapp_address",
            rm_url,
            "set it in the connection's extra field, such as http://rm:8088: progress is read through it",
        )
    return rm_url


def actuator(ticket: Ticket, access: Access, *, partly: bool = True) -> ports.CpuPort:
    """The CPU port that reaches the executors of a ticket.

    Args:
        ticket: the submission.
        access: to the agents, or to the cluster.
        partly: of several agents, go on though some do not answer.

    Raises:
        UnreachableError: a named agent does not answer.
        InvalidInputError: the allocator that was asked for is not to be had.
    """
    watched = observe_only.ObserveOnlyPort(host_cores=ticket.slots)
    if ticket.allocator == allocator.OBSERVE_ONLY and not ticket.here:
        return watched
    if ticket.manager is Manager.KUBERNETES:
        return _pods(ticket, access)
    if not allocator.reaches(ticket.allocator, here=ticket.here, agents=access.agents, application=ticket.name):
        return watched
    if ticket.here and ticket.host != socket.gethostname() and not (access.agents or access.agent):
        log.warning(
            "the executors of %s run on %s, where this host's CPU groups do not reach: name its agent in the "
            "connection, or the deadline is only watched",
            ticket.name,
            ticket.host,
        )
        return watched
    return allocator.find(
        ticket.allocator, address=access.agent, token=access.agent_token, agents=access.agents, partly=partly
    )


def _pods(ticket: Ticket, access: Access) -> ports.CpuPort:
    from airflow_mlscale.cpu.adapters import kubernetes as resize

    port = resize.PodPort(
        kubernetes.configuration(ticket.master_url, config_file=access.kube_config),
        cores=ticket.slots,
        settings=resize.PodSettings(namespace=ticket.namespace or "default"),
    )
    port.select(ticket.group, f"spark-role=executor,{kubernetes.RUN_LABEL}={ticket.run}")
    return port
