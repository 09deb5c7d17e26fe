"""How many cores a model should have: our law, the paper's, and the common rivals, behind one interface.

Pure. A law looks at one model at a time and wishes; `policy` divides the host among the wishes. Each is a
function ``law(seen, memory, scene) -> (cores, memory)`` in `LAWS`, chosen by `settings.ControlSettings.law`.

Papers: Baresi & Quattrocchi, *ROMA: Resource Management for TensorFlow Inference* (ICSOC 2021), for ``ct``,
``queue_length`` and ``rules``. ``hpa`` is the formula of Kubernetes' HorizontalPodAutoscaler on fractions of cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from airflow_mlscale.control import latency, smoothing
from airflow_mlscale.roma import model, settings


@dataclass(frozen=True, kw_only=True)
class ModelSeen:
    """One model as measured at a control step."""

    name: str
    group: str
    """Its group of processes at the CPU port."""
    spec: model.ModelSpec
    arrivals_per_s: float
    cpu_s_per_request: float | None
    """CPU seconds that one request costs; None before the first."""
    percentile_s: float | None
    """Measured over the control window; None without requests."""
    requests: int
    """In the control window."""
    waiting: int
    """Requests in the line."""
    used_cores: float
    """Mean since the last step."""
    mean_s: float | None = None
    """Mean response time over the control window; None without requests."""
    executing: int = 0
    """Requests at the worker."""

    @property
    def outstanding(self) -> int:
        return self.waiting + self.executing


@dataclass(frozen=True)
class LawMemory:
    """What a law remembers of a model between two steps."""

    cores: float | None = None
    """Last wish."""
    trim: float = 1.0
    """Slow correction of the feed-forward."""
    integral: float = 0.0
    """State of an integrating law, in cores."""
    push: float = 0.0
    """Its proportional part, in cores."""
    since_s: float = inf
    """Seconds since the law last moved."""
    wishes: tuple[tuple[float, float], ...] = ()
    """(age in seconds, cores) of earlier wishes, for a law that comes down slowly."""
    used_core_s: float = 0.0
    """Used since the law last moved."""
    contended: bool = False
    """Whether it got less than it wished at the last step."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is the same for all models in one step."""

    host_cores: float
    models: int
    dt_s: float
    control: settings.ControlSettings


Law = Callable[[ModelSeen, LawMemory, Scene], tuple[float, LawMemory]]


def limits(seen: ModelSeen, host_cores: float) -> tuple[float, float]:
    """Least and most cores of a model on this host."""
    high = min(host_cores, seen.spec.max_cores or inf)
    return min(seen.spec.min_cores, high), high


def base(seen: ModelSeen, last: LawMemory, scene: Scene) -> tuple[float, LawMemory]:
    """Ours: arrival rate · CPU per request ÷ utilisation · trim, on each step; `boosts` answers faster."""
    control = scene.control
    trim = latency.trim(
        last.trim,
        measured_s=seen.percentile_s,
        objective_s=seen.spec.objective.seconds,
        rate=control.trim_rate,
        comfortable=control.trim_comfortable,
        low=control.trim_low,
        # What the host cannot give would only wind up.
        high=min(control.trim_high, max(1.0, last.trim)) if last.contended else control.trim_high,
    )
    low, high = limits(seen, scene.host_cores)
    cores = latency.base_cores(
        arrivals_per_s=seen.arrivals_per_s * trim,
        cpu_s_per_request=seen.cpu_s_per_request or 0.0,
        utilisation=control.utilisation,
        low=low,
        high=high,
    )
    if last.cores is not None:
        cores = smoothing.deadband(last.cores, cores, relative=control.deadband)
    cores = min(high, max(low, cores))
    return cores, replace(last, trim=trim, cores=cores)


def prompt(seen: Sequence[ModelSeen], wished: Mapping[str, float], scene: Scene) -> Iterator[tuple[ModelSeen, float]]:
    """Our bases with a floor: who is asked weighs no less than the mean of its peers, as far as that makes it prompt.

    Bases in proportion to the load would give the kernel's attention to whoever uses most, and make short executions
    wait behind long ones. A light model does not use up its part, so all that it costs the others is that order.
    Prompt is who could answer one request in `settings.ControlSettings.prompt_part` of its objective; peers are those
    of the same priority.
    """
    asked = {one.group: one for one in seen if one.arrivals_per_s > 0 and one.cpu_s_per_request}
    for one in seen:
        floor = 0.0
        if one.group in asked:
            peers = [wished[group] for group, other in asked.items() if other.spec.priority == one.spec.priority]
            cost_s = one.cpu_s_per_request or 0.0
            enough = one.arrivals_per_s * cost_s + cost_s / (scene.control.prompt_part * one.spec.objective.seconds)
            floor = min(sum(peers) / len(peers), enough, limits(one, scene.host_cores)[1])
        yield one, max(wished[one.group], floor)


def response_time(seen: ModelSeen, last: LawMemory, scene: Scene) -> tuple[float, LawMemory]:
    """The paper's CT law: every period e = 1/SLA − 1/R, x += K_I·e, cores = ⌈x + K_P·e⌉ to the next 0.1."""
    sla_s = seen.spec.objective.seconds
    error = None if not seen.mean_s else 1 / sla_s - 1 / seen.mean_s
    return _integrating(seen, last, scene, error)


def queue_length(seen: ModelSeen, last: LawMemory, scene: Scene) -> tuple[float, LawMemory]:
    """The paper's second law: the same on the queue, whose set point is q* = SLA·λ (Little's law)."""
    target = max(1.0, seen.spec.objective.seconds * seen.arrivals_per_s)
    # Relative, in the unit of the response-time law's error at a response time of the set point.
    error = (seen.outstanding - target) / target / seen.spec.objective.seconds
    return _integrating(seen, last, scene, error if seen.requests or seen.outstanding else None)


def rules(seen: ModelSeen, last: LawMemory, scene: Scene) -> tuple[float, LawMemory]:
    """The paper's baseline: one core more above 0.8 SLA, one less below 0.2 SLA, then a pause."""
    paper = scene.control.paper
    low, high = limits(seen, scene.host_cores)
    cores = min(high, max(low, _first(last, high, scene)))
    since_s = last.since_s + scene.dt_s
    step = 0.0
    if seen.mean_s is not None and since_s >= paper.rule_cooldown_s:
        sla_s = seen.spec.objective.seconds
        step = paper.rule_cores * ((seen.mean_s > 0.8 * sla_s) - (seen.mean_s < 0.2 * sla_s))
    moved = min(high, max(low, cores + step))
    return moved, replace(last, cores=moved, since_s=0.0 if moved != cores else since_s)


def hpa(seen: ModelSeen, last: LawMemory, scene: Scene) -> tuple[float, LawMemory]:
    """Kubernetes' formula: cores · utilisation ÷ 0.8, nothing within a tenth; up at once, down after a while."""
    rival = scene.control.rival
    low, high = limits(seen, scene.host_cores)
    cores = min(high, max(low, _first(last, high, scene)))
    if last.cores is None:
        return cores, replace(last, cores=cores, since_s=0.0)
    since_s, used_core_s = last.since_s + scene.dt_s, last.used_core_s + seen.used_cores * scene.dt_s
    if since_s < rival.hpa_period_s:
        return cores, replace(last, cores=cores, since_s=since_s, used_core_s=used_core_s)
    ratio = used_core_s / since_s / cores / rival.hpa_utilisation
    wish = cores if abs(ratio - 1) <= rival.hpa_tolerance else cores * ratio
    wishes = [(age + since_s, each) for age, each in last.wishes if age + since_s < rival.hpa_stabilisation_s]
    wishes.append((0.0, wish))
    # Down to the highest recent wish only; up at once.
    steady = wish if wish >= cores else min(cores, max(each for _, each in wishes))
    moved = min(high, max(low, 0.05, steady))
    return moved, replace(last, cores=moved, since_s=0.0, used_core_s=0.0, wishes=tuple(wishes))


def static(seen: ModelSeen, last: LawMemory, scene: Scene) -> tuple[float, LawMemory]:
    """The host divided evenly, whatever happens."""
    cores = min(limits(seen, scene.host_cores)[1], scene.host_cores / max(1, scene.models))
    return cores, replace(last, cores=cores)


def sharing(seen: ModelSeen, last: LawMemory, scene: Scene) -> tuple[float, LawMemory]:
    """No control: every model alike, nothing withheld, nothing promised beyond ``min_cores``."""
    cores = limits(seen, scene.host_cores)[0]
    return cores, replace(last, cores=cores)


LAWS: Mapping[settings.LawName, Law] = {
    "base": base,
    "ct": response_time,
    "queue_length": queue_length,
    "rules": rules,
    "hpa": hpa,
    "static": static,
    "sharing": sharing,
}

INTEGRATING: frozenset[settings.LawName] = frozenset({"ct", "queue_length"})
"""Laws whose state is derived anew when contention gives them less than they wished."""


def derived_anew(memory: LawMemory, granted: float) -> LawMemory:
    """An integrating law's memory after a grant: x = granted − K_P·e, so that nothing winds up."""
    return replace(memory, cores=granted, integral=granted - memory.push)


def _integrating(seen: ModelSeen, last: LawMemory, scene: Scene, error: float | None) -> tuple[float, LawMemory]:
    paper = scene.control.paper
    low, high = limits(seen, scene.host_cores)
    if last.cores is None:
        cores = min(high, max(low, _first(last, high, scene)))
        return cores, replace(last, cores=cores, integral=cores, since_s=0.0)
    since_s = last.since_s + scene.dt_s
    if error is None or since_s < paper.period_s:
        return last.cores, replace(last, since_s=since_s)
    error = min(paper.greatest_error, max(-paper.greatest_error, error))
    integral = last.integral + paper.integral * paper.scale * error
    push = paper.proportional * paper.scale * error
    cores = min(high, max(low, ceil(10 * (integral + push) - 1e-9) / 10))
    return cores, replace(last, cores=cores, integral=cores - push, push=push, since_s=0.0)


def _first(last: LawMemory, high: float, scene: Scene) -> float:
    """What a law without a feed-forward begins with: an even part of the host."""
    return last.cores if last.cores is not None else min(high, scene.host_cores / max(1, scene.models))


@dataclass(frozen=True, kw_only=True)
class LineSeen:
    """One model's line between two control steps."""

    group: str
    base_cores: float
    most_cores: float
    objective_s: float
    left_s: Sequence[float]
    """Seconds until each request is due, rising: those at the worker, and the waiting that can still be in time."""
    executions: int
    """Under way."""
    cpu_s_per_request: float | None

    @property
    def busy_cores(self) -> float:
        """Part of the base that it is using now."""
        return min(self.base_cores, float(self.executions))


@dataclass(frozen=True)
class Boost:
    """Cores lent to one model."""

    cores: float = 0.0
    held_s: float = 0.0
    """How long they stay at least."""


def demand_cores(seen: LineSeen, control: settings.ControlSettings) -> float:
    """Least cores that answer everything in time: the greatest of work due ÷ time left, over all deadlines.

    `settings.ControlSettings.boost_margin` of the objective is kept free, because deadlines that are met exactly
    are missed half the time; what is late already gets a quarter of that.
    """
    cost_s = seen.cpu_s_per_request
    if cost_s is None or not seen.left_s:
        return 0.0
    least_s = max(cost_s, control.boost_margin * seen.objective_s / 4)
    margin_s = control.boost_margin * seen.objective_s
    return max(rank * cost_s / max(left - margin_s, least_s) for rank, left in enumerate(seen.left_s, start=1))


def boosts(
    seen: Sequence[LineSeen],
    memory: Mapping[str, Boost],
    *,
    dt_s: float,
    host_cores: float,
    control: settings.ControlSettings,
) -> Mapping[str, Boost]:
    """Cores beyond the base for lines that would miss deadlines without them, out of what nobody is using.

    A loan raises a ceiling, not a guarantee: a lender that wants its base back takes it by its weight, at once.
    It is held for a while, so that quotas are not rewritten all the time (each write refills the bucket). All
    loans and what is in use of the bases never exceed the host.
    """
    wished = {}
    for one in seen:
        last = memory.get(one.group, Boost())
        demand = min(one.most_cores, demand_cores(one, control)) - one.base_cores
        held_s = max(0.0, last.held_s - dt_s)
        if demand > last.cores * (1 + control.deadband) and demand > 0.02:
            wished[one.group] = Boost(demand, control.boost_hold_s)
        elif held_s > 0 and last.cores > 0:
            wished[one.group] = Boost(max(0.0, min(last.cores, one.most_cores - one.base_cores)), held_s)
        else:
            wished[one.group] = Boost(demand, control.boost_hold_s) if demand > 0.02 else Boost()
    pot = max(0.0, host_cores - sum(one.busy_cores for one in seen))
    total = sum(boost.cores for boost in wished.values())
    scale = 1.0 if total <= pot else pot / total
    return {group: replace(boost, cores=boost.cores * scale) for group, boost in wished.items()}
