"""A federation in one process: no network, a clock that only moves when the simulation says so, and real training.

The same controller and the same policies as on a real federation; sites differ in speed, drop out, stall and come
back by chance, as told. What each site does in a round depends on the seed, the site and the number of the round
alone, so that two policies meet the same luck. All results say that they are simulated.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from typing import Any, Protocol

from airflow_mlscale.federated import checks, faults, limits, model, policy, ports
from airflow_mlscale.federated.controller import SegmentController
from airflow_mlscale.federated.settings import RunSettings


@dataclass(frozen=True, kw_only=True)
class SimulatedSite:
    """How one site behaves."""

    name: str
    overhead_s: float = 1.0
    """From question to answer without the training."""
    epoch_s: float = 1.0
    """Of one local epoch."""
    answers: float = 1.0
    """Chance that it answers when it is asked."""
    straggles: float = 0.0
    """Chance that a round takes it `straggle` times as long."""
    straggle: tuple[float, float] = (3.0, 10.0)
    """Least and most slow-down of such a round."""
    jitter: float = 0.1
    """Standard deviation of the logarithm of its times, from round to round."""
    gone: tuple[tuple[float, float], ...] = ()
    """Seconds of the run, from and to, in which it is not there; infinity for one that dies."""

    def __post_init__(self) -> None:
        for name in ("overhead_s", "epoch_s", "jitter"):
            checks.number(getattr(self, name), name, 0.0)
        for name in ("answers", "straggles"):
            checks.number(getattr(self, name), name, 0.0, 1.0)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SimulatedSite:
        """A site from its fields as JSON."""
        gone = tuple((float(start), float(end)) for start, end in values.get("gone", ()))
        return cls(**{**values, "straggle": tuple(values.get("straggle", (3.0, 10.0))), "gone": gone})


def drawn(
    names: Sequence[str],
    seed: int,
    *,
    overhead_s: float = 4.0,
    epoch_s: float = 4.0,
    speed_spread: float = 0.8,
    flaky: float = 0.15,
    flaky_answers: float = 0.5,
    straggles: float = 0.05,
) -> list[SimulatedSite]:
    """Sites of random speed.

    Args:
        names: of the sites.
        seed: the same one draws the same sites.
        overhead_s: median of their overheads, which differ half as much as their speeds.
        epoch_s: median time of an epoch.
        speed_spread: σ of the log-normal law of the speeds.
        flaky: part of the sites that do not always answer, rounded.
        flaky_answers: chance with which those answer.
        straggles: chance of each site in each round to stall.
    """
    chance = random.Random(f"sites/{seed}")  # noqa: S311 - a reproducible choice, not a secret
    unsure = set(chance.sample(list(names), round(flaky * len(names))))
    return [
        SimulatedSite(
            name=name,
            overhead_s=overhead_s * exp(chance.gauss(0, speed_spread / 2)),
            epoch_s=epoch_s * exp(chance.gauss(0, speed_spread)),
            answers=flaky_answers if name in unsure else 1.0,
            straggles=straggles,
        )
        for name in names
    ]


@dataclass(frozen=True)
class Trained:
    """What training on a site gave."""

    weights: ports.Weights
    samples: int
    loss: float
    """Of the last epoch."""
    first_loss: float
    """Of the first one."""
    value: float | None = None
    """The target's metric of the weights that it began with, where the sites measure."""
    value_loss: float | None = None
    value_samples: int = 0


class Trainer(Protocol):
    """Trains on the data of the sites, in this process."""

    def train(self, site: str, weights: ports.Weights, *, epochs: int, batch_size: int, number: int) -> Trained:
        """Train one site from ``weights`` in round ``number``; what it raises becomes the site's error."""


@dataclass
class Clock:
    """Simulated seconds."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class SimulatedSites:
    """`ports.Sites` on simulated time."""

    sites: Sequence[SimulatedSite]
    trainer: Trainer
    clock: Clock
    seed: int = 0
    server_s: float = 1.0
    """What a round takes on the server: combination, evaluation, checkpoint."""
    node_s: float = field(init=False, default=0.0)
    """Time that sites really spent, answers that nobody waited for included."""
    compute_s: float = field(init=False, default=0.0)
    """Time of training in it."""
    history: list[tuple[float, float, float]] = field(init=False, default_factory=list)
    """After each round: the clock, `node_s` and `compute_s`."""
    _busy_until: dict[str, float] = field(init=False, default_factory=dict)
    _under_way: list[tuple[_Try, policy.RoundPlan, float, ports.Weights]] = field(init=False, default_factory=list)
    """Tries that their round did not wait for: with its plan, its start and what it sent."""

    def names(self) -> Sequence[str]:
        return [site.name for site in self.sites]

    def train(self, plan: policy.RoundPlan, weights: ports.Weights) -> list[model.SiteAnswer]:
        began_s = self.clock.now_s
        by_name = {site.name: site for site in self.sites}
        tries = [each for name in plan.asked if (each := self._try(by_name[name], plan, began_s)) is not None]
        heard, open_s = _until_closed(plan, sorted(tries, key=lambda each: each.elapsed_s))
        answers = [self._answer(each, plan, weights) for each in heard]
        self._under_way += [(each, plan, began_s, weights) for each in tries if each not in heard]
        self.clock.now_s = began_s + open_s
        return answers

    def returned(self) -> Sequence[str]:
        return ()  # sites that are away stay in their job

    def late(self) -> list[model.SiteAnswer]:
        now_s = self.clock.now_s
        over = [each for each in self._under_way if each[2] + each[0].elapsed_s <= now_s]
        self._under_way = [each for each in self._under_way if each not in over]
        self.clock.now_s += self.server_s  # asked once a round, before the server does its part
        self.history.append((self.clock.now_s, self.node_s, self.compute_s))
        return [self._answer(done, plan, weights) for done, plan, _, weights in over]

    def _try(self, site: SimulatedSite, plan: policy.RoundPlan, began_s: float) -> _Try | None:
        chance = random.Random(f"{self.seed}/{plan.number}/{site.name}")  # noqa: S311 - as above
        there, jitter, stalls, slow = (
            chance.random(),
            chance.gauss(0, 1),
            chance.random(),
            chance.uniform(*site.straggle),
        )
        if there >= site.answers or any(start <= began_s < end for start, end in site.gone):
            return None
        factor = exp(site.jitter * jitter) * (slow if stalls < site.straggles else 1.0)
        train_s = site.epoch_s * plan.local_epochs[site.name] * factor
        busy_s = site.overhead_s * factor + train_s
        starts_s = max(began_s, self._busy_until.get(site.name, 0.0))
        self._busy_until[site.name] = starts_s + busy_s
        self.node_s += busy_s
        self.compute_s += train_s
        return _Try(site.name, starts_s + busy_s - began_s, train_s)

    def _answer(self, done: _Try, plan: policy.RoundPlan, weights: ports.Weights) -> model.SiteAnswer:
        epochs = plan.local_epochs[done.site]
        try:
            seen = self.trainer.train(done.site, weights, epochs=epochs, batch_size=plan.batch_size, number=plan.number)
        except Exception as exc:  # the user's code may raise anything; the controller must hear it
            return model.SiteAnswer(site=done.site, error=faults.raised(exc))
        return model.SiteAnswer(
            site=done.site, samples=seen.samples, loss=seen.loss, train_s=done.train_s, elapsed_s=done.elapsed_s,
            epochs=epochs, number=plan.number, utility=seen.first_loss, weights=seen.weights,
            value=seen.value, value_loss=seen.value_loss, value_samples=seen.value_samples,
        )  # fmt: skip


@dataclass(frozen=True)
class _Try:
    """A site at work on a round."""

    site: str
    elapsed_s: float
    train_s: float


def _until_closed(plan: policy.RoundPlan, tries: Sequence[_Try]) -> tuple[list[_Try], float]:
    """Who answers before the policy closes the round, and when that is."""
    heard: list[_Try] = []
    elapsed_s = 0.0

    def left_s() -> float:
        times = [each.elapsed_s for each in heard]
        return policy.seconds_to_close(plan, answered_after_s=times, failed=0, elapsed_s=elapsed_s)

    for each in tries:
        if elapsed_s + left_s() < each.elapsed_s:
            break
        heard.append(each)
        elapsed_s = each.elapsed_s
    return heard, elapsed_s + left_s()


@dataclass
class MemoryStore:
    """`ports.RunStore` without a disk."""

    state: model.RunState | None = None
    _weights: ports.Weights | None = None
    _memory: ports.Weights = ()
    _best: tuple[int, ports.Weights] = (0, ())
    """The best round and the weights that were evaluated in it."""

    def begin(self, segment: int) -> tuple[model.RunState | None, ports.Weights | None]:
        return self.state, self._weights

    def memory(self) -> ports.Weights:
        return self._memory

    def checkpoint(
        self,
        state: model.RunState,
        weights: ports.Weights | None = None,
        memory: ports.Weights = (),
        measured: ports.Weights = (),
    ) -> None:
        self.state = state
        if weights is not None:
            self._weights, self._memory = weights, memory
            if state.best_round == state.rounds[-1].number:
                self._best = state.best_round, measured or weights

    def best_weights(self, state: model.RunState) -> ports.Weights:
        return self._best[1]

    def changes(self) -> Sequence[limits.Change]:
        return ()

    def note(self, state: model.RunState, number: int, change: limits.Change, told: str) -> None: ...

    def stop_asked(self) -> bool:
        return False

    def end_asked(self) -> str | None:
        return None

    def interrupted(self) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What a simulated run came to."""

    state: model.RunState
    wall_s: float
    node_s: float
    """Site time really spent; the state's own account ends with each round."""
    compute_s: float
    history: Sequence[tuple[float, float, float]] = ()
    """After each round: the time, site time and training time so far."""

    @property
    def reached(self) -> bool:
        """Whether the target was held."""
        return self.state.status == model.Status.REACHED


def simulate(
    run: RunSettings,
    sites: Sequence[SimulatedSite],
    trainer: Trainer,
    evaluator: ports.Evaluator,
    *,
    store: ports.RunStore | None = None,
    output_dir: Path = Path("."),
    server_s: float = 1.0,
    segment: int = 1,
    seed: int | None = None,
    began_s: float = 0.0,
) -> Simulated:
    """Play a segment of a run to its end.

    Args:
        run: settings; ``deadline_at`` is a time of the simulated clock.
        sites: who takes part, and how they behave.
        trainer: trains for them.
        evaluator: the server's model and held-out data.
        store: where the run is recorded; default is memory.
        output_dir: where the evaluator exports the model to.
        server_s: what a round takes on the server.
        segment: its number.
        seed: of the sites' luck; default is that of the run.
        began_s: what the clock shows at the start.
    """
    clock = Clock(began_s)
    federation = SimulatedSites(sites, trainer, clock, seed=run.seed if seed is None else seed, server_s=server_s)
    state = SegmentController(
        run=run, segment=segment, sites=federation, evaluator=evaluator, store=store or MemoryStore(),
        output_dir=output_dir, now=clock, simulated=True,
    ).play()  # fmt: skip
    return Simulated(
        state=state, wall_s=clock.now_s - began_s, node_s=federation.node_s, compute_s=federation.compute_s,
        history=tuple(federation.history),
    )  # fmt: skip
