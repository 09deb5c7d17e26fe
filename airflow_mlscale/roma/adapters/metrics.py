"""``/metrics`` for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from airflow_mlscale.roma import controller, fleet, gpus, memory, model
from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.roma.adapters import http

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """Latency histograms as requests end; everything else is read when somebody asks."""

    def __init__(
        self,
        models: fleet.Fleet,
        plant: controller.ServingPlant,
        *,
        host_cores: float,
        budget: http.Budget,
        graphics: gpus.Gpus | None = None,
    ) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector

        self._models = models
        self._plant = plant
        self._host_cores = host_cores
        self._budget = budget
        self._graphics = graphics
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "mlscale_roma_request_seconds",
            "Time from the head of a request to its answer; over gRPC from its last byte.",
            ["model", "version", "protocol"],
            buckets=LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self._waits = Histogram(
            "mlscale_roma_queue_seconds",
            "Time that executed requests waited in their model's line.",
            ["model", "version"],
            buckets=LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self._statuses = Counter(
            "mlscale_roma_responses",
            "Inference responses by status.",
            ["model", "version", "protocol", "status"],
            registry=self._registry,
        )
        self._refused = Counter(
            "mlscale_roma_refused",
            "Requests refused before they reached a model: tokens, rates, sizes, unknown names.",
            ["protocol", "status"],
            registry=self._registry,
        )
        self._children: dict[tuple[str, ...], Any] = {}
        ProcessCollector(registry=self._registry)
        self._registry.register(self)  # calls only `collect`

    def observe(self, name: str, version: str, protocol: str, status: int, seconds: float) -> None:
        """One inference request ended."""
        self._child(self._latency, name, version, protocol).observe(seconds)
        self._child(self._statuses, name, version, protocol, str(status)).inc()

    def waited(self, name: str, version: str, seconds: float) -> None:
        """One request was executed after so long in the line."""
        self._child(self._waits, name, version).observe(seconds)

    def refused(self, protocol: str, status: int) -> None:
        """One request did not get as far as a model."""
        self._child(self._refused, protocol, str(status)).inc()

    def text(self) -> bytes:
        """The exposition."""
        from prometheus_client import generate_latest

        self._forget_old_versions()
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Any]:
        """Gauges and counters of all models; called by `text`."""
        from prometheus_client.core import GaugeMetricFamily

        yield GaugeMetricFamily("mlscale_roma_host_cores", "Cores of the host.", value=self._host_cores)
        yield GaugeMetricFamily(
            "mlscale_roma_gateway_cores", "Cores guaranteed to the gateway.", value=self._plant.gateway_guarantee
        )
        yield GaugeMetricFamily(
            "mlscale_roma_held_bytes", "Bytes of request bodies held by the gateway.", value=self._budget.used
        )
        yield from self._of_models()
        yield from self._of_versions()
        if self._graphics:
            yield from _of_gpus(self._graphics)
        yield from self._of_rollouts()

    def _of_models(self) -> Iterator[Any]:
        state = _gauge("model_state", "1 for the state the model is in.", "state", "version")
        objective = _gauge("objective_seconds", "Latency to keep.", "percentile")
        measured = _gauge("percentile_seconds", "Latency at the objective's percentile over the last minute.")
        verdict = _gauge("verdict", "1 for how the model fares against its objective.", "verdict")
        guaranteed = _gauge("cores_guaranteed", "Cores granted as a guarantee.")
        ceiling = _gauge("cores_ceiling", "Most cores the model may use now; absent without a ceiling.")
        lent = _gauge("cores_lent", "Cores lent on top of the guarantee (reserve mode).")
        used = _gauge("cores_used", "Cores used over the last period.")
        arrivals = _gauge("arrivals_per_second", "Requests a second over the last 8 seconds.")
        now = time.monotonic()
        for one in self._models:
            for each in model.State:
                state.add_metric([one.name, each, one.spec.version], float(one.state == each))
            objective.add_metric([one.name, f"{one.spec.objective.percentile:g}"], one.spec.objective.seconds)
            last = self._plant.decisions.get(one.name)
            for kind in model.Verdict:
                verdict.add_metric([one.name, kind], float(last is not None and last.verdict == kind))
            if (replica := one.active) is None:
                continue
            window = replica.meter.window(now, 60, one.spec.objective.percentile)
            if window.percentile_s is not None:
                measured.add_metric([one.name], window.percentile_s)
            if granted := self._plant.granted.get(replica.group):
                guaranteed.add_metric([one.name], granted.guaranteed_cores)
                if granted.ceiling_cores is not None:
                    ceiling.add_metric([one.name], granted.ceiling_cores)
            lent.add_metric([one.name], self._plant.loans.get(replica.group, 0.0))
            used.add_metric([one.name], self._plant.used_cores.get(one.name, 0.0))
            arrivals.add_metric([one.name], replica.meter.arrivals_per_s(now, 8))
        yield from (state, objective, measured, verdict, guaranteed, ceiling, lent, used, arrivals)

    def _of_versions(self) -> Iterator[Any]:
        from prometheus_client.core import HistogramMetricFamily

        waiting = _gauge("queue_requests", "Requests waiting.", "version")
        held = _gauge("queue_bytes", "Bytes of requests waiting.", "version")
        executing = _gauge("executing_requests", "Requests at the worker.", "version")
        places = _gauge("places", "Executions that may run side by side.", "version")
        service = _gauge("service_seconds", "Expected time of an execution by its size.", "version", "size")
        restarts = _gauge(
            "worker_restarts", "Deaths of the worker, and how often it was ended as too large.", "version"
        )
        renewals = _gauge("worker_renewals", "Workers replaced while they lived, because of their memory.", "version")
        resident = _gauge("worker_memory_bytes", "Resident memory of the worker.", "version")
        load = _gauge("worker_load_seconds", "What loading and warming up took.", "version")
        cpu = _counter("worker_cpu_seconds", "CPU seconds of executions.", "version")
        outcomes = _counter("requests", "Requests by outcome.", "version", "outcome")
        lost = _counter("lost", "Requests that were shed or failed, by reason.", "version", "outcome", "reason")
        nan = _counter("nan_answers", "Answers that hold NaN.", "version")
        answered = _counter("answered_requests", "Requests by the device that answered them.", "version", "device")
        executions = _counter("executions", "Executions by the device they ran on.", "version", "device")
        batches = HistogramMetricFamily(
            "mlscale_roma_batch_requests", "Requests in one execution.", labels=["model", "version"]
        )
        for name, replica in self._replicas():
            labels = [name, replica.spec.version]
            waiting.add_metric(labels, replica.waiting)
            held.add_metric(labels, replica.queue.size)
            executing.add_metric(labels, replica.executing)
            places.add_metric(labels, replica.threads)
            for size, seconds in replica.times.means.items():
                service.add_metric([*labels, str(size)], seconds)
            restarts.add_metric(labels, replica.supervisor.restarts)
            renewals.add_metric(labels, replica.supervisor.renewals)
            resident.add_metric(labels, memory.resident_bytes(replica))
            load.add_metric(labels, replica.supervisor.load_s)
            cpu.add_metric(labels, replica.cpu_s)
            for outcome, count in replica.meter.totals.items():
                outcomes.add_metric([*labels, outcome], count)
            for (outcome, reason), count in replica.meter.reasons.items():
                lost.add_metric([*labels, outcome, reason], count)
            nan.add_metric(labels, replica.meter.nan)
            for device, count in replica.seats.answered.items():
                answered.add_metric([*labels, device], count)
            for device, count in replica.seats.executions.items():
                executions.add_metric([*labels, device], count)
            batches.add_metric(labels, *_histogram(replica.meter.batches))
        yield from (waiting, held, executing, places, service, restarts, load, cpu, outcomes, lost)
        yield from (renewals, resident, nan, answered, executions, batches)

    def _of_rollouts(self) -> Iterator[Any]:
        """Versions that are tried, and how good the answers of each version were."""
        canary = _gauge("canary_fraction", "Part of the requests that the version on trial answers.", "version")
        accuracy = _gauge(
            "quality_accuracy", "Part of the answers that feedback of the last hour called right.", "version"
        )
        mae = _gauge("quality_mae", "Mean absolute error by the feedback of the last hour.", "version")
        for one in self._models:
            if one.trial and one.desired.canary:
                canary.add_metric([one.name, one.trial.spec.version], one.desired.canary.fraction)
            for version, tally in self._models.quality.since(one.name, time.time() - 3600).items():
                for gauge, value in ((accuracy, tally.accuracy), (mae, tally.mae)):
                    if value is not None:
                        gauge.add_metric([one.name, version], value)
        yield from (canary, accuracy, mae)

    def _replicas(self) -> Iterator[tuple[str, replicas.Replica]]:
        for one in self._models:
            for replica in (one.active, one.candidate):
                if replica is not None:
                    yield one.name, replica

    def _child(self, metric: Any, *labels: str) -> Any:
        """Looking a child up costs more than counting with it."""
        key = (metric._name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def _forget_old_versions(self) -> None:
        """Series of versions that are gone would only grow in number."""
        known = {(name, replica.spec.version) for name, replica in self._replicas()}
        names = {name for name, _ in known}
        for metric in (self._latency, self._waits, self._statuses):
            for key in [key for key in self._children if key[0] == metric._name]:
                name, version = key[1:3]
                if name not in names or (version and (name, version) not in known):
                    del self._children[key]
                    metric.remove(*key[1:])


def _of_gpus(graphics: gpus.Gpus) -> Iterator[Any]:
    """Each GPU; an emulated one says so in its label ``device``."""
    from prometheus_client.core import GaugeMetricFamily

    def gauge(name: str, text: str, *labels: str) -> Any:
        return GaugeMetricFamily(f"mlscale_roma_gpu_{name}", text, labels=["gpu", "device", *labels])

    usable = gauge("usable", "1 while models may run on it.")
    memory = gauge(
        "memory_bytes", "Memory: total, used by all processes, budget of all models, reserved for those on it.", "kind"
    )
    busy = gauge("utilisation", "Part of the time in which it was busy, as NVML has it.")
    seated = gauge("seats", "Models with a seat on it, or being loaded there.", "model", "state")
    for host in graphics.hosts.values():
        labels = [host.gpu.uuid, graphics.device]
        usable.add_metric(labels, float(host.fault is None))
        sizes = {"total": host.gpu.total_bytes, "used": host.reading.used_bytes}
        ours = {"budget": graphics.budget_bytes(host), "reserved": graphics.promised_bytes(host)}
        for kind, size in {**sizes, **ours}.items():
            memory.add_metric([*labels, kind], size)
        if host.reading.utilisation is not None:
            busy.add_metric(labels, host.reading.utilisation)
        for one in host.residents.values():
            seated.add_metric([*labels, one.name, one.state], 1)
    yield from (usable, memory, busy, seated)


def _gauge(name: str, text: str, *labels: str) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"mlscale_roma_{name}", text, labels=["model", *labels])


def _counter(name: str, text: str, *labels: str) -> Any:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(f"mlscale_roma_{name}", text, labels=["model", *labels])


def _histogram(sizes: Mapping[int, int]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative buckets and the sum, as Prometheus wants them."""
    buckets = [(str(float(le)), float(sum(n for size, n in sizes.items() if size <= le))) for le in BATCH_BUCKETS]
    total = float(sum(sizes.values()))
    return [*buckets, ("+Inf", total)], float(sum(size * n for size, n in sizes.items()))
