"""ROMA's control step: measures every model, has `policy.decide` choose, moves the shares, writes it down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from math import inf

from airflow_mlscale.control import smoothing
from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import cores, deployment, fleet, laws, measurement, policy, settings
from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.runtime import journal, loop

log = logging.getLogger(__name__)

COST_TIME_CONSTANT_S = 10.0
"""Of the mean CPU cost of a request."""

GATEWAY_TIME_CONSTANT_S = 5.0
"""Of the gateway's own use."""

Seen = tuple[laws.ModelSeen, ...]
Plan = tuple[policy.SetShare, ...]


class ServingPlant:
    """The serving models of a fleet and their groups at the CPU port."""

    def __init__(
        self, models: fleet.Fleet, port: cpu.CpuPort, control: settings.ControlSettings, book: journal.Journal
    ) -> None:
        self.granted: dict[str, cpu.CpuShare] = {}
        """Last granted share by group."""
        self.decisions: dict[str, policy.SetShare] = {}
        """Last decision by model; of a canary by ``model@version``."""
        self.used_cores: dict[str, float] = {}
        """By model (or ``model@version``), over the last period."""
        self.loans: dict[str, float] = {}
        """Cores lent on top of the share, by group."""
        self._models = models
        self._port = port
        self._control = control
        self._book = book
        self._last: dict[str, tuple[float, float]] = {}
        self._spent: dict[str, tuple[float, int]] = {}
        self._cost: dict[str, smoothing.Ewma] = {}
        self._errors: dict[str, str] = {}
        self._serving: dict[str, replicas.Replica] = {}
        self.gateway_guarantee = cores.gateway_share(control)[0].guaranteed_cores
        """Cores that the daemon's own process is guaranteed."""
        self._gateway = time.monotonic(), time.process_time()
        self._gateway_cores = smoothing.Ewma(GATEWAY_TIME_CONSTANT_S)

    async def observe(self) -> Seen:
        now = time.monotonic()
        serving = [each for one in self._models for each in one.serving()]
        self._serving = {each.replica.group: each.replica for each in serving}
        self._forget_all_but(set(self._serving), {each.name for each in serving})
        return tuple([await self._observe(each, now) for each in serving])

    async def act(self, plan: Plan) -> None:
        await self._hold_gateway()
        for step in plan:
            await self._apply(step)

    async def _observe(self, serving: deployment.Serving, now: float) -> laws.ModelSeen:
        name, replica = serving.name, serving.replica
        window = replica.meter.window(now, self._control.percentile_window_s, replica.spec.objective.percentile)
        self.used_cores[name] = await self._used_cores(replica, now)
        return laws.ModelSeen(
            name=name,
            group=replica.group,
            spec=serving.spec,
            # What GPUs answer needs no cores.
            arrivals_per_s=replica.seats.cpu_part * arrival_rate(replica.meter, now, self._control),
            cpu_s_per_request=self._cpu_s_per_request(replica),
            percentile_s=window.percentile_s,
            requests=window.requests,
            waiting=replica.waiting,
            used_cores=self.used_cores[name],
            mean_s=window.mean_s,
            executing=replica.executing,
        )

    def controlled(self) -> Iterator[tuple[replicas.Replica, policy.SetShare]]:
        """Every serving replica that a share was decided for, with the last decision."""
        for one in self._models:
            for each in one.serving():
                step = self.decisions.get(each.name)
                if step and step.seen.group == each.replica.group:
                    yield each.replica, step

    async def write(self, replica: replicas.Replica, step: policy.SetShare) -> None:
        """Give a replica its share and what is lent on top; its concurrency follows.

        Raises:
            MlscaleError: the port refused, or is away; the concurrency is as before then.
        """
        share = policy.lent(step.share, self.loans.get(replica.group, 0.0))
        granted = await asyncio.to_thread(self._port.apply, replica.group, share, step.terms)
        self.granted[replica.group] = granted
        replica.allow(
            policy.places(replica.spec, share, self._port.host_cores),
            inf if granted.ceiling_cores is None else granted.ceiling_cores,
        )
        # What the port withholds, for others on this host, is not earned.
        part = min(1.0, granted.guaranteed_cores / share.guaranteed_cores) if share.guaranteed_cores else 1.0
        self._models.dispatcher.promise(time.monotonic(), replica.group, part * step.earned_cores)

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
        now, used_s = time.monotonic(), time.process_time()
        then, before = self._gateway
        if now > then:
            sample = (used_s - before) / (now - then)
            self._gateway_cores = smoothing.ewma(self._gateway_cores, sample, dt_s=now - then)
        self._gateway = now, used_s
        share = cores.gateway_share(self._control, used_cores=self._gateway_cores.value or 0.0)
        self.gateway_guarantee = share[0].guaranteed_cores
        try:
            await asyncio.to_thread(self._port.apply, self._models.gateway_group, *share)
        except Exception as exc:  # an unmanaged gateway serves too
            log.debug("share of the gateway not applied: %s", exc)

    async def _apply(self, step: policy.SetShare) -> None:
        error = ""
        try:
            if replica := self._serving.get(step.seen.group):  # else it was replaced since it was observed
                await self.write(replica, step)
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
        for by_group in (self.granted, self.loans, self._last, self._spent, self._cost, self._errors):
            for group in by_group.keys() - groups:
                by_group.pop(group)
        for by_name in (self.decisions, self.used_cores):
            for name in by_name.keys() - names:
                del by_name[name]


def arrival_rate(meter: measurement.Meter, now: float, control: settings.ControlSettings) -> float:
    """Requests per second as control sees them: the mean, or that of the last burst."""
    mean = meter.arrivals_per_s(now, control.arrivals_window_s)
    return max(mean, meter.arrivals_per_s(now, control.burst_window_s))


def control_loop(
    plant: ServingPlant, *, host_cores: float, control: settings.ControlSettings
) -> loop.PeriodicLoop[Seen, Plan, policy.Memory]:
    """The once-a-second loop over all models, which divides what the gateway leaves."""

    def decide(seen: Seen, memory: policy.Memory, dt_s: float) -> tuple[Plan, policy.Memory]:
        # Other laws know of no gateway: for them the host is theirs, as in the papers.
        kept = plant.gateway_guarantee if control.law == "base" else 0.0
        promised = sum(one.spec.min_cores for one in seen)  # from which a busy gateway takes nothing
        left = max(0.5 * host_cores, promised, host_cores - kept)
        return policy.decide(seen, memory, host_cores=left, control=control, dt_s=dt_s)

    empty: policy.Memory = {}
    return loop.PeriodicLoop(
        plant,
        decide,
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
