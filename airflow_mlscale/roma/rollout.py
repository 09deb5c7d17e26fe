"""Watches canaries: compares each with the version that serves, once a second, and rolls it back when it is worse.

What "worse" means is `canary.judge`'s choice; what rolling back does is `deployment`'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import floor

from airflow_mlscale.roma import canary, deployment, fleet, model
from airflow_mlscale.roma import replica as replicas
from airflow_mlscale.runtime import journal, loop

log = logging.getLogger(__name__)

PERIOD_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a canary."""

    name: str
    version: str
    stable_version: str
    new: canary.Counts
    stable: canary.Counts
    opinion: canary.Opinion
    automatic: bool

    @property
    def to_roll_back(self) -> bool:
        return self.automatic and self.opinion.finding is canary.Finding.WORSE


Looks = tuple[Look, ...]
Told = Mapping[str, canary.Finding]
"""The last finding that was written down, by model."""


def look(one: deployment.Deployment, now: float) -> Look | None:
    """Compare a model's canary with the version that serves; None if it has none."""
    trial, rules, active, since = one.trial, one.desired.canary, one.active, one.trial_since
    if trial is None or rules is None or active is None or since is None:
        return None
    seconds = compared_s(rules, since, now)
    new, stable = (_counts(each, trial.spec.objective, now, seconds) for each in (trial, active))
    if trial.supervisor.state is model.State.CRASH_LOOP:
        opinion = canary.Opinion(finding=canary.Finding.WORSE, reason=trial.supervisor.reason)
    else:
        opinion = canary.judge(new, stable, rules, trial.spec.objective)
    return Look(
        name=one.name,
        version=trial.spec.version,
        stable_version=active.spec.version,
        new=new,
        stable=stable,
        opinion=opinion,
        automatic=rules.automatic,
    )


def compared_s(rules: model.Canary, since: float, now: float) -> float:
    """Seconds over which a canary that is tried since then is compared: its window, or all of the trial.

    Requests are counted by whole seconds: the one in which the trial began belongs to it.
    """
    return min(rules.window_s, now - floor(since) + 0.5)


def _counts(replica: replicas.Replica, objective: model.Objective, now: float, seconds: float) -> canary.Counts:
    """Both versions by the new one's objective, or they could not be compared."""
    window = replica.meter.window(now, seconds, objective.percentile)
    late = replica.meter.late(now, seconds, objective.seconds)
    return canary.Counts(requests=window.requests, errors=window.errors, late=late, nan=window.nan)


class RolloutPlant:
    """The canaries of a fleet."""

    def __init__(self, models: fleet.Fleet, book: journal.Journal) -> None:
        self._models = models
        self._book = book

    async def observe(self) -> Looks:
        now = time.monotonic()
        return tuple(seen for one in self._models if (seen := look(one, now)))

    async def act(self, plan: Looks) -> None:
        for step in plan:
            self._book.append(_record(step))
            log.info("%s: canary %s is %s: %s", step.name, step.version, step.opinion.finding, step.opinion.reason)
            if step.to_roll_back:
                await self._models.roll_back(step.name, f"the canary is worse: {step.opinion.reason}", step.version)


def decide(seen: Looks, told: Told, dt_s: float) -> tuple[Looks, Told]:
    """The looks worth writing down: news, and canaries to roll back."""
    plan = tuple(one for one in seen if one.to_roll_back or told.get(one.name) != one.opinion.finding)
    return plan, {one.name: one.opinion.finding for one in seen}


def rollout_loop(plant: RolloutPlant) -> loop.PeriodicLoop[Looks, Looks, Told]:
    """The loop over all canaries."""
    nothing: Told = {}
    return loop.PeriodicLoop(plant, decide, nothing, period_s=PERIOD_S, name="ROMA rollouts")


def by_hand(name: str, version: str, done: str, why: str) -> journal.Record:
    """A promotion or a return that somebody asked for, for the journal."""
    return journal.Record(
        at=time.time(), subject=name, seen={"version": version}, decided={"rollout": done}, reason=why
    )


def _record(step: Look) -> journal.Record:
    seen: dict[str, journal.Value] = {"canary": step.version, "stable": step.stable_version}
    for prefix, counts in (("canary", step.new), ("stable", step.stable)):
        seen |= {
            f"{prefix}_requests": counts.requests,
            f"{prefix}_errors": counts.errors,
            f"{prefix}_late": counts.late,
            f"{prefix}_nan": counts.nan,
        }
    done = "rolled back" if step.to_roll_back else "canary " + step.opinion.finding
    return journal.Record(
        at=time.time(), subject=step.name, seen=seen, decided={"rollout": done}, reason=step.opinion.reason
    )
