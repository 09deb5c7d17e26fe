"""What a federated run is about: the quality it must reach, its rounds, its state and its result.

Belongs here: values that the controller, the operators and the sensor share, and their JSON forms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from math import isfinite, sqrt
from statistics import NormalDist, fmean, stdev
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import checks, metrics
from airflow_mlscale.federated.sites import Site

BOUND_ROUNDS = 5
"""Evaluations behind a confidence bound."""


@dataclass(frozen=True)
class Quality:
    """The one condition of a run: a metric on data that nobody trains on has a value, several evaluations in a row."""

    metric: str
    """Name of a metric that Keras knows (see `metrics.METRICS`) or that a client script tells, or ``module:name`` of
    one's own: a ``keras.metrics.Metric`` class, a function that returns one, or a function ``(y_true, y_pred)``."""
    value: float
    """What it must reach: at least this, or at most this for errors and losses."""
    in_a_row: int = 2
    """Evaluations in a row that must reach it, so that one lucky round does not end a run."""
    confidence: float | None = None
    """The value is also held when, with this probability, the mean of the last evaluations reaches it: 0.95, say."""
    higher_is_better: bool | None = None
    """Whether greater values are better; known, and not to be given, of Keras' metrics. A bool once it is built."""
    best: float | None = None
    """The best value that a metric of one's own can have; None for 1, or 0 where lower is better."""

    def __post_init__(self) -> None:
        metrics.check_value("target", self.scale, self.value)
        object.__setattr__(self, "higher_is_better", self.scale.higher_is_better)
        if not isinstance(self.in_a_row, int) or isinstance(self.in_a_row, bool) or self.in_a_row < 1:
            raise errors.InvalidInputError("in_a_row", self.in_a_row, "must be a whole number >= 1")
        if self.confidence is not None:
            checks.within(self.confidence, "confidence", 0.5, 1.0)

    @property
    def scale(self) -> metrics.Metric:
        """What is known of the metric.

        Raises:
            InvalidInputError: too little is.
        """
        return metrics.named(self.metric, higher_is_better=self.higher_is_better, best=self.best)

    def met(self, value: float | None) -> bool:
        """Whether one evaluation reaches the value; a missing or non-finite one does not."""
        if value is None or not isfinite(value):
            return False
        return value >= self.value if self.higher_is_better else value <= self.value

    def held(self, values: Sequence[float]) -> bool:
        """Whether the last `in_a_row` evaluations all reach the value, or a confidence bound of the last ones does."""
        if len(values) >= self.in_a_row and all(self.met(value) for value in values[-self.in_a_row :]):
            return True
        return bool(values) and self.met(values[-1]) and self.met(self.bound(values))

    def bound(self, values: Sequence[float]) -> float | None:
        """The confidence bound of the mean of the last `BOUND_ROUNDS` evaluations; None without `confidence`."""
        last = values[-BOUND_ROUNDS:]
        if self.confidence is None or len(last) < BOUND_ROUNDS or not all(isfinite(value) for value in last):
            return None
        off = NormalDist().inv_cdf(self.confidence) * stdev(last) / sqrt(len(last))
        return fmean(last) - off if self.higher_is_better else fmean(last) + off

    def why_held(self, values: Sequence[float]) -> str:
        """For people, of values that hold."""
        if all(self.met(value) for value in values[-self.in_a_row :]):
            return f"{self} held {self.in_a_row} evaluations in a row"
        return f"{self} holds with confidence {self.confidence:g} over the last {BOUND_ROUNDS} evaluations"

    def better(self, value: float, than: float | None) -> bool:
        """Whether ``value`` is a better evaluation than ``than`` (anything finite beats none)."""
        if not isfinite(value):
            return False
        if than is None or not isfinite(than):
            return True
        return value > than if self.higher_is_better else value < than

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Quality:
        """The condition from its JSON object."""
        return cls(**values)

    def __str__(self) -> str:
        return f"{self.metric} {'>=' if self.higher_is_better else '<='} {self.value:g}"


class Status(StrEnum):
    """Where a run stands."""

    STARTING = "starting"
    RUNNING = "running"
    EXPORTING = "exporting"
    REACHED = "reached"
    """Ended with the target."""
    LIMIT = "limit"
    """Ended by a deadline or the number of rounds, below the target, with a usable model."""
    STALLED = "stalled"
    """Ended below the target because its rounds made no progress any more, with a usable model."""
    INFEASIBLE = "infeasible"
    """Ended before its limits because its learning curve does not reach the target within them, with a usable model."""
    STOPPED = "stopped"
    """Asked to end early with what it has: by a sensor or a person, below the target, with a usable model."""
    ABORTED = "aborted"
    """Told to stop and to leave no model."""
    INTERRUPTED = "interrupted"
    """The segment ended before the run did, for example without a quorum; another segment can go on."""
    FAILED = "failed"
    """Ended without a usable model; another segment would fail the same way."""

    @property
    def ended(self) -> bool:
        """Whether the run goes no further by itself."""
        return self.usable or self in (Status.ABORTED, Status.FAILED)

    @property
    def usable(self) -> bool:
        """Whether the run ended with a model: the target, a limit, no hope, or asked to end with what it has."""
        return self in (Status.REACHED, Status.LIMIT, Status.STALLED, Status.INFEASIBLE, Status.STOPPED)


@dataclass(frozen=True, kw_only=True)
class Round:
    """One complete round, as the controller recorded it."""

    number: int
    """From 1."""
    value: float
    """The target's metric: on the server's held-out data after the round, or, where the sites measure, of the model
    that they were sent in it."""
    loss: float | None
    """Loss on the same data; None where a client script tells none."""
    asked: tuple[str, ...]
    """Sites that were sent the model."""
    answered: tuple[str, ...]
    """Sites whose weights were averaged."""
    samples: int
    """Training samples behind those weights."""
    seconds: float
    """Wall time of the round with evaluation and checkpoint."""
    segment: int
    """Segment of the run that did the round."""
    epochs: Mapping[str, int] = field(default_factory=dict)
    """Local epochs of each site that was asked."""
    late: tuple[str, ...] = ()
    """Sites whose answers to earlier rounds came in this one and were averaged too."""
    failed: int = 0
    """Sites that answered with an error, or with what is not believed."""
    effort: float = 1.0
    """Effective work of the round, see `curve.effort`."""
    node_s: float = 0.0
    """Seconds that sites were held by the round, summed over the sites."""
    compute_s: float = 0.0
    """Seconds of training in the answers that came in time."""
    gigabytes: float = 0.0
    """Model and answers on the wire."""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Round:
        """A round from its JSON object; fields of a later version are ignored."""
        known = {f.name for f in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        kept |= {name: tuple(kept[name]) for name in ("asked", "answered", "late") if name in kept}
        return cls(**kept)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Everything about a run but its weights; written after each round, resumed from, and watched."""

    run_id: str
    status: Status = Status.STARTING
    reason: str = ""
    """Why the run has this status, for people."""
    metric: str = "accuracy"
    target: float = 0.0
    segment: int = 0
    started_at: float = 0.0
    """Start of the first segment, seconds since the epoch."""
    updated_at: float = 0.0
    deadline_at: float | None = None
    max_rounds: int = 0
    rounds: tuple[Round, ...] = ()
    failed_rounds: int = 0
    """Rounds in a row without a quorum."""
    best_round: int = 0
    """The round whose evaluation is best, and whose evaluated weights are kept; 0 before the first."""
    epsilon: float | None = None
    """Privacy that the models so far have spent, for the settings' δ; None where none is promised."""
    saved_model: str | None = None
    keras_model: str | None = None
    weights_file: str | None = None
    """Exported weights, of runs without a Keras model."""
    sites: tuple[Site, ...] = ()
    """What is known of every site that was ever seen."""
    simulated: bool = False
    """Whether no real site took part."""
    doubts: int = 0
    """Rounds in a row after which the target looked out of reach."""
    forecast: Mapping[str, Any] | None = None
    """What was predicted after the last round, see `forecast.Forecast`."""
    renewals: int = 0
    """Segments that ended for sites that were back, see `renewal`."""
    changes: int = 0
    """Changes of limits and target that the run has heard of, see `limits`."""

    @property
    def exported(self) -> str | None:
        """What the run has exported: a directory, or a file where there is no Keras model."""
        return self.saved_model or self.weights_file

    @property
    def node_seconds(self) -> float:
        """Spent so far, rounds without a quorum included."""
        return sum(site.busy_s for site in self.sites)

    @property
    def gigabytes(self) -> float:
        """Moved so far, rounds without a quorum included."""
        return sum(site.gigabytes for site in self.sites)

    @property
    def values(self) -> list[float]:
        """The metric after each round."""
        return [each.value for each in self.rounds]

    @property
    def value(self) -> float | None:
        """The metric after the last round."""
        return self.rounds[-1].value if self.rounds else None

    @property
    def best_value(self) -> float | None:
        """The metric of the best round."""
        return next((each.value for each in self.rounds if each.number == self.best_round), None)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunState:
        """A state from its JSON object; fields of a later version are ignored."""
        known = {f.name for f in fields(cls)}
        kept = {key: value for key, value in values.items() if key in known}
        rounds = tuple(Round.from_json(each) for each in kept.pop("rounds", ()))
        sites = tuple(Site.from_json(each) for each in kept.pop("sites", ()))
        return cls(**{**kept, "status": Status(kept["status"]), "rounds": rounds, "sites": sites})


@dataclass(frozen=True, kw_only=True)
class SiteAnswer:
    """What one site sends back in a round."""

    site: str
    samples: int = 0
    loss: float | None = None
    """Training loss of its last local epoch."""
    train_s: float = 0.0
    """Seconds of training alone."""
    elapsed_s: float = 0.0
    """Seconds from the start of the round to its arrival."""
    epochs: int = 0
    """Local epochs that it made; 0 for unknown."""
    number: int = 0
    """The round that it answers."""
    utility: float | None = None
    """Loss of its samples in the first local epoch: what they still had to teach."""
    value: float | None = None
    """The target's metric of the model that it was sent, on data that it does not train on; where sites measure."""
    value_loss: float | None = None
    """Loss on the same data."""
    value_samples: int = 0
    """Samples that were measured on; 0 for as many as it trains on."""
    error: str | None = None
    """Why the site could not train, in words; then it has no weights."""
    weights: Sequence[Any] = field(default=(), repr=False)
    """Arrays in the model's own order."""
