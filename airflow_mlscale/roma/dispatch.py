"""Whose execution begins next, across all models of a host.

Pure. A host that runs more executions at once than it has cores slows all of them down; one that runs them in
the order of their deadlines does not. So executions beyond the host's places wait for one, the most urgent
first. Only a model that has none under way, and whose execution is short beside the wait, begins at once: nobody's
long execution stands in the way of a short one, which delays the others by little, and never by more than the
kernel's weights allow. (Letting those begin too whose deadlines are near would, under overload, let all begin.)

Models are protected from each other by credit: each earns its part of the host's cores and pays for what it runs.
Those with credit go before those without, whatever the deadlines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from airflow_mlscale.roma import settings

CREDIT_S = 5.0
"""Seconds of its part that a model can save up, or owe: enough for a burst that it makes up for before and after."""

SHORT_FACTOR = 0.5
"""An execution shorter than this part of the wait for a place does not wait for it."""


@dataclass
class Credit:
    """CPU seconds that a model may run ahead of the others."""

    cores: float = 0.0
    """What it earns in a second."""
    saved_core_s: float = 0.0
    at: float = 0.0

    def promise(self, now: float, cores: float) -> None:
        """Another part from now on."""
        self.earn(now)
        self.cores = cores

    def earn(self, now: float) -> None:
        """Up to now; what was saved stays within `CREDIT_S` of the part."""
        self.saved_core_s = min(CREDIT_S * self.cores, self.saved_core_s + self.cores * max(0.0, now - self.at))
        self.at = now

    def pay(self, now: float, core_s: float) -> None:
        """An execution that costs so much begins; what it did not cost after all comes back as a negative one."""
        self.earn(now)
        least, most = -CREDIT_S * max(self.cores, 0.1), CREDIT_S * self.cores
        self.saved_core_s = min(most, max(least, self.saved_core_s - core_s))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One model with requests waiting and a place of its own free."""

    name: str
    """Its group."""
    deadline: float
    """Of its most urgent request that can still be in time; infinite if there is none."""
    oldest: float
    """When the request that waits longest arrived."""
    service_s: float
    """Expected seconds of its next execution."""
    executing: int
    """Executions it has under way."""
    priority: int = 0
    entitled: bool = True
    """Whether it has credit."""
    need_s: float = 0.0
    """Of the paper's H1: by how much its response time is expected to exceed what it should be."""


def deadline(one: Standing) -> tuple[float, ...]:
    """Ours: with credit first, then by priority, then by the latest time to begin."""
    return (not one.entitled, -one.priority, one.deadline - one.service_s)


def h1(one: Standing) -> tuple[float, ...]:
    """The paper's: largest need first."""
    return (-one.need_s,)


def arrival(one: Standing) -> tuple[float, ...]:
    """First come, first served."""
    return (one.oldest,)


ORDERS: Mapping[settings.DispatchName, Callable[[Standing], tuple[float, ...]]] = {
    "deadline": deadline,
    "h1": h1,
    "arrival": arrival,
}


def need_s(*, waited_s: float, recent_s: float, service_s: float, sla_s: float, alpha: float) -> float:
    """H1 of the paper: R̂ = ½·(mean wait + profiled service time) + ½·(mean of the last 50), need = R̂ − SLA·(1 − α)."""
    return 0.5 * (waited_s + service_s) + 0.5 * recent_s - sla_s * (1 - alpha)


def choose(
    standings: Iterable[Standing],
    *,
    free: float,
    next_free_s: float,
    order: settings.DispatchName = "deadline",
) -> str | None:
    """The model whose execution begins now; None if all had better wait for a place.

    Args:
        standings: models that could begin one.
        free: places of the host that no execution takes, negative when it is overbooked.
        next_free_s: seconds until the next one is expected to end.
        order: which comes first.
    """
    if free <= 0:
        standings = [one for one in standings if _begins_anyway(one, next_free_s)]
    chosen = min(standings, key=ORDERS[order], default=None)
    return chosen.name if chosen else None


def _begins_anyway(one: Standing, next_free_s: float) -> bool:
    """Whether it has no core yet and little to do beside the wait, so that it delays the others by little."""
    if one.executing or one.deadline == inf:  # what comes meanwhile makes a larger, cheaper batch
        return False
    return one.service_s < SHORT_FACTOR * next_free_s


class Candidate(Protocol):
    """A model as the dispatcher knows it."""

    group: str

    def standing(self, now: float) -> Standing | None:
        """How urgent its next execution is; None if it has none to begin."""

    def begin(self, now: float) -> None:
        """Begin one."""


@dataclass(frozen=True, slots=True)
class _Running:
    group: str
    paid_core_s: float
    end: float
    """When it is expected to end."""
    overdue: float
    """When it holds no place any more: it hangs, or was never timed."""


OVERDUE_FACTOR = 4.0
OVERDUE_S = 0.25
"""An execution that takes this much longer, and so many times what was expected, holds no place of the host."""


def overdue_at(began: float, expected_s: float) -> float:
    """When an execution takes too long to be counted on."""
    return began + max(OVERDUE_FACTOR * expected_s, expected_s + OVERDUE_S)


@dataclass
class Dispatcher:
    """Lets executions begin, in order, on the places of one host."""

    host_places: float
    """Executions the host runs side by side; infinite where ceilings keep models apart."""
    order: settings.DispatchName = "deadline"
    _waiting: dict[str, Candidate] = field(default_factory=dict)
    """By group: those that may have something to begin."""
    _running: dict[int, _Running] = field(default_factory=dict)
    _credits: dict[str, Credit] = field(default_factory=dict)

    def offer(self, now: float, candidate: Candidate) -> None:
        """Something may have changed for a model: let begin what may begin."""
        self._waiting[candidate.group] = candidate
        self.run(now)

    def run(self, now: float) -> None:
        """Let begin whatever may begin now."""
        while self._waiting:
            standings = {}
            for group, candidate in list(self._waiting.items()):
                if (standing := candidate.standing(now)) is None:
                    del self._waiting[group]
                else:
                    standings[group] = standing
            name = choose(
                standings.values(),
                free=self._free(now),
                next_free_s=self._next_free_s(now),
                order=self.order,
            )
            if name is None:
                return
            self._waiting[name].begin(now)

    def began(self, now: float, token: int, group: str, *, expected_s: float, cores: float = 1.0) -> None:
        """An execution began; ``token`` names it until it ends."""
        self._running[token] = _Running(group, expected_s * cores, now + expected_s, overdue_at(now, expected_s))
        if credit := self._credits.get(group):
            credit.pay(now, expected_s * cores)

    def ended(self, now: float, token: int, *, spent_core_s: float | None = None) -> None:
        """An execution ended, however; nothing happens if it was never begun.

        Args:
            now: on the clock of the deadlines.
            token: its name.
            spent_core_s: CPU seconds that it took, as far as that is known. On a busy host an execution takes longer
                than its work, and a model must not pay for waiting.
        """
        running = self._running.pop(token, None)
        if running and spent_core_s is not None and (credit := self._credits.get(running.group)):
            credit.pay(now, spent_core_s - running.paid_core_s)

    def promise(self, now: float, group: str, cores: float) -> None:
        """From now on a model earns credit at this rate."""
        self._credits.setdefault(group, Credit(at=now)).promise(now, cores)

    def entitled(self, now: float, group: str) -> bool:
        """Whether a model has credit, or nobody said yet what its part is."""
        credit = self._credits.get(group)
        if credit is None:
            return True
        credit.earn(now)
        return credit.saved_core_s > 0

    def forget(self, group: str) -> None:
        """A model is gone."""
        self._waiting.pop(group, None)
        self._credits.pop(group, None)

    def looks_again_at(self, now: float, service_s: float) -> float:
        """When a model that waits may begin though nothing has ended: what runs takes too long to be waited for.

        Args:
            now: on the clock of the deadlines.
            service_s: expected seconds of its execution.
        """
        changes = ((one.end + service_s / SHORT_FACTOR, one.overdue) for one in self._running.values())
        return min((at for both in changes for at in both if at > now), default=inf)

    def _free(self, now: float) -> float:
        return self.host_places - sum(one.overdue > now for one in self._running.values())

    def _next_free_s(self, now: float) -> float:
        # One that should have ended is taken to need as long again as it is late: it will hardly end just now.
        return min((abs(one.end - now) for one in self._running.values() if one.overdue > now), default=0.0)
