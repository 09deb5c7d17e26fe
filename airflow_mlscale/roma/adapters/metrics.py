"""``/metrics`` for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from airflow_mlscale.roma import controller, fleet, model

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Latency histograms as requests end; everything else is read when somebody asks."""

    def __init__(self, models: fleet.Fleet, plant: controller.ServingPlant) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._models = models
        self._plant = plant
        self._registry = CollectorRegistry()
        self._latency = Histogram(
            "mlscale_roma_request_seconds",
            "Time from the last byte of a request to its answer.",
            ["model", "protocol"],
            buckets=LATENCY_BUCKETS_S,
            registry=self._registry,
        )
        self._statuses = Counter(
            "mlscale_roma_responses",
            "Inference responses by status.",
            ["model", "protocol", "status"],
            registry=self._registry,
        )
        self._children: dict[Any, Any] = {}
        self._registry.register(self)  # calls only `collect`

    def observe(self, name: str, protocol: str, status: int, seconds: float) -> None:
        """One inference request ended."""
        child = self._children.get((name, protocol))
        if child is None:
            child = self._children[name, protocol] = self._latency.labels(name, protocol)
        child.observe(seconds)
        counter = self._children.get((name, protocol, status))
        if counter is None:
            counter = self._children[name, protocol, status] = self._statuses.labels(name, protocol, str(status))
        counter.inc()

    def text(self) -> bytes:
        """The exposition."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)

    def collect(self) -> Iterator[Any]:
        """Gauges and counters of all models; called by `text`."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def gauge(name: str, text: str, *labels: str) -> Any:
            return GaugeMetricFamily(f"mlscale_roma_{name}", text, labels=["model", *labels])

        state = gauge("model_state", "1 for the state the model is in.", "state", "version")
        objective = gauge("objective_seconds", "Latency to keep.", "percentile")
        measured = gauge("percentile_seconds", "Latency at the objective's percentile over the last minute.")
        verdict = gauge("verdict", "1 for how the model fares against its objective.", "verdict")
        guaranteed = gauge("cores_guaranteed", "Cores granted as a guarantee.")
        used = gauge("cores_used", "Cores used over the last period.")
        waiting = gauge("queue_requests", "Requests waiting.")
        restarts = gauge("worker_restarts", "Deaths of the worker of the serving version.")
        outcomes = CounterMetricFamily(
            "mlscale_roma_requests", "Requests by outcome.", labels=["model", "version", "outcome"]
        )
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
            used.add_metric([one.name], self._plant.used_cores.get(one.name, 0.0))
            waiting.add_metric([one.name], replica.waiting)
            restarts.add_metric([one.name], replica.supervisor.restarts)
            for outcome, count in replica.meter.totals.items():
                outcomes.add_metric([one.name, one.spec.version, outcome], count)
        yield from (state, objective, measured, verdict, guaranteed, used, waiting, restarts, outcomes)
