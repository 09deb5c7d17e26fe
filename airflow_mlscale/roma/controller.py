"""ROMA's control step: measures every model, has `policy.decide` choose, moves the shares, writes it down."""

from __future__ import annotations

import asyncio
import functools
import logging
import time

from airflow_mlscale.control import smoothing
from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import cores, fleet, policy, settings
from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.runtime import journal, loop

log = logging.getLogger(__name__)

COST_TIME_CONSTANT_S = 10.0
"""Of the mean CPU cost of a request."""

Seen = tuple[policy.ModelSeen, ...]
Plan = tuple[policy.SetShare, ...]


class ServingPlant:
    """The serving models of a fleet and their groups at the CPU port."""

    def __init__(
        self, models: fleet.Fleet, port: cpu.CpuPort, control: settings.ControlSettings, book: journal.Journal
    ) -> None:
        self.granted: dict[str, cpu.CpuShare] = {}
        """Last granted share by group."""
        self.decisions: dict[str, policy.SetShare] = {}
        """Last decision by model."""
        self.used_cores: dict[str, float] = {}
        """By model, over the last period."""
        self._models = models
        self._port = port
        self._control = control
        self._book = book
        self._last: dict[str, tuple[float, float]] = {}
        self._spent: dict[str, tuple[float, int]] = {}
        self._cost: dict[str, smoothing.Ewma] = {}
        self._errors: dict[str, str] = {}

    async def observe(self) -> Seen:
        now = time.monotonic()
        serving = [(one.name, one.active) for one in self._models if one.active]
        self._forget_all_but({replica.group for _, replica in serving}, {name for name, _ in serving})
        return tuple([await self._observe(name, replica, now) for name, replica in serving])

    async def act(self, plan: Plan) -> None:
        await self._hold_gateway()
        for step in plan:
            await self._apply(step)

    async def _observe(self, name: str, replica: replicas.Replica, now: float) -> policy.ModelSeen:
        window = replica.meter.window(now, self._control.percentile_window_s, replica.spec.objective.percentile)
        self.used_cores[name] = await self._used_cores(replica, now)
        return policy.ModelSeen(
            name=name,
            group=replica.group,
            spec=replica.spec,
            arrivals_per_s=max(
                replica.meter.arrivals_per_s(now, self._control.arrivals_window_s), replica.meter.arrivals_per_s(now, 2)
            ),
            cpu_s_per_request=self._cpu_s_per_request(replica),
            percentile_s=window.percentile_s,
            requests=window.requests,
            waiting=replica.waiting,
            used_cores=self.used_cores[name],
        )

    async def _used_cores(self, replica: replicas.Replica, now: float) -> float:
        """Mean of the group since the step before; what the worker reports of itself if the port cannot say."""
        try:
            used_s = (await asyncio.to_thread(self._port.usage, replica.group)).used_core_s
        except Exception as exc:  # a missing meter must not stop control
            log.debug("no CPU meter for %s: %s", replica.group, exc)
            used_s = replica.cpu_s
        then, before = self._last.get(replica.group, (now, used_s))
        self._last[replica.group] = (now, used_s)
        return max(0.0, used_s - before) / (now - then) if now > then else 0.0

    def _cpu_s_per_request(self, replica: replicas.Replica) -> float | None:
        """Recent CPU cost of one request, as the worker reports it."""
        spent_s, executed = self._spent.get(replica.group, (0.0, 0))
        self._spent[replica.group] = (replica.cpu_s, replica.executed)
        cost = self._cost.get(replica.group, smoothing.Ewma(COST_TIME_CONSTANT_S))
        if replica.executed > executed:
            sample = (replica.cpu_s - spent_s) / (replica.executed - executed)
            cost = self._cost[replica.group] = smoothing.ewma(cost, sample, dt_s=self._control.period_s)
        return cost.value

    async def _hold_gateway(self) -> None:
        """Renew the daemon's own share: requests wait in it before they wait for a model."""
        try:
            await asyncio.to_thread(self._port.apply, self._models.gateway_group, *cores.gateway_share(self._control))
        except Exception as exc:  # an unmanaged gateway serves too
            log.debug("share of the gateway not applied: %s", exc)

    async def _apply(self, step: policy.SetShare) -> None:
        error = ""
        try:
            self.granted[step.seen.group] = await asyncio.to_thread(
                self._port.apply, step.seen.group, step.share, step.terms
            )
        except Exception as exc:  # the other models' shares must still move
            error = f"; not applied: {exc}"
        last = self.decisions.get(step.seen.name)
        self.decisions[step.seen.name] = step
        news = error != self._errors.get(step.seen.group, "")  # a port that stays away is told once
        self._errors[step.seen.group] = error
        if error and news:
            log.warning("%s: share%s", step.seen.name, error.removeprefix(";"))
        record = _record(step, self.granted.get(step.seen.group), error, last, news=news)
        if record.changed or step.seen.requests:
            self._book.append(record)
        if record.changed:
            log.info("%s: %.2f cores, %s: %s", record.subject, step.share.guaranteed_cores, step.verdict, record.reason)

    def _forget_all_but(self, groups: set[str], names: set[str]) -> None:
        for by_group in (self.granted, self._last, self._spent, self._cost, self._errors):
            for group in by_group.keys() - groups:
                by_group.pop(group)
        for by_name in (self.decisions, self.used_cores):
            for name in by_name.keys() - names:
                del by_name[name]


def control_loop(
    plant: ServingPlant, *, host_cores: float, control: settings.ControlSettings
) -> loop.PeriodicLoop[Seen, Plan, policy.Memory]:
    """The once-a-second loop over all models."""
    decide = functools.partial(policy.decide, host_cores=host_cores, control=control)
    empty: policy.Memory = {}
    return loop.PeriodicLoop(
        plant,
        lambda seen, memory, dt_s: decide(seen, memory),
        empty,
        period_s=control.period_s,
        name="ROMA core control",
    )


def _record(
    step: policy.SetShare, granted: cpu.CpuShare | None, error: str, last: policy.SetShare | None, *, news: bool
) -> journal.Record:
    seen = step.seen
    return journal.Record(
        at=time.time(),
        subject=seen.name,
        seen={
            "version": seen.spec.version,
            "arrivals_per_s": round(seen.arrivals_per_s, 2),
            "cpu_ms_per_request": None if seen.cpu_s_per_request is None else round(1000 * seen.cpu_s_per_request, 3),
            "percentile": seen.spec.objective.percentile,
            "percentile_ms": None if seen.percentile_s is None else round(1000 * seen.percentile_s, 3),
            "objective_ms": seen.spec.objective.milliseconds,
            "requests": seen.requests,
            "waiting": seen.waiting,
            "used_cores": round(seen.used_cores, 3),
        },
        decided={
            "guaranteed_cores": round(step.share.guaranteed_cores, 3),
            "ceiling_cores": step.share.ceiling_cores,
            "granted_cores": round(granted.guaranteed_cores, 3) if granted else None,
            "trim": round(step.trim, 3),
            "verdict": step.verdict.value,
        },
        reason=step.reason + error,
        changed=step.changed or news or last is None or last.verdict != step.verdict,
    )
