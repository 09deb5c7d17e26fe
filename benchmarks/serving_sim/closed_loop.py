"""One run: requests, lines, dispatch, control and the simulated kernel, event by event.

`roma.line`, `roma.dispatch`, `roma.policy` and `roma.laws` decide, as they do in the daemon. What is missing
here: the gateway, transports, caches, and whatever else a real machine does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from math import ceil, inf
from random import Random

from airflow_mlscale.control import smoothing
from airflow_mlscale.cpu import ports as cpu
from airflow_mlscale.roma import controller, dispatch, laws, line, measurement, policy, settings
from benchmarks.serving_sim import host, workload

Outcome = measurement.Outcome


@dataclass(slots=True, eq=False)
class Request:
    """As the daemon's, without a body and a client."""

    arrived: float
    deadline: float
    give_up: float
    counts: bool
    """Whether it arrived after the warm-up."""
    priority: int = 0
    size: int = 1
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Execution:
    """A batch on its way."""

    batch: list[Request]
    began: float
    work_core_s: float


@dataclass(eq=False)
class Tally:
    """What became of one model's requests after the warm-up."""

    requests: int = 0
    violations: int = 0
    shed: int = 0

    def __post_init__(self) -> None:
        self.latencies_s: list[float] = []


@dataclass(frozen=True, kw_only=True)
class System:
    """One contestant."""

    control: settings.ControlSettings


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """One run."""

    tallies: Mapping[str, Tally]
    objectives_s: Mapping[str, float]
    granted_core_s: float
    cap_core_s: float
    used_core_s: float
    length_s: float
    verdicts: Mapping[str, int]
    """Steps by verdict, all models together."""


class SimulatedModel:
    """One model: its line and its group; a candidate for the dispatcher."""

    def __init__(self, profile: workload.Profile, run: Run) -> None:
        spec = profile.spec
        self.profile = profile
        self.group = f"sim.{spec.name}"
        self.line: line.Line[Request] = line.Line(spec, queue=run.queue, batch=settings.BatchSettings())
        self.kernel = host.Group()
        self.tally = Tally()
        self.executing: dict[int, Execution] = {}
        self.recent: deque[float] = deque(maxlen=50)
        self.cost = smoothing.Ewma(controller.COST_TIME_CONSTANT_S)
        self.cost_core_s = 0.0
        self.executed = 0
        self.step: policy.SetShare | None = None
        self.loan = 0.0
        self.wake = inf
        """When it looks again though nothing has happened: one time for each model, as in the daemon."""
        self._run = run
        for size in (1, 2, 4, 8, 16):  # the warm-up of a deployment
            self.line.times.start(size, profile.work_core_s(size, run.rng))

    def standing(self, now: float) -> dispatch.Standing | None:
        if not len(self.line.queue) or len(self.executing) >= self.line.places:
            return None
        floor = self._run.floor
        return dispatch.Standing(
            name=self.group,
            deadline=self.line.queue.deadline(),
            oldest=0.0,
            service_s=self.line.times.of(1, cores=self.line.cores_each),
            executing=len(self.executing),
            priority=self.line.spec.priority,
            entitled=floor.entitled(now, self.group),
            need_s=self._need_s(now) if floor.order == "h1" else 0.0,
        )

    def deadlines(self) -> list[float]:
        """As `replica.Replica.deadlines`."""
        at_worker = [request.deadline for one in self.executing.values() for request in one.batch]
        return sorted([*at_worker, *self.line.queue.deadlines()])

    def begin(self, now: float) -> None:
        batch = self.line.next_batch(now, executing=len(self.executing))
        if not batch:
            return
        token = next(self._run.tokens)
        work_core_s = self.profile.work_core_s(len(batch), self._run.rng)
        self.executing[token] = Execution(batch, now, work_core_s)
        self.kernel.start(token, work_core_s)
        expected_s = self.line.times.of(len(batch), cores=self.line.cores_each)
        self._run.floor.began(now, token, self.group, expected_s=expected_s)
        self._run.active[self.group] = self

    def _need_s(self, now: float) -> float:
        waits = [now - request.arrived for request in self.line.queue]
        return dispatch.need_s(
            waited_s=sum(waits) / len(waits),
            recent_s=sum(self.recent) / len(self.recent) if self.recent else 0.0,
            service_s=self.line.times.of(1),
            sla_s=self.line.spec.objective.seconds,
            alpha=self._run.system.control.paper.alpha,
        )


class Run:
    """A system under a workload."""

    def __init__(
        self, system: System, profiles: list[workload.Profile], *, cores: float, warm_up_s: float, seed: int
    ) -> None:
        self.system = system
        self.cores = cores
        self.rng = Random(f"executions/{seed}")
        self.queue = settings.QueueSettings()
        self.tokens = count(1)
        self.active: dict[str, SimulatedModel] = {}
        places = float(ceil(cores)) if system.control.takes_turns else inf
        self.floor = dispatch.Dispatcher(host_places=places, order=system.control.dispatch)
        self.models = [SimulatedModel(profile, self) for profile in profiles]
        self._warm_up_s = warm_up_s
        self._memory: policy.Memory = {}
        self._loans: Mapping[str, laws.Boost] = {}
        self._wakes: list[tuple[float, int]] = []
        self._costs = {"granted": 0.0, "cap": 0.0, "used": 0.0}
        self._verdicts: dict[str, int] = {}
        self._used: dict[str, float] = {}

    def go(self, arrivals: list[tuple[float, int]], length_s: float) -> Outcomes:
        """Until the last request has come out."""
        control = self.system.control
        now, position, tick, boost = 0.0, 0, 0.0, control.boost_period_s
        while position < len(arrivals) or self.active or any(len(one.line.queue) for one in self.models):
            arrival = arrivals[position][0] if position < len(arrivals) else inf
            wake = self._wakes[0][0] if self._wakes else inf
            kernel = now + min((one.kernel.next_s() for one in self.active.values()), default=inf)
            then = min(arrival, tick, boost, wake, kernel)
            self._advance(now, then, length_s)
            now = then
            self._finish(now)
            if now == arrival:
                self._arrive(now, self.models[arrivals[position][1]])
                position += 1
            if now == tick:
                self._control(now)
                tick += control.period_s
            if now == boost:
                self._lend(now)
                boost += control.boost_period_s
            while self._wakes and self._wakes[0][0] <= now:
                at, index = heappop(self._wakes)
                if at == self.models[index].wake:  # else an earlier one has been set since
                    self.models[index].wake = inf
                    self._pump(now, self.models[index])
            host.divide([one.kernel for one in self.active.values()], self.cores)
        return self._outcomes(length_s)

    def _advance(self, now: float, then: float, length_s: float) -> None:
        dt_s = then - now
        before = sum(one.kernel.used_core_s for one in self.active.values())
        for one in self.active.values():
            one.kernel.advance(dt_s)
        counted_s = max(0.0, min(then, length_s) - max(now, self._warm_up_s))
        if counted_s <= 0 or dt_s <= 0:
            return
        self._costs["used"] += counted_s / dt_s * (sum(one.kernel.used_core_s for one in self.active.values()) - before)
        steps = [(one.step, one.kernel.quota) for one in self.models if one.step]
        self._costs["granted"] += counted_s * sum(step.share.guaranteed_cores for step, _ in steps)
        self._costs["cap"] += counted_s * min(self.cores, sum(min(self.cores, quota) for _, quota in steps))

    def _finish(self, now: float) -> None:
        ended = False
        for one in list(self.active.values()):
            beside = len(one.executing)
            for token in one.kernel.ended():
                execution = one.executing.pop(token)
                batch = execution.batch
                one.cost_core_s += execution.work_core_s
                self.floor.ended(now, token, spent_core_s=execution.work_core_s)
                one.line.learn(now, len(batch), now - execution.began, executing=beside)
                one.executed += len(batch)
                for request in batch:
                    self._answer(now, one, request)
                ended = True
            if not one.kernel.executions:
                del self.active[one.group]
            if len(one.executing) < beside:
                self._pump(now, one)
        if ended:
            self.floor.run(now)

    def _arrive(self, now: float, one: SimulatedModel) -> None:
        objective_s = one.line.spec.objective.seconds
        request = Request(
            arrived=now,
            deadline=now + objective_s,
            give_up=now + self.queue.give_up_factor * objective_s,
            counts=now >= self._warm_up_s,
        )
        one.line.meter.arrive(now)
        one.tally.requests += request.counts
        refusal, displaced = one.line.join(now, request, executing=len(one.executing))
        for lost in [*displaced, *([request] if refusal else [])]:
            self._shed(now, one, lost)
        self._pump(now, one)

    def _pump(self, now: float, one: SimulatedModel) -> None:
        for request in one.line.give_up(now, executing=len(one.executing)):
            self._shed(now, one, request)
        self.floor.offer(now, one)
        if len(one.line.queue) and len(one.executing) < one.line.places:
            again = self.floor.looks_again_at(now, one.line.times.of(1, cores=one.line.cores_each))
            if again < one.wake:
                one.wake = again
                heappush(self._wakes, (again, self.models.index(one)))

    def _answer(self, now: float, one: SimulatedModel, request: Request) -> None:
        latency_s = now - request.arrived
        one.line.meter.record(now, Outcome.SERVED, latency_s)
        one.recent.append(latency_s)
        if request.counts:
            one.tally.latencies_s.append(latency_s)
            one.tally.violations += latency_s > one.line.spec.objective.seconds

    def _shed(self, now: float, one: SimulatedModel, request: Request) -> None:
        one.line.meter.record(now, Outcome.SHED, request.give_up - request.arrived)
        if request.counts:
            one.tally.violations += 1
            one.tally.shed += 1

    def _control(self, now: float) -> None:
        control = self.system.control
        seen = [self._seen(now, one) for one in self.models]
        plan, self._memory = policy.decide(
            seen, self._memory, host_cores=self.cores, control=control, dt_s=control.period_s
        )
        for one, step in zip(self.models, plan, strict=True):
            one.step = step
            self._verdicts[step.verdict] = self._verdicts.get(step.verdict, 0) + 1
            self._write(now, one)

    def _seen(self, now: float, one: SimulatedModel) -> laws.ModelSeen:
        control, spec = self.system.control, one.line.spec
        window = one.line.meter.window(now, control.percentile_window_s, spec.objective.percentile)
        if one.executed:
            one.cost = smoothing.ewma(one.cost, one.cost_core_s / one.executed, dt_s=control.period_s)
            one.cost_core_s, one.executed = 0.0, 0
        before, self._used[one.group] = self._used.get(one.group, 0.0), one.kernel.used_core_s
        return laws.ModelSeen(
            name=spec.name,
            group=one.group,
            spec=spec,
            arrivals_per_s=controller.arrival_rate(one.line.meter, now, control),
            cpu_s_per_request=one.cost.value,
            percentile_s=window.percentile_s,
            requests=window.requests,
            waiting=len(one.line.queue),
            used_cores=(one.kernel.used_core_s - before) / control.period_s,
            mean_s=window.mean_s,
            executing=sum(len(execution.batch) for execution in one.executing.values()),
        )

    def _lend(self, now: float) -> None:
        control = self.system.control
        if control.mode != "reserve" or not control.boost or control.law != "base":
            return
        stepped = [(one, one.step) for one in self.models if one.step]
        seen = [
            laws.LineSeen(
                group=one.group,
                base_cores=step.share.guaranteed_cores,
                most_cores=self.cores,
                objective_s=one.line.spec.objective.seconds,
                left_s=[deadline - now for deadline in one.deadlines()],
                executions=len(one.executing),
                cpu_s_per_request=step.seen.cpu_s_per_request,
            )
            for one, step in stepped
        ]
        self._loans = laws.boosts(
            seen, self._loans, dt_s=control.boost_period_s, host_cores=self.cores, control=control
        )
        for one, _ in stepped:
            if abs(self._loans[one.group].cores - one.loan) > 1e-9:
                one.loan = self._loans[one.group].cores
                self._write(now, one)

    def _write(self, now: float, one: SimulatedModel) -> None:
        """As `controller.ServingPlant.write`, onto the simulated kernel."""
        if one.step is None:
            return
        share: cpu.CpuShare = policy.lent(one.step.share, one.loan)
        one.kernel.weight = max(share.guaranteed_cores, 0.01)
        quota = inf if share.ceiling_cores is None else share.ceiling_cores
        one.kernel.limit(quota)
        one.line.places = policy.places(one.line.spec, share, self.cores)
        one.line.cores = quota
        self.floor.promise(now, one.group, one.step.earned_cores)
        self._pump(now, one)

    def _outcomes(self, length_s: float) -> Outcomes:
        return Outcomes(
            tallies={one.line.spec.name: one.tally for one in self.models},
            objectives_s={one.line.spec.name: one.line.spec.objective.seconds for one in self.models},
            granted_core_s=self._costs["granted"],
            cap_core_s=self._costs["cap"],
            used_core_s=self._costs["used"],
            length_s=length_s - self._warm_up_s,
            verdicts=dict(self._verdicts),
        )


def systems() -> Mapping[str, System]:
    """Who is compared. All have our line: its order, its batches, its shedding; the core law is what differs."""
    plain = settings.ControlSettings()
    reserve = replace(plain, mode="reserve", boost=False)
    scaled = replace(plain.paper, scale=0.02)
    short = replace(plain.rival, hpa_stabilisation_s=60.0)
    return {
        "ours_work_conserving": System(control=plain),
        "ours_reserve": System(control=replace(reserve, boost=True)),
        "sharing": System(control=replace(reserve, law="sharing")),
        "h1_sharing": System(control=replace(plain, law="sharing", dispatch="h1")),
        "static": System(control=replace(reserve, law="static")),
        "rules": System(control=replace(reserve, law="rules")),
        "ct": System(control=replace(reserve, law="ct")),
        "ct_scaled": System(control=replace(reserve, law="ct", paper=scaled)),
        "queue_length": System(control=replace(reserve, law="queue_length")),
        "queue_length_scaled": System(control=replace(reserve, law="queue_length", paper=scaled)),
        "hpa": System(control=replace(reserve, law="hpa", rival=short)),
    }


def noisy(profiles: list[workload.Profile], *, times: float) -> list[workload.Profile]:
    """The same with the first model at so many times its rate, and its promise unchanged."""
    first, *others = profiles
    return [replace(first, mean_per_s=first.mean_per_s * times), *others]


def simulate(
    name: str,
    profiles: list[workload.Profile],
    *,
    cores: float,
    length_s: float,
    shape: str,
    seed: int,
    warm_up_s: float = 10.0,
    system: System | None = None,
) -> Outcomes:
    """Run one system; the same seed brings the same arrivals to all of them."""
    run = Run(system or systems()[name], profiles, cores=cores, warm_up_s=warm_up_s, seed=seed)
    return run.go(workload.arrivals(seed, profiles, length_s=length_s, shape=shape), length_s)
