"""The host agent's metrics, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from airflow_mlscale.cpu import agent as agents
from airflow_mlscale.runtime import loop


def text(agent: agents.Agent, health: loop.Health) -> bytes:
    """All metrics now."""
    registry = CollectorRegistry()
    registry.register(_Reading(agent, health))
    return generate_latest(registry)


class _Reading(Collector):
    def __init__(self, agent: agents.Agent, health: loop.Health) -> None:
        self.agent = agent
        self.health = health

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("mlscale_cpu_host_cores", "Cores that the agent divides.", self.agent.pot_cores)
        yield GaugeMetricFamily("mlscale_cpu_enforced", "1 if shares are enforced.", int(self.agent.backend.enforces))
        yield GaugeMetricFamily("mlscale_cpu_leases", "Leases held.", len(self.agent.leases))
        counts = self.agent.counts
        yield CounterMetricFamily("mlscale_cpu_lease_renewals", "Leases taken or renewed.", counts.renewals)
        yield CounterMetricFamily("mlscale_cpu_lease_expiries", "Leases that ran out.", counts.expiries)
        yield CounterMetricFamily("mlscale_cpu_refusals", "Leases and groups refused.", counts.refusals)
        yield CounterMetricFamily("mlscale_agent_late_ticks", "Ticks that began late.", self.health.late)
        yield CounterMetricFamily("mlscale_agent_failed_ticks", "Ticks that failed.", self.health.failures)
        yield from self._groups()

    def _groups(self) -> Iterator[Metric]:
        guaranteed = GaugeMetricFamily("mlscale_cpu_guaranteed_cores", "Guarantee of a group.", labels=["group"])
        ceiling = GaugeMetricFamily(
            "mlscale_cpu_ceiling_cores", "Ceiling of a group; infinite without one.", labels=["group"]
        )
        used = CounterMetricFamily("mlscale_cpu_used_seconds", "Processor time used by a group.", labels=["group"])
        periods = CounterMetricFamily(
            "mlscale_cpu_throttled_periods", "Periods in which the ceiling stopped a group.", labels=["group"]
        )
        for info in self.agent.groups():
            usage = self.agent.usage(info.name)
            limit = info.share.ceiling_cores
            guaranteed.add_metric([info.name], info.share.guaranteed_cores)
            ceiling.add_metric([info.name], float("inf") if limit is None else limit)
            used.add_metric([info.name], usage.used_core_s)
            periods.add_metric([info.name], usage.throttled_periods)
        yield from (guaranteed, ceiling, used, periods)
