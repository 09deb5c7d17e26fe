"""What is observed of each site: how fast, how reliable and how useful it is, and what it has cost.

Pure laws on one small record per site, which travels with the run's checkpoint, so that a new segment begins with
what the last one has learned. Does not belong here: whom to ask next (the policies).

For site i: overhead c_i in seconds (transport, waiting, start), seconds per epoch b_i, spread v_i (variance of the
logarithm of actual ÷ expected time), reliability p_i (mean of a Beta posterior that forgets), utility U_i (the loss
that its samples had before they were trained on, times √n_i: Lai et al., *Oort*, OSDI 2021, §4.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import exp, log, sqrt
from statistics import median
from typing import Any, Protocol

LEARNING = 0.4
"""Weight of the newest time in the moving averages of the logarithms; the first one counts fully."""
SPREAD_LEARNING = 0.2
FIRST_SPREAD = 0.05
MOST_SURPRISE = 1.5
"""Largest |log(actual ÷ expected)| that is learned at once: one stall must not brand a site for long."""
FORGETTING = 0.9
"""Of the Beta posterior, per judged round: what a site did thirty rounds ago says little."""
PRIOR_HITS, PRIOR_MISSES = 2.0, 0.1
"""A site that nobody has asked is believed to answer."""
OVERDUE = 1.3
"""A silent site is judged once the round was open this many times as long as it was expected to take."""


class Answer(Protocol):
    """What has to be known of an answer; `model.SiteAnswer` is one."""

    @property
    def site(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def train_s(self) -> float: ...
    @property
    def elapsed_s(self) -> float: ...
    @property
    def epochs(self) -> int: ...
    @property
    def number(self) -> int: ...
    @property
    def utility(self) -> float | None: ...
    @property
    def error(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class Site:
    """What is known of one site."""

    name: str
    samples: int = 0
    """Its training samples; 0 before its first answer."""
    overhead_s: float | None = None
    """c_i; None before its first answer."""
    epoch_s: float | None = None
    """b_i; None before its first answer."""
    spread: float = FIRST_SPREAD
    """v_i."""
    hits: float = PRIOR_HITS
    misses: float = PRIOR_MISSES
    loss: float | None = None
    """RMS (or mean) loss of its samples before it trained on them, at its last answer."""
    asked: int = 0
    """Rounds in which it got the model."""
    answered: int = 0
    """Rounds in which its weights came in time and were good."""
    unanswered: int = 0
    """Rounds in a row in which it was asked and was not heard of."""
    last_asked: int = 0
    """Number of the round; 0 for never."""
    last_answered: int = 0
    busy_s: float = 0.0
    """Seconds that it was held by rounds: to its answer, or to the end of the round."""
    gigabytes: float = 0.0
    """Sent to it and received from it."""

    @property
    def reliability(self) -> float:
        """p_i: the chance that it answers when asked."""
        return self.hits / (self.hits + self.misses)

    @property
    def known(self) -> bool:
        """Whether its speed is known."""
        return self.overhead_s is not None and self.epoch_s is not None

    @property
    def utility(self) -> float:
        """U_i·√n_i, Oort's statistical utility; 0 before its first answer."""
        return (self.loss or 0.0) * sqrt(self.samples)

    def expected_s(self, epochs: int) -> float | None:
        """Mean time from question to answer, (c_i + b_i·E)·e^{v_i/2}; None while its speed is not known."""
        if self.overhead_s is None or self.epoch_s is None:
            return None
        return (self.overhead_s + self.epoch_s * epochs) * exp(self.spread / 2)

    def epochs_within(self, seconds: float, most: int) -> int:
        """Epochs, 1 … ``most``, that it is expected to finish in time; 1 if not even that."""
        whole = self.expected_s(0)
        if whole is None or self.epoch_s is None:
            return most
        each = self.epoch_s * exp(self.spread / 2)
        if each * most <= seconds - whole or each <= 0:
            return most
        return max(1, min(most, int((seconds - whole) / each)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Site:
        """A site from its JSON object; fields of a later version are ignored."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


def present(known: Iterable[Site], names: Iterable[str]) -> tuple[Site, ...]:
    """The sites of these names, with what is known of them. Who was silent may be back: it is asked again."""
    before = {site.name: site for site in known}
    return tuple(replace(before[name], unanswered=0) if name in before else Site(name=name) for name in names)


def merged(known: Iterable[Site], fresh: Iterable[Site]) -> tuple[Site, ...]:
    """All sites ever seen, the fresh records in place of the older ones; by name."""
    return tuple(sorted({**{s.name: s for s in known}, **{s.name: s for s in fresh}}.values(), key=lambda s: s.name))


def typical_s(sites: Sequence[Site], epochs: int) -> float | None:
    """Median expected time over the sites whose speed is known; None if there are none."""
    times = [seconds for site in sites if (seconds := site.expected_s(epochs)) is not None]
    return median(times) if times else None


def remember(
    sites: Sequence[Site],
    *,
    number: int,
    epochs: Mapping[str, int],
    answers: Sequence[Answer],
    open_s: float,
    starting: bool = False,
    model_gigabytes: float = 0.0,
) -> tuple[Site, ...]:
    """The records after a round.

    Args:
        sites: the records before.
        number: of the round.
        epochs: local epochs of each site that was asked.
        answers: that came before the round closed, good ones and errors.
        open_s: how long the round was open.
        starting: whether the sites were starting up in it: then nothing is learned of overheads.
        model_gigabytes: size of the model, one way.
    """
    heard = {answer.site: answer for answer in answers}
    return tuple(
        _after(site, heard.get(site.name), number, epochs[site.name], open_s, starting, model_gigabytes)
        if site.name in epochs
        else site
        for site in sites
    )


def remember_late(
    sites: Sequence[Site], answers: Sequence[Answer], *, used: bool, model_gigabytes: float = 0.0
) -> tuple[Site, ...]:
    """The records after answers to rounds that had closed: a slow site is no dead one.

    Args:
        sites: the records before.
        answers: good ones, with the time since the start of the round that they answer.
        used: whether their weights count.
        model_gigabytes: size of an answer.
    """
    late = {answer.site: answer for answer in answers if answer.error is None and answer.epochs > 0}
    return tuple(_late(site, late[site.name], used, model_gigabytes) if site.name in late else site for site in sites)


def _late(site: Site, answer: Answer, used: bool, model_gigabytes: float) -> Site:
    learned = replace(
        _judged(_timed(site, answer, answer.epochs, starting=False), 1.0),
        unanswered=0,
        gigabytes=site.gigabytes + model_gigabytes,
    )
    if not used:
        return learned
    return replace(
        learned, answered=site.answered + 1, last_answered=max(site.last_answered, answer.number),
        samples=answer.samples, loss=site.loss if answer.utility is None else answer.utility,
    )  # fmt: skip


def _after(
    site: Site, answer: Answer | None, number: int, epochs: int, open_s: float, starting: bool, model_gigabytes: float
) -> Site:
    busy_s = open_s if answer is None else min(open_s, answer.elapsed_s)
    site = replace(
        site, asked=site.asked + 1, last_asked=number, busy_s=site.busy_s + busy_s,
        gigabytes=site.gigabytes + model_gigabytes * (1 if answer is None else 2),
    )  # fmt: skip
    if answer is None:
        expected_s = site.expected_s(epochs)
        overdue = expected_s is None or open_s >= OVERDUE * expected_s
        return replace(_judged(site, 0.0) if overdue else site, unanswered=site.unanswered + 1)
    if answer.error is not None:
        return replace(_judged(site, 0.0), unanswered=0)
    learned = _timed(site, answer, epochs, starting=starting)
    return replace(
        _judged(learned, 1.0), unanswered=0, answered=site.answered + 1, last_answered=number, samples=answer.samples,
        loss=site.loss if answer.utility is None else answer.utility,
    )  # fmt: skip


def _judged(site: Site, hit: float) -> Site:
    hits = PRIOR_HITS + FORGETTING * (site.hits - PRIOR_HITS) + hit
    misses = PRIOR_MISSES + FORGETTING * (site.misses - PRIOR_MISSES) + (1 - hit)
    return replace(site, hits=hits, misses=misses)


def _timed(site: Site, answer: Answer, epochs: int, *, starting: bool) -> Site:
    epoch_s = answer.train_s / epochs
    if starting:
        return replace(site, epoch_s=epoch_s if site.epoch_s is None else _moved(site.epoch_s, epoch_s))
    overhead_s = max(0.0, answer.elapsed_s - answer.train_s)
    expected_s = site.expected_s(epochs)
    if expected_s is None or site.overhead_s is None or site.epoch_s is None:
        return replace(site, overhead_s=overhead_s, epoch_s=epoch_s)
    surprise = _clipped(_ratio(overhead_s + answer.train_s, expected_s))
    return replace(
        site,
        overhead_s=_moved(site.overhead_s, overhead_s),
        epoch_s=_moved(site.epoch_s, epoch_s),
        spread=(1 - SPREAD_LEARNING) * site.spread + SPREAD_LEARNING * surprise**2,
    )


def _moved(old: float, fresh: float) -> float:
    return max(old, _LEAST_S) * exp(LEARNING * _clipped(_ratio(fresh, old)))


def _ratio(fresh: float, old: float) -> float:
    return log(max(fresh, _LEAST_S) / max(old, _LEAST_S))


def _clipped(surprise: float) -> float:
    return max(-MOST_SURPRISE, min(MOST_SURPRISE, surprise))


_LEAST_S = 1e-3
"""Shorter times are not told apart."""
