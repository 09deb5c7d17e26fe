"""The learning curve of a run: error against effective work, with confidence. Pure.

The error e of a metric is its distance from the best value it can have (1 − accuracy, or the loss itself). Its mean
is taken for a power law with a floor, e(x) = φ + A·(1 + x/κ)^{−s}, of the effective work x: a round counts as its
effort (`effort`). φ, s and κ are a grid of hypotheses; each gets the A that fits best (weighted least squares on
relative residuals, outliers clipped as Huber does, old rounds forgotten slowly) and a weight by its evidence. All
answers are read from that mixture: no sampling, the same answer every time. A floor that the rounds so far cannot
tell from none stays possible, which is what makes an early promise wide and a late one narrow.

Hestness et al., *Deep Learning Scaling is Predictable, Empirically*, 2017, and Domhan et al., *Speeding up Automatic
Hyperparameter Optimization by Extrapolation of Learning Curves*, IJCAI 2015, use the same family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, exp, inf, isfinite, log, sqrt
from statistics import median

from airflow_mlscale.federated.metrics import Metric

LEAST_ROUNDS = 4
"""Rounds without which nothing is said."""
WINDOW = 40
"""Rounds that are looked at; earlier ones lie on another part of the curve."""
FORGETTING = 0.95
"""Weight of a round ÷ weight of the next one."""
FLOORS = (0.0, 0.25, 0.5, 0.65, 0.8, 0.9, 0.97)
"""Hypotheses about φ, in parts of the present error."""
BENDS = (
    *((1.0, slope) for slope in (0.15, 0.3, 0.5, 0.75, 1.0, 1.4, 2.0)),
    *((8.0, slope) for slope in (0.75, 1.25, 2.0, 3.0, 4.5)),
)
"""Hypotheses about κ and s: a slow start (greater κ) is followed by a steeper fall."""
FLOOR_PRIOR = 0.7
"""A run seldom begins at its floor: hypotheses just below the present error need evidence."""
PRIOR_ROUNDS, PRIOR_NOISE = 2.0, 0.08
"""What is believed of the relative noise before it is seen, and how many rounds outweigh it."""
HUBER = 2.0
"""Residuals beyond this many standard deviations count as this many."""
DRIFT = 0.1
"""Relative error of a prediction for each e-fold of work beyond what was seen."""
EPOCH_GAIN, COHORT_GAIN = 0.35, 0.35
"""Effort of a round grows with its epochs and its answers to these powers; measured on small non-iid federations."""


def effort(*, epochs: float, answers: int, sites: int) -> float:
    """Effective work of a round: 1 for one epoch on a quarter of the sites; more of either helps ever less."""
    share = answers / max(1.0, sites / 4)
    return float(max(1.0, epochs) ** EPOCH_GAIN * min(share, 1.5) ** COHORT_GAIN) if answers else 0.0


def error_of(metric: Metric, value: float) -> float:
    """Distance of a value from the best that its metric can have; not negative, infinite for what is no number."""
    if not isfinite(value):
        return inf
    return max(0.0, metric.ideal - value if metric.higher_is_better else value - metric.ideal)


def value_of(metric: Metric, error: float) -> float:
    """The value at a distance from the best one; never out of the metric's range."""
    if metric.higher_is_better:
        return max(metric.least, metric.ideal - error)
    return min(metric.most, metric.ideal + error)


@dataclass(frozen=True)
class Span:
    """An uncertain number: 10 %, 50 % and 90 % quantiles."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class Hypothesis:
    """One possible curve."""

    floor: float
    start: float
    """κ: the work before the fall begins."""
    slope: float
    amplitude: float
    weight: float
    """Its share of all hypotheses."""

    def error(self, x: float) -> float:
        """Mean error after work ``x``."""
        return self.floor + self.amplitude * float((1 + x / self.start) ** -self.slope)

    def work(self, error: float) -> float:
        """Work after which the mean error is this; infinite if it never is."""
        if error <= self.floor:
            return inf
        exponent = log(self.amplitude / (error - self.floor)) / self.slope if self.amplitude > 0 else 0.0
        return max(0.0, self.start * (exp(min(exponent, 50.0)) - 1))


@dataclass(frozen=True)
class Curve:
    """What the rounds so far say about those to come."""

    metric: Metric
    hypotheses: tuple[Hypothesis, ...]
    x: float
    """Work done."""
    noise: float
    """Relative standard deviation of one evaluation around the mean curve."""

    def value_at(self, x: float) -> Span:
        """The metric after work ``x`` in all, from a bad (``low``) to a good (``high``) outcome."""
        drift = 1.2816 * self._drift(x)
        points = sorted((each.error(x), each.weight) for each in self.hypotheses)
        errors = [_quantile(points, share) for share in (0.9, 0.5, 0.1)]
        worse, middle, better = errors[0] * (1 + drift), errors[1], errors[2] / (1 + drift)
        return Span(*(value_of(self.metric, error) for error in (worse, middle, better)))

    def work_to(self, value: float) -> Span:
        """Work still to do until the mean curve reaches ``value``; infinite where it may never."""
        wanted = error_of(self.metric, value)
        points = sorted((max(0.0, each.work(wanted) - self.x), each.weight) for each in self.hypotheses)
        low, middle, high = (_quantile(points, share) for share in (0.1, 0.5, 0.9))
        spread = 1 + 1.2816 * self.noise
        return Span(low / spread, middle, high * spread)

    def chance(self, value: float, x: float) -> float:
        """Probability that the curve has reached ``value`` after work ``x`` in all."""
        wanted = error_of(self.metric, value)
        drifted = sqrt(self._drift(x) ** 2 + self.noise**2)
        chances = 0.0
        for each in self.hypotheses:
            beyond = wanted / max(each.error(x), 1e-12) - 1  # what is reached does not drift away again
            chances += each.weight * _normal_cdf(beyond / max(1e-6, drifted if beyond < 0 else self.noise))
        return chances

    def _drift(self, x: float) -> float:
        return DRIFT * log((1 + max(x, self.x)) / (1 + self.x))


def fit(metric: Metric, values: Sequence[float], efforts: Sequence[float]) -> Curve | None:
    """The curve through the rounds so far.

    Args:
        metric: of the values.
        values: the metric after each round; rounds that are not finite are left out.
        efforts: of each round, see `effort`.

    Returns:
        None with fewer than `LEAST_ROUNDS` usable rounds.
    """
    x = 0.0
    points: list[tuple[float, float]] = []
    for value, done in zip(values, efforts, strict=True):
        x += done
        if isfinite(value):
            points.append((x, max(error_of(metric, value), 1e-6)))
    if len(points) < LEAST_ROUNDS:
        return None
    points = points[-WINDOW:]
    weights = [FORGETTING ** (len(points) - 1 - i) for i in range(len(points))]
    present = _present(points)
    tried = [_tried(points, weights, share * present, *bend, present) for share in FLOORS for bend in BENDS]
    best = max(evidence for _, evidence, _ in tried)
    raw = [exp(evidence - best) for _, evidence, _ in tried]
    total = sum(raw)
    hypotheses = tuple(
        Hypothesis(*shape, weight / total)
        for (shape, _, _), weight in zip(tried, raw, strict=True)
        if weight > 1e-6 * total
    )
    noise = sum(weight * deviation for weight, (_, _, deviation) in zip(raw, tried, strict=True)) / total
    return Curve(metric=metric, hypotheses=hypotheses, x=x, noise=noise)


def _present(points: Sequence[tuple[float, float]]) -> float:
    """The error now: the median of the last few."""
    return median(error for _, error in points[-5:])


def _tried(
    points: Sequence[tuple[float, float]],
    weights: Sequence[float],
    floor: float,
    start: float,
    slope: float,
    present: float,
) -> tuple[tuple[float, float, float, float], float, float]:
    """One hypothesis with its best amplitude, the logarithm of its evidence, and its noise."""
    shapes = [(1 + x / start) ** -slope for x, _ in points]
    amplitude, deviation, rounds = 0.0, PRIOR_NOISE, sum(weights)
    scales = errors = [error for _, error in points]
    for _ in range(3):  # reweighted least squares: relative to the fitted error, outliers pulled in
        pairs = list(zip(shapes, errors, scales, weights, strict=True))
        below = sum(w * z * z / (m * m) for z, _, m, w in pairs)
        above = sum(w * z * (error - floor) / (m * m) for z, error, m, w in pairs)
        amplitude = max(0.0, above / below)
        scales = [max(1e-9, floor + amplitude * z) for z in shapes]
        residuals = [log(error / m) for (_, error), m in zip(points, scales, strict=True)]
        most = HUBER * deviation
        squares = sum(w * min(r * r, most * most) for w, r in zip(weights, residuals, strict=True))
        deviation = sqrt((squares + PRIOR_ROUNDS * PRIOR_NOISE**2) / (rounds + PRIOR_ROUNDS))
        errors = [m * exp(max(-most, min(most, r))) for m, r in zip(scales, residuals, strict=True)]
    charge = sum(w * _huber(r / deviation) for w, r in zip(weights, residuals, strict=True))
    evidence = -charge - rounds * log(deviation) + FLOOR_PRIOR * log(1.05 - floor / present)
    return (floor, start, slope, amplitude), evidence, deviation


def _huber(z: float) -> float:
    return 0.5 * z * z if abs(z) <= HUBER else HUBER * (abs(z) - 0.5 * HUBER)


def _quantile(points: Sequence[tuple[float, float]], share: float) -> float:
    """Of sorted values with weights that sum to 1."""
    passed = 0.0
    for value, weight in points:
        passed += weight
        if passed >= share - 1e-12:
            return value
    return points[-1][0]


def _normal_cdf(z: float) -> float:
    return 0.5 * (1 + erf(z / sqrt(2)))
