"""What users say about how the answers of a round become the next model: three settings, one sentence each.

`Aggregation`: which answers are believed and how they become one. `ServerOptimiser`: how far the model follows them.
`Privacy`: how much a model may tell about any one site. No arrays here (`aggregation`, `optimisers`, `privacy`
have those): what a DAG file imports stays light.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import inf
from typing import Any, Self

from airflow_mlscale.federated import checks

RULES: Mapping[str, str] = {
    "mean": "average, weighted by samples (McMahan et al., AISTATS 2017)",
    "trimmed_mean": "average of each coordinate without its `tolerated` least and greatest values (Yin et al., 2018)",
    "median": "median of each coordinate (Yin et al., ICML 2018)",
    "krum": "the one answer that is nearest to its neighbours (Blanchard et al., NeurIPS 2017)",
    "multi_krum": "average of the answers that are nearest to their neighbours (Blanchard et al., NeurIPS 2017)",
}


@dataclass(frozen=True, kw_only=True)
class _Words:
    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Settings from their JSON object; fields of a later version are ignored."""
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True, kw_only=True)
class Aggregation(_Words):
    """How the answers of a round become one, and which are not believed.

    Every rule but ``mean`` is robust and counts each site once: whoever may lie about weights may lie about samples.
    """

    rule: str = "mean"
    """One of `RULES`."""
    tolerated: int = 1
    """Sites that may answer with anything, on purpose or not, without spoiling the model; for the robust rules.
    ``median`` tolerates any number below half of the answers."""
    max_norm_ratio: float | None = 100.0
    """An update longer than this many times the median update of the round is refused; None refuses none. The
    default only catches what has blown up: honest updates differ by an order of magnitude where sites differ in size
    and in epochs. Needs three answers to judge."""

    def __post_init__(self) -> None:
        checks.one_of(self.rule, "rule", RULES)
        checks.whole(self.tolerated, "tolerated", 1)
        if self.max_norm_ratio is not None:
            checks.within(self.max_norm_ratio, "max_norm_ratio", 1.0)

    @property
    def least_answers(self) -> int:
        """Answers without which the rule cannot keep what it promises.

        A trimmed mean needs one value more than it drops, 2f + 1; Krum's proof needs n ≥ 2f + 3.
        """
        if self.rule == "trimmed_mean":
            return 2 * self.tolerated + 1
        if self.rule in ("krum", "multi_krum"):
            return 2 * self.tolerated + 3
        return 3 if self.rule == "median" else 1


MEAN = Aggregation()
"""The average of the answers: no promise against sites that lie."""

OPTIMISERS: Mapping[str, float] = {"fedavg": 1.0, "fedavgm": 1.0, "fedadagrad": 0.01, "fedadam": 0.01, "fedyogi": 0.01}
"""Server optimisers and their learning rates where none is given: the adaptive ones move every weight by about their
learning rate in a round, whatever the length of the update."""


@dataclass(frozen=True, kw_only=True)
class ServerOptimiser(_Words):
    """How far the model follows the combined update (Reddi et al., *Adaptive Federated Optimization*, ICLR 2021)."""

    name: str = "fedavg"
    """One of `OPTIMISERS`."""
    learning_rate: float | None = None
    """The paper's η; None takes the one of `OPTIMISERS`."""
    momentum: float = 0.9
    """The paper's β₁, of ``fedavgm`` and the adaptive ones; 0 for none."""
    second_moment: float = 0.99
    """The paper's β₂, of ``fedadam`` and ``fedyogi``."""
    adaptivity: float = 1e-3
    """The paper's τ: updates well below it are taken as they come, not scaled up. In units of weights."""
    averaging: float = 0.0
    """Weight of the models before in the one that is evaluated and kept, a moving average of those that the sites get
    (Polyak and Juditsky, 1992): it moves less from round to round with whom was asked. 0 for none."""

    def __post_init__(self) -> None:
        checks.one_of(self.name, "server_optimiser", OPTIMISERS)
        if self.learning_rate is not None:
            checks.within(self.learning_rate, "learning_rate", 0.0)
        for name in ("momentum", "second_moment", "averaging"):
            checks.number(getattr(self, name), name, 0.0)
            checks.check(getattr(self, name) < 1, name, getattr(self, name), "must be below 1")
        checks.within(self.adaptivity, "adaptivity", 0.0)

    @property
    def rate(self) -> float:
        """The learning rate that holds."""
        return OPTIMISERS[self.name] if self.learning_rate is None else self.learning_rate

    @property
    def plain(self) -> bool:
        """Whether the model simply becomes what the answers say."""
        return self.name == "fedavg" and self.rate == 1.0 and self.averaging == 0.0


FEDAVG = ServerOptimiser()
"""The model becomes what the answers say."""

NOISE_AT = ("server", "sites")


@dataclass(frozen=True, kw_only=True)
class Privacy(_Words):
    """Differential privacy of a site's whole data: clipping of its updates and Gaussian noise on their sum.

    What is promised: the models of all rounds together are (ε, δ)-indistinguishable from those of a run in which
    any one site had sent no change at all. That a site takes part, how fast and with how many samples is not hidden.
    """

    clip_norm: float
    """Longest update of a site, L2 over all trained weights; longer ones are shortened to it. The paper's S."""
    noise_multiplier: float
    """Standard deviation of the noise on the sum of updates ÷ ``clip_norm``. The paper's z."""
    delta: float = 1e-5
    """For which ε is told."""
    max_epsilon: float | None = None
    """The run ends (as at a limit) before ε would exceed this; None only tells it."""
    noise_at: str = "server"
    """``server``: noise is added once, to the sum: least noise, and the server's operator is trusted with the sites'
    clipped updates. ``sites``: every site adds its part (the quorum's parts make the whole) before its update leaves,
    so that the sum is private from whoever sees it, also where sums are encrypted; more noise when more sites answer
    than the quorum."""

    def __post_init__(self) -> None:
        checks.within(self.clip_norm, "clip_norm", 0.0)
        checks.within(self.noise_multiplier, "noise_multiplier", 0.0)
        checks.within(self.delta, "delta", 0.0, 1.0)
        if self.max_epsilon is not None:
            checks.within(self.max_epsilon, "max_epsilon", 0.0, inf)
        checks.one_of(self.noise_at, "noise_at", NOISE_AT)

    def site_noise(self, quorum: int) -> float:
        """Standard deviation of the noise that one site adds, so that the quorum's noises make the promised one.

        Variances add: quorum · σ² = (z·S)².
        """
        return self.noise_multiplier * self.clip_norm / quorum**0.5 if self.noise_at == "sites" else 0.0
