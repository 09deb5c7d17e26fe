"""The Spark properties and environment with which an application is observed and enters its CPU group."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from airflow_mlscale import errors
from airflow_mlscale.cpu import pods
from airflow_mlscale.spark.adapters import cluster, kubernetes, master, rest, yarn
from airflow_mlscale.spark.adapters.install import Install

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
REQUEST = "spark.kubernetes.executor.request.cores"
LIMIT = "spark.kubernetes.executor.limit.cores"


class Manager(StrEnum):
    """Who gives an application its executors."""

    LOCAL = "local"
    STANDALONE = "standalone"
    KUBERNETES = "kubernetes"
    YARN = "yarn"


def manager(url: str) -> Manager:
    """Who stands behind a master's address.

    Raises:
        InvalidInputError: a cluster manager that deadline control does not support.
    """
    if url.startswith("local"):
        return Manager.LOCAL
    if url.startswith("spark://"):
        return Manager.STANDALONE
    if url.startswith("k8s://"):
        return Manager.KUBERNETES
    if url == "yarn":
        return Manager.YARN
    raise errors.InvalidInputError(
        "master",
        url,
        "use spark://HOST:PORT, k8s://https://HOST:PORT, yarn, or local[N]; for others SparkSubmitOperator",
    )


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where an application runs."""

    url: str
    """The master: ``spark://…`` or ``local[…]``."""
    cores: int
    """Cores of all its workers; 0 when unknown."""
    worker_cores: int
    """Cores of its largest worker; 0 when unknown."""
    here: bool
    """Whether all executors run on this host."""

    @property
    def local_mode(self) -> bool:
        """Whether the driver is the executor."""
        return self.url.startswith("local")

    @property
    def loopback(self) -> bool:
        """Whether nothing needs to be reached from another host."""
        return self.local_mode or all(_is_loopback(host) for host, _ in master.addresses(self.url))


def local_slots(url: str) -> int | None:
    """Tasks that a ``local`` master runs at once; None for as many as the host has cores (``local[*]``)."""
    if url == "local":
        return 1
    named = re.match(r"local\[(\d+)[,\]]", url)
    return int(named[1]) if named else None


def target(url: str, *, web_url: str | None, host_cores: float) -> Target:
    """Ask the master about its workers.

    Raises:
        InvalidInputError: a cluster manager that deadline control does not support.
        UnreachableError: the master does not answer, or an explicitly given web page does not.
    """
    kind = manager(url)
    if kind is Manager.LOCAL:
        slots = local_slots(url) or int(host_cores)
        return Target(url=url, cores=slots, worker_cores=slots, here=True)
    if kind is not Manager.STANDALONE:
        raise errors.InvalidInputError(
            "deploy_mode",
            "client",
            f"the default, is not for {url}: deadlines are kept there in cluster mode; use deploy_mode='cluster'",
        )
    master.ping(url)
    here = all(_is_loopback(host) for host, _ in master.addresses(url))
    try:
        found = master.state(web_url or cluster.web_url(url) or master.pages(url))
    except errors.UnreachableError:
        if web_url:
            raise
        return Target(url=url, cores=0, worker_cores=0, here=here)
    tell_of_taken(url, found)
    largest = max((worker.cores for worker in found.workers), default=0)
    return Target(url=url, cores=found.cores, worker_cores=largest, here=here or found.is_local)


def tell_of_taken(url: str, found: master.Master) -> None:
    """Say so when other applications have cores of a standalone cluster: it lets later ones wait, without a word."""
    if found.cores and not found.free_cores:
        log.warning(
            "none of the %d cores of %s is free: the application waits for others to end, while its deadline draws "
            "nearer. Spark gives all cores to the first one unless total_executor_cores (spark.cores.max) limits it",
            found.cores,
            url,
        )
    elif found.free_cores < found.cores:
        log.info("%d of the %d cores of %s are free, others have the rest", found.free_cores, found.cores, url)


def elastic_target(url: str, given: Mapping[str, str]) -> Target:
    """Where an application on Kubernetes or YARN will run: as many executors as it asks for."""
    cores = whole(given, "spark.executor.cores", 1)
    count = whole(given, "spark.executor.instances", 2)
    if given.get("spark.dynamicAllocation.enabled", "").lower() == "true":
        count = whole(given, "spark.dynamicAllocation.maxExecutors", count)
    return Target(url=url, cores=cores * count, worker_cores=cores, here=False)


def driver_cores(given: Mapping[str, str]) -> int:
    """Cores of the cluster that a driver in it takes."""
    return whole(given, "spark.driver.cores", 1)


def whole(given: Mapping[str, str], name: str, default: int, *, least: int = 1) -> int:
    """A Spark property that is a whole number.

    Raises:
        InvalidInputError: it is something else, or less than ``least``.
    """
    value = given.get(name)
    if value is None or not str(value).strip():
        return default
    try:
        found = int(value)
    except ValueError:
        found = least - 1
    if found < least:
        raise errors.InvalidInputError(name, value, f"give a whole number of at least {least}")
    return found


def kubernetes_properties(
    given: Mapping[str, str], *, run: str, cores: int, env: Mapping[str, str], capped: bool
) -> dict[str, str]:
    """The user's Spark properties with what it takes to find and to resize the pods of this run.

    Args:
        given: by the user.
        run: its id.
        cores: of one executor.
        env: of the driver.
        capped: whether shares will have ceilings; see `pods.made_with`.

    Raises:
        InvalidInputError: a request or a limit that is no quantity of Kubernetes.
    """
    made = pods.made_with(_pod_cores(given, REQUEST), _pod_cores(given, LIMIT), cores=cores, capped=capped)
    ours = {
        **given,
        **_observed(run),
        "spark.ui.port": str(kubernetes.UI_PORT),
        "spark.kubernetes.submission.waitAppCompletion": "false",
        f"spark.kubernetes.driver.label.{kubernetes.RUN_LABEL}": run,
        f"spark.kubernetes.executor.label.{kubernetes.RUN_LABEL}": run,
        **{f"spark.kubernetes.driverEnv.{name}": value for name, value in env.items()},
        **_sized(given, cores),
    }
    ours.setdefault(REQUEST, pods.quantity(made.request))
    if made.limit is not None:  # it can be resized only where there is one
        ours.setdefault(LIMIT, pods.quantity(made.limit))
    return ours


def _pod_cores(given: Mapping[str, str], name: str) -> float | None:
    value = given.get(name)
    try:
        return pods.cores_of(value) if value else None
    except ValueError as exc:
        raise errors.InvalidInputError(
            name, value, "give cores as Kubernetes writes them, such as 2, 0.5 or 500m"
        ) from exc


def yarn_properties(given: Mapping[str, str], *, run: str, cores: int, env: Mapping[str, str]) -> dict[str, str]:
    """The user's Spark properties with what it takes to find the application of this run."""
    tags = ",".join(tag for tag in (given.get("spark.yarn.tags"), f"{yarn.TAG}{run}") if tag)
    waiting = {"spark.yarn.submit.waitAppCompletion": "false", "spark.yarn.tags": tags}
    driver_env = {f"spark.yarn.appMasterEnv.{name}": value for name, value in env.items()}
    return {**given, **_observed(run), **waiting, **driver_env, **_sized(given, cores)}


def properties(
    where: Target, *, run: str, ui_port: int, entry_env: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
    """The user's Spark properties with ours added; the user's win where both are possible."""
    ours = {**given, **_observed(run), "spark.ui.port": given.get("spark.ui.port", str(ui_port))}
    if where.loopback:
        ours.setdefault("spark.driver.host", LOOPBACK)
        ours.setdefault("spark.driver.bindAddress", LOOPBACK)
    if where.local_mode:
        return ours
    ours |= {f"spark.executorEnv.{name}": value for name, value in entry_env.items()}
    return ours | _sized(given, whole(given, "spark.executor.cores", where.worker_cores))


def _observed(run: str) -> dict[str, str]:
    return {rest.RUN_PROPERTY: run, "spark.ui.enabled": "true"}  # progress is read from its web page


def _sized(given: Mapping[str, str], cores: int) -> dict[str, str]:
    """The JVM would size its collector and pools by the share of the moment, and never again."""
    options = given.get("spark.executor.extraJavaOptions", "")
    if not cores or "ActiveProcessorCount" in options:
        return {}
    return {"spark.executor.extraJavaOptions": f"{options} -XX:ActiveProcessorCount={cores}".strip()}


def environment(
    where: Target, install: Install, *, entry_env: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
    """The environment of spark-submit and the driver, which enters the group of ``entry_env``."""
    env = {**install.env(), **given}
    if where.loopback:
        env.setdefault("SPARK_LOCAL_IP", LOOPBACK)  # or the driver's web page would listen on every address
    return {**env, **entry_env}


FILTER_PROPERTY = "spark.standalone.submit.filterEnvironment"
"""Whether spark-submit keeps all but Spark's own variables from the cluster; Spark before 4.3 sends them all."""
_CARRIED = re.compile(
    r"(PATH|HOME|USER|LOGNAME|LANG|LC_\w+|TZ|TMPDIR|JAVA_HOME|KRB5\w*|HADOOP_\w+|YARN_CONF_DIR|_?SPARK_\w+|PYSPARK_\w+)"
)


def carried(env: Mapping[str, str], *, given: Mapping[str, str], entry_env: Mapping[str, str]) -> dict[str, str]:
    """The environment of a spark-submit that sends its own to the cluster: an Airflow worker's holds secrets."""
    return {
        **{name: value for name, value in env.items() if _CARRIED.fullmatch(name)},
        **given,
        **entry_env,
    }


def ui_address(where: Target, properties_: Mapping[str, str], env: Mapping[str, str]) -> str:
    """Where the driver's web page, and with it its REST API, will be."""
    host = env.get("SPARK_LOCAL_IP") or LOOPBACK
    return f"http://{host}:{properties_['spark.ui.port']}"


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"
