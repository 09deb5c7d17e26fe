"""In-place pod resize: the real Kubernetes client against an API server that keeps the API's rules."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from airflow_mlscale import errors
from airflow_mlscale.cpu import pods, ports
from airflow_mlscale.cpu.adapters import kubernetes as adapter
from airflow_mlscale.spark import launch
from tests.fakes import clock as fake_clock
from tests.fakes import kubernetes_api

client = pytest.importorskip("kubernetes.client", reason="the extra 'kubernetes' is not installed")

APP = {"spark-role": "executor", "spark-app-selector": "spark-1"}
SELECTOR = "spark-role=executor,spark-app-selector=spark-1"
QUICK = adapter.PodSettings(backoff_s=0.01)
EARLIER = "2023-11-14T22:13:20Z"  # when the clock below begins


class Cluster:
    def __init__(self, api: kubernetes_api.FakeKubernetes) -> None:
        self.api = api
        self.clock = fake_clock.FakeClock()

    def executor(self, number: int, **arguments: object) -> str:
        name = f"job-exec-{number}"
        self.api.add(name, labels={**APP, "spark-exec-id": str(number)}, **arguments)
        return name

    def port(self, group: str = "job", *, cores: float = 4.0) -> adapter.PodPort:
        configuration = client.Configuration(host=self.api.url)
        port = adapter.PodPort(configuration, cores=cores, settings=QUICK, clock=self.clock)
        port.select(group, SELECTOR)
        return port

    def apply(self, port: adapter.PodPort, share: ports.CpuShare) -> ports.CpuShare:
        """At the next tick."""
        self.clock.advance(QUICK.period_s)
        return port.apply("job", share)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with kubernetes_api.kubernetes_api() as api:
        yield Cluster(api)


BURSTABLE = {"request": "2", "limit": "2", "memory": ("1Gi", "2Gi")}
RESERVE = ports.CpuShare.strict


def test_a_guaranteed_pod_stays_guaranteed(cluster: Cluster) -> None:
    name = cluster.executor(1)
    port = cluster.port()
    assert RESERVE(0.5) == cluster.apply(port, RESERVE(0.5))
    assert cluster.api.resizes() == [
        (
            name,
            {
                "spec": {
                    "containers": [
                        {
                            "name": "spark-kubernetes-executor",
                            "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "500m"}},
                        }
                    ]
                }
            },
        )
    ]
    assert cluster.api.pods["default", name]["status"]["qosClass"] == "Guaranteed"
    # without a ceiling nothing may be taken from it: its request is its limit
    assert RESERVE(2.0) == cluster.apply(port, ports.CpuShare(guaranteed_cores=0.5))


def made_with(*, capped: bool, **given: str) -> dict[str, str]:
    """CPU of the executors that a run asks for, two cores each; ``given`` are the user's ``request`` and ``limit``."""
    name = "spark.kubernetes.executor.{}.cores".format
    properties = {name(part): value for part, value in given.items()}
    ours = launch.kubernetes_properties(properties, run="1", cores=2, env={}, capped=capped)
    return {part: ours[name(part)] for part in ("request", "limit")}


@pytest.mark.parametrize("given", [{}, {"limit": "2"}, {"request": "2"}, {"request": "500m"}, {"request": "3"}])
def test_without_ceilings_pods_are_made_so_that_they_can_give_and_take(cluster: Cluster, given: dict[str, str]) -> None:
    name = cluster.executor(1, **made_with(capped=False, **given))
    begun = cluster.api.cpu(name)
    assert cluster.api.pods["default", name]["status"]["qosClass"] == "Burstable"
    port = cluster.port()
    for cores in (0.25, 1.5):
        assert cluster.apply(port, ports.CpuShare(guaranteed_cores=cores)).guaranteed_cores == pytest.approx(cores)
    port.close("job")
    assert [pods.cores_of(str(value)) for value in cluster.api.cpu(name)] == [pods.cores_of(str(one)) for one in begun]


def test_with_ceilings_request_and_limit_follow_together(cluster: Cluster) -> None:
    name = cluster.executor(1, **made_with(capped=True))
    assert cluster.api.pods["default", name]["status"]["qosClass"] == "Guaranteed"
    assert cluster.apply(cluster.port(), RESERVE(0.5)) == RESERVE(0.5)


def test_pods_that_can_give_nothing_back_are_told_once(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2):
        cluster.executor(number, **made_with(capped=False, request="2", limit="2"))
    port = cluster.port()
    for cores in (0.5, 0.25):
        assert cluster.apply(port, ports.CpuShare(guaranteed_cores=cores)) == RESERVE(4.0)
    assert [record.levelname for record in caplog.records if adapter.STUCK in record.message].count("WARNING") == 1


def test_a_burstable_pod_gives_its_request_and_keeps_its_limit(cluster: Cluster) -> None:
    name = cluster.executor(1, **BURSTABLE)
    port = cluster.port()
    granted = cluster.apply(port, ports.CpuShare(guaranteed_cores=0.5))
    assert cluster.api.cpu(name) == ("500m", "2000m")
    assert granted == ports.CpuShare(guaranteed_cores=0.5, ceiling_cores=2.0)
    cluster.apply(port, RESERVE(0.75))
    assert cluster.api.cpu(name) == ("749m", "750m")  # apart, or it could become Guaranteed
    assert cluster.api.pods["default", name]["status"]["qosClass"] == "Burstable"
    assert cluster.apply(port, ports.IDLE).guaranteed_cores == pytest.approx(0.001)


def test_equal_memory_alone_does_not_make_a_burstable_pod_guaranteed(cluster: Cluster) -> None:
    name = cluster.executor(1, request="1", limit="2")
    cluster.apply(cluster.port(), RESERVE(2.0))
    assert cluster.api.cpu(name) == ("1999m", "2000m")


def test_a_best_effort_pod_is_refused(cluster: Cluster) -> None:
    cluster.executor(1, request=None, limit=None, memory=None)
    with pytest.raises(errors.InvalidInputError, match=r"BestEffort.*spark\.kubernetes\.executor\.limit\.cores"):
        cluster.apply(cluster.port(), RESERVE(1.0))
    assert cluster.api.resizes() == []


def test_a_pod_without_a_limit_has_no_ceiling(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    name = cluster.executor(1, request="2", limit=None)
    port = cluster.port()
    granted = cluster.apply(port, RESERVE(0.5))
    assert cluster.api.cpu(name) == ("500m", None)
    assert granted == ports.CpuShare(guaranteed_cores=0.5)
    assert caplog.text.count("set spark.kubernetes.executor.limit.cores to have ceilings") == 1


def test_the_share_follows_the_tasks_of_each_executor(cluster: Cluster) -> None:
    names = [cluster.executor(number) for number in (1, 2, 3)]
    other = cluster.api.add("other", labels={"spark-role": "executor", "spark-app-selector": "spark-2"})
    port = cluster.port()
    port.weigh("job", {"1": 2.0, "2": 1.0})
    assert cluster.apply(port, RESERVE(1.5)).guaranteed_cores == pytest.approx(1.0 + 0.5 + 2.0)
    # the third has not been weighed: it begins with all that it was made with
    assert [cluster.api.cpu(name)[1] for name in names] == ["1000m", "500m", "2"]
    assert other["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "2"


def test_no_pod_gets_more_than_it_was_made_with(cluster: Cluster) -> None:
    names = [cluster.executor(number) for number in (1, 2)]
    port = cluster.port()
    cluster.apply(port, RESERVE(1.0))
    port.weigh("job", {"1": 9.0, "2": 1.0})
    cluster.apply(port, RESERVE(3.0))
    assert [cluster.api.cpu(name)[1] for name in names] == ["2000m", "1000m"]  # 2.7 of 3 do not fit


def test_resizes_are_rare(cluster: Cluster) -> None:
    cluster.executor(1)
    port = cluster.port()
    cluster.apply(port, RESERVE(1.0))
    before = len(cluster.api.requests)
    assert port.apply("job", RESERVE(0.5)) == RESERVE(1.0)  # before the next tick
    assert len(cluster.api.requests) == before
    cluster.apply(port, RESERVE(1.05))  # a change of 5 % is not worth one
    cluster.apply(port, RESERVE(1.0))
    assert len(cluster.api.resizes()) == 1


def test_a_deferred_resize_is_not_granted_yet(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    name = cluster.executor(1)
    port = cluster.port()
    cluster.apply(port, RESERVE(0.5))
    cluster.api.nodes[name] = "Deferred"
    assert RESERVE(0.5) == cluster.apply(port, RESERVE(1.5))
    assert RESERVE(0.5) == cluster.apply(port, RESERVE(1.5))
    assert cluster.api.cpu(name) == ("1500m", "1500m")  # it stays asked for
    assert len(cluster.api.resizes()) == 2
    assert caplog.text.count("has no room for the resize now") == 1
    cluster.api.settle(name)
    assert RESERVE(1.5) == cluster.apply(port, RESERVE(1.5))


def test_what_a_node_can_never_give_is_not_asked_for_again(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    first, second = cluster.executor(1), cluster.executor(2)
    port = cluster.port()
    cluster.apply(port, RESERVE(1.0))
    cluster.api.nodes[first] = "Infeasible"
    for _ in range(2):
        cluster.apply(port, RESERVE(2.0))
    assert cluster.api.cpu(first) == ("500m", "500m")  # back to what the node gave
    assert caplog.text.count("its node can never give more than it has") == 1
    cluster.apply(port, RESERVE(2.0))
    assert cluster.api.cpu(second) == ("1500m", "1500m")  # the other one makes up for it
    assert cluster.api.cpu(first) == ("500m", "500m")


def test_a_resize_in_progress_counts_when_it_is_done(cluster: Cluster) -> None:
    name = cluster.executor(1)
    port = cluster.port()
    cluster.api.nodes[name] = "wait"
    assert RESERVE(2.0) == cluster.apply(port, RESERVE(0.5))
    cluster.api.settle(name)
    assert RESERVE(0.5) == cluster.apply(port, RESERVE(0.5))
    assert len(cluster.api.resizes()) == 1


@pytest.mark.parametrize("status", [409, 429, 500, 503])
def test_what_may_pass_is_tried_again(cluster: Cluster, status: int) -> None:
    cluster.executor(1)
    cluster.api.failures.append(kubernetes_api.Failure("PATCH", "/resize", status, times=2))
    assert RESERVE(0.5) == cluster.apply(cluster.port(), RESERVE(0.5))
    assert len(cluster.api.resizes()) == 3


def test_a_server_that_keeps_failing_leaves_the_pod_as_it_is(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    name = cluster.executor(1)
    port = cluster.port()
    cluster.api.failures.append(kubernetes_api.Failure("PATCH", "/resize", 500, times=5))
    assert RESERVE(2.0) == cluster.apply(port, RESERVE(0.5))
    assert "the resize failed and will be tried again: 500" in caplog.text
    assert RESERVE(0.5) == cluster.apply(port, RESERVE(0.5))
    cluster.api.failures.append(kubernetes_api.Failure("GET", "/pods", 503, times=5))
    with pytest.raises(errors.UnreachableError, match=r"Kubernetes at .* HTTP 503"):
        cluster.apply(port, RESERVE(0.5))
    assert cluster.api.cpu(name) == ("500m", "500m")


def test_a_pod_that_ends_meanwhile_is_no_failure(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    name = cluster.executor(1)
    port = cluster.port()
    cluster.apply(port, RESERVE(1.0))
    listed = dict(cluster.api.pods)
    del cluster.api.pods["default", name]
    # the list was read a moment before
    port._pods = lambda group: [  # type: ignore[method-assign]
        pod
        for row in listed.values()
        if (pod := pods.pod_of(row, container=QUICK.container, part_label="x", annotation="y"))
    ]
    cluster.apply(port, RESERVE(0.5))
    assert port.enforces
    told = [record for record in caplog.records if record.name == adapter.__name__]
    assert [record.message for record in told if record.levelno >= logging.WARNING] == []


def test_without_permission_shares_are_only_recorded(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    name = cluster.executor(1)
    cluster.api.permitted = False
    port = cluster.port()
    assert not port.enforces
    assert "allow patch on pods/resize in namespace default" in caplog.text
    assert RESERVE(0.5) == cluster.apply(port, RESERVE(0.5))
    assert cluster.api.cpu(name) == ("2", "2")


def test_a_cluster_that_cannot_resize_in_place_is_only_watched(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    name = cluster.executor(1)
    cluster.api.resizable = False
    port = cluster.port()
    cluster.apply(port, RESERVE(0.5))
    assert not port.enforces
    assert "in-place resize needs Kubernetes 1.33" in caplog.text
    assert cluster.api.cpu(name) == ("2", "2")


def test_closing_restores_what_pods_were_made_with(cluster: Cluster) -> None:
    first, second = cluster.executor(1), cluster.executor(2, **BURSTABLE)
    port = cluster.port()
    cluster.apply(port, RESERVE(1.0))
    port.close("job")
    assert [cluster.api.cpu(name) for name in (first, second)] == [("2000m", "2000m"), ("2000m", "2000m")]
    assert port.groups() == []
    port.close("job")


def test_the_safe_share_restores_at_once(cluster: Cluster) -> None:
    name = cluster.executor(1)
    port = cluster.port()
    cluster.apply(port, RESERVE(1.0))
    port.apply("job", ports.UNMANAGED)  # not at the next tick
    assert cluster.api.cpu(name) == ("2000m", "2000m")


def test_a_controller_that_goes_on_knows_what_pods_were_made_with(cluster: Cluster) -> None:
    name = cluster.executor(1)
    cluster.apply(cluster.port(), RESERVE(0.25))  # killed after this
    again = cluster.port()
    cluster.apply(again, RESERVE(1.5))
    assert cluster.api.cpu(name) == ("1500m", "1500m")
    again.close("job")
    assert cluster.api.cpu(name) == ("2000m", "2000m")


def test_use_is_integrated_from_measured_rates(cluster: Cluster) -> None:
    first, second = cluster.executor(1), cluster.executor(2)
    port = cluster.port()
    cluster.api.metrics = {first: kubernetes_api.measured(first, "1500m", EARLIER, window="10s")}
    assert port.usage("job").used_core_s == pytest.approx(15.0)  # 1.5 cores over the window of 10 s
    cluster.clock.advance(4.0)
    assert port.usage("job").used_core_s == pytest.approx(21.0)  # the rate holds until the next measurement
    cluster.clock.advance(16.0)
    cluster.api.metrics = {
        first: kubernetes_api.measured(first, "500000000n", "2023-11-14T22:13:40Z"),
        second: kubernetes_api.measured(second, "2", "2023-11-14T22:13:40Z", window="5s"),
    }
    # 15 + 0.5 · 20 + 2 · 5
    assert port.usage("job").used_core_s == pytest.approx(35.0)
    cluster.clock.advance(10.0)
    cluster.api.metrics = {second: cluster.api.metrics[second]}
    assert port.usage("job").used_core_s == pytest.approx(35.0 + 2 * 10)


def test_without_a_metrics_server_use_is_unknown_and_told_once(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    port = cluster.port()
    for _ in range(3):
        assert port.usage("job").used_core_s == 0.0
        cluster.clock.advance(60.0)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "install a metrics server" in warnings[0].message


def test_the_rest_of_the_port(cluster: Cluster) -> None:
    port = cluster.port()
    assert (port.name, port.host_cores, port.enforces) == ("kubernetes", 4.0, True)
    assert port.entry_files("job") == ()
    with pytest.raises(errors.InvalidInputError, match="pods enter a group by their labels"):
        port.admit("job", 1)
    for call in (port.usage, port.entry_files):
        with pytest.raises(KeyError):
            call("nobody")
    with pytest.raises(errors.InvalidInputError, match="group="):
        port.open("Not a name")
    with pytest.raises(errors.AdmissionRefusedError, match="minimum_cores"):
        port.apply("job", RESERVE(5.0), ports.Terms(minimum_cores=5.0))
    port.open("labelled")
    port.apply("labelled", RESERVE(1.0))
    assert [info.name for info in port.groups()] == ["job", "labelled"]


def test_an_api_server_that_is_away_is_named() -> None:
    with pytest.raises(errors.UnreachableError, match=r"Kubernetes at http://127\.0\.0\.1:9 does not answer"):
        adapter.PodPort(client.Configuration(host="http://127.0.0.1:9"), cores=1.0, settings=QUICK)
