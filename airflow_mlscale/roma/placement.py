"""Which model gets a place on which GPU, and which device runs the next batch. Pure.

Two laws. `place` gives GPU memory to the models that save most CPU time with it, within the budget that NVML
leaves, and takes it from one only for another that is worth clearly more, loading included. `takes` lets a
device that is free run the next batch only if no other one is expected to be done with it sooner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf

from airflow_mlscale.roma import devices, settings


@dataclass(frozen=True, kw_only=True)
class Option:
    """What one device expects of the next batch; all in seconds from now."""

    first_s: float
    """Until the most urgent request would be answered."""
    all_s: float
    """Until all that waits would be, if this device did all of it; never below ``first_s``."""


def takes(here: Option, others: Iterable[Option], *, slack_s: float) -> bool:
    """Whether a device that is free runs the next batch; else it is left to another, free or soon to be.

    Of two free devices at least one takes it.

    Args:
        here: the device that is free.
        others: the devices beside it.
        slack_s: until the most urgent request is due; infinite if none can be in time any more.
    """
    late = here.first_s > slack_s
    for other in others:
        if late and other.first_s <= slack_s:
            return False
        if here.first_s > max(other.first_s, other.all_s):
            return False
    return True


def option(*, ready_s: float, batch_s: float, batch: int, waiting: int, each_s: float) -> Option:
    """What a device expects.

    Args:
        ready_s: seconds until it can begin.
        batch_s: seconds for its next batch.
        batch: requests in that.
        waiting: requests that wait.
        each_s: seconds for each further request.
    """
    first_s = ready_s + batch_s
    return Option(first_s=first_s, all_s=first_s + max(0, waiting - batch) * each_s)


@dataclass(frozen=True, kw_only=True)
class GpuSeen:
    """One GPU with what leaves room on it."""

    uuid: str
    total_bytes: int
    used_bytes: int
    """Of all processes, as NVML has it."""
    own_bytes: int
    """Of our executor among it: as NVML has it, else what it was promised; 0 without an executor."""


@dataclass(frozen=True, kw_only=True)
class ModelSeen:
    """One serving version of a model."""

    group: str
    name: str
    preference: devices.Preference = "auto"
    priority: int = 0
    need_bytes: int
    """Memory on a GPU: measured if it was there, else estimated."""
    arrivals_per_s: float = 0.0
    cpu_s: float = 0.0
    """Seconds for one request on the CPU."""
    gpu_s: float | None = None
    """Seconds for one on a GPU; None if it was never there."""
    idle_s: float = inf
    """Since its last request."""
    load_s: float = 1.0
    """Seconds to bring it to a GPU."""
    gpu: str | None = None
    """Where it is, or is being loaded."""
    barred: bool = False
    """Whether it had better not be tried now: it failed on a GPU a moment ago, or cannot run there."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Bring a model to a GPU."""

    group: str
    gpu: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Evict:
    """Take a model from its GPU; its CPU worker goes on alone."""

    group: str
    gpu: str
    reason: str


Action = Load | Evict


def worth(one: ModelSeen, gpu: settings.GpuSettings) -> float:
    """CPU seconds saved each second by having this model on a GPU."""
    gpu_s = one.cpu_s / gpu.assumed_gain if one.gpu_s is None else one.gpu_s
    return one.arrivals_per_s * max(0.0, one.cpu_s - gpu_s)


def free_bytes(gpu: GpuSeen, residents: Iterable[ModelSeen], control: settings.GpuSettings) -> float:
    """What models may still be given: the budget without other processes, the runtime and what is promised."""
    promised = control.context_bytes + sum(one.need_bytes for one in residents)
    others = max(0, gpu.used_bytes - gpu.own_bytes)
    return gpu.total_bytes * (1 - control.headroom) - others - promised


def budget_bytes(gpu: GpuSeen, control: settings.GpuSettings) -> int:
    """What all models and the runtime together may take of it."""
    return max(0, int(free_bytes(gpu, (), control)) + control.context_bytes)


def place(gpus: Sequence[GpuSeen], models: Sequence[ModelSeen], control: settings.GpuSettings) -> list[Action]:
    """What to move now. What an eviction makes room for is loaded by a later step, once the room is there."""
    actions: list[Action] = []
    where = {one.group: one for one in models}
    for one in models:
        if one.gpu and one.preference == "cpu":
            actions.append(Evict(group=one.group, gpu=one.gpu, reason="its device is cpu now"))
            where[one.group] = replace(one, gpu=None)
    for gpu in gpus:
        actions += _shrink(gpu, where, control)
    wishing = [one for one in where.values() if not one.gpu and one.preference != "cpu" and not one.barred]
    leaving = {action.group for action in actions}
    for one in sorted((w for w in wishing if w.group not in leaving), key=lambda w: _rank(w, control), reverse=True):
        found = _fit(one, gpus, where, control) or _make_room(one, gpus, where, control)
        for action in found:
            seen = where[action.group]
            where[action.group] = replace(seen, gpu=action.gpu if isinstance(action, Load) else None, barred=True)
        actions += found
    return actions


def _on(gpu: str, where: dict[str, ModelSeen]) -> list[ModelSeen]:
    return [one for one in where.values() if one.gpu == gpu]


def _rank(one: ModelSeen, control: settings.GpuSettings) -> tuple[float, ...]:
    """Who is placed first and evicted last."""
    return (one.preference == "gpu", one.priority, worth(one, control), -one.idle_s)


def _shrink(gpu: GpuSeen, where: dict[str, ModelSeen], control: settings.GpuSettings) -> list[Action]:
    """Another program took memory, or a model turned out larger: the least worthy go until the rest fits."""
    actions: list[Action] = []
    residents = sorted(_on(gpu.uuid, where), key=lambda one: _rank(one, control))
    while residents and free_bytes(gpu, residents, control) < 0:
        victim = residents.pop(0)
        where[victim.group] = replace(victim, gpu=None, barred=True)
        actions.append(Evict(group=victim.group, gpu=gpu.uuid, reason="the GPU's memory became too short"))
    return actions


def _fit(
    one: ModelSeen, gpus: Sequence[GpuSeen], where: dict[str, ModelSeen], control: settings.GpuSettings
) -> list[Action]:
    """The GPU with room that is least busy with its models."""
    roomy = [gpu for gpu in gpus if free_bytes(gpu, _on(gpu.uuid, where), control) >= one.need_bytes]
    if not roomy:
        return []

    def busy(gpu: GpuSeen) -> tuple[float, float]:
        residents = _on(gpu.uuid, where)
        seconds = (
            m.arrivals_per_s * (m.cpu_s / control.assumed_gain if m.gpu_s is None else m.gpu_s) for m in residents
        )
        return sum(seconds), -free_bytes(gpu, residents, control)

    best = min(roomy, key=busy)
    room = free_bytes(best, _on(best.uuid, where), control)
    reason = f"{_mib(one.need_bytes)} fit into the {_mib(room)} that are free"
    return [Load(group=one.group, gpu=best.uuid, reason=reason)]


def _make_room(
    one: ModelSeen, gpus: Sequence[GpuSeen], where: dict[str, ModelSeen], control: settings.GpuSettings
) -> list[Action]:
    """Evictions on one GPU that are worth it, going by what all of it saves over the horizon."""
    best: tuple[float, list[Action]] = (inf, [])
    for gpu in gpus:
        residents = sorted(_on(gpu.uuid, where), key=lambda other: _rank(other, control))
        victims: list[ModelSeen] = []
        while residents and free_bytes(gpu, residents, control) < one.need_bytes:
            victims.append(residents.pop(0))
        if not victims or free_bytes(gpu, residents, control) < one.need_bytes:
            continue
        lost = sum(worth(victim, control) for victim in victims)
        if lost < best[0] and _outweighs(one, victims, control):
            reason = f"{one.name} is worth more of the GPU's memory"
            best = (lost, [Evict(group=victim.group, gpu=gpu.uuid, reason=reason) for victim in victims])
    return best[1]


def _outweighs(one: ModelSeen, victims: Sequence[ModelSeen], control: settings.GpuSettings) -> bool:
    """Whether a model should displace others: by preference, by priority, or by clearly more CPU time saved."""
    tier = (one.preference == "gpu", one.priority)
    tiers = [(victim.preference == "gpu", victim.priority) for victim in victims]
    if any(other > tier for other in tiers):
        return False
    if all(other < tier for other in tiers):
        return True
    gain_s = control.horizon_s * worth(one, control) - one.load_s
    return gain_s > control.eviction_gain * control.horizon_s * sum(worth(victim, control) for victim in victims)


def _mib(size: float) -> str:
    return f"{size / 2**20:.0f} MiB"
