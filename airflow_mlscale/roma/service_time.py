"""How long one execution takes: l(batch, cores), learned from every execution.

Pure. The law has three parts: seconds on one core by batch size (a robust running mean in each octave of
sizes, straight lines between them), how much of an execution more cores can share (Amdahl), and a spread, from
which a cautious prediction follows. An execution on less than a whole core is slowed down in proportion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import exp, log

LEAST_SPREAD = 0.05
"""Relative spread that is assumed even where all samples agree."""
CLIP = 4.0
"""A sample further off than so many spreads counts as one just there: a frozen machine teaches nothing."""
FIRST_SPREAD = 0.25
"""Relative spread before there are samples to tell it."""
CAUTION = 1.65
"""Spreads that a cautious prediction lies above the expected one: 95 % under a log-normal law."""
_SMALLEST_S = 1e-6


@dataclass
class _Octave:
    """Executions of ``2**k`` to ``2**(k+1) - 1`` requests."""

    size: float
    """Mean of the sizes seen."""
    log_s: float
    """Mean logarithm of the seconds on one core."""
    spread: float = FIRST_SPREAD
    """Mean absolute deviation of that logarithm, as a standard deviation."""
    samples: int = 1
    alone: bool = False
    """Whether one core was ever seen: only then can what more cores share be told from mere speed."""


@dataclass
class ServiceTimes:
    """The learned law of one version of a model."""

    weight: float = 0.1
    """Least weight of the newest sample; the first ones weigh equally."""
    parallel: float = 0.0
    """Part of an execution that more than one core shares; learned, 0 where each runs in one thread."""
    _octaves: dict[int, _Octave] = field(default_factory=dict)
    _points: list[tuple[float, float]] = field(default_factory=list)
    """(size, seconds), both rising: what predictions interpolate."""
    samples: int = 0
    """Executions that were learned from."""
    least_s: float = 0.0
    """The quickest of them, of whatever size; 0 before the first."""
    _of: dict[tuple[int, float], float] = field(default_factory=dict)
    """Predictions since the last execution: each request asks for the same few several times."""
    _each: dict[tuple[int, float], float] = field(default_factory=dict)

    @property
    def means(self) -> Mapping[int, float]:
        """Expected seconds on one core by the size at which each octave begins."""
        return {1 << k: self.of(1 << k) for k in sorted(self._octaves)}

    def known(self, size: int) -> bool:
        """Whether an execution of about this size has been seen."""
        return size.bit_length() - 1 in self._octaves

    def start(self, size: int, seconds: float) -> None:
        """What a warm-up measured; nothing changes where executions have taught more."""
        if not self.known(size):
            self.learn(size, seconds)

    def learn(self, size: int, seconds: float, *, cores: float = 1.0) -> None:
        """One execution ended.

        Args:
            size: requests in it, ≥ 1.
            seconds: how long it took.
            cores: cores that were there for it alone; below 1 where executions shared one.
        """
        seconds = max(seconds, _SMALLEST_S)
        self.least_s = min(seconds, self.least_s) if self.samples else seconds
        self.samples += 1
        self._of.clear()
        self._each.clear()
        octave = self._octaves.get(size.bit_length() - 1)
        if cores > 1 and octave and octave.alone and self._learn_parallel(seconds / self._interpolated(size), cores):
            return
        sample = log(seconds / self._stretch(cores))
        if octave is None:
            octave = self._octaves[size.bit_length() - 1] = _Octave(float(size), sample)
        else:
            self._blend(octave, size, sample)
        octave.alone = octave.alone or cores <= 1
        self._connect()

    def of(self, size: int, *, cores: float = 1.0) -> float:
        """Expected seconds; 0 when nothing is known yet, so that nothing is refused.

        Never falls with the size, never rises with the cores. Beyond the largest size that was seen it grows
        in proportion.
        """
        if not self._points:
            return 0.0
        expected_s = self._of.get((size, cores))
        if expected_s is None:
            expected_s = self._of[size, cores] = self._interpolated(size) * self._stretch(cores)
        return expected_s

    def cautious(self, size: int, *, cores: float = 1.0) -> float:
        """Seconds that nineteen of twenty executions keep within, going by the spread so far."""
        if not self._points:
            return 0.0
        up_to = max(size.bit_length() - 1, min(self._octaves))
        # The widest of all smaller sizes too: a larger batch never looks safer. Few samples say little of a spread.
        doubt = max(one.spread * (1 + 1 / one.samples) for k, one in self._octaves.items() if k <= up_to)
        return self.of(size, cores=cores) * exp(CAUTION * min(1.0, doubt))

    def each(self, most: int, *, cores: float = 1.0) -> float:
        """Seconds for each request in the best batch of up to ``most``: what a backlog is worked off with."""
        if (known_s := self._each.get((most, cores))) is not None:
            return known_s
        sizes = [1, *(size for k in self._octaves if 1 < (size := 1 << k) <= most)]
        each_s = self._each[most, cores] = min(self.of(size, cores=cores) / size for size in sizes)
        return each_s

    def _learn_parallel(self, ratio: float, cores: float) -> bool:
        """Seconds on c cores ÷ seconds on one = (1 − p) + p/c, solved for p; False if no p explains them."""
        sample = (1 - ratio) / (1 - 1 / cores)
        self.parallel += self.weight * (min(1.0, max(0.0, sample)) - self.parallel)
        return 0 <= sample <= 1

    def _stretch(self, cores: float) -> float:
        if cores < 1:
            return 1 / max(cores, 0.01)
        return 1 - self.parallel + self.parallel / cores

    def _blend(self, octave: _Octave, size: int, sample: float) -> None:
        octave.samples += 1
        weight = max(self.weight, 1 / octave.samples)
        width = CLIP * max(octave.spread, LEAST_SPREAD)
        off = min(width, max(-width, sample - octave.log_s))
        octave.log_s += weight * off
        # 1.25 mean absolute deviations are one standard deviation of a normal law.
        octave.spread = max(LEAST_SPREAD, octave.spread + weight * (1.25 * abs(off) - octave.spread))
        octave.size += weight * (size - octave.size)

    def _connect(self) -> None:
        self._points = []
        least = 0.0
        for k in sorted(self._octaves):
            octave = self._octaves[k]
            least = max(least, exp(octave.log_s))
            self._points.append((octave.size, least))

    def _interpolated(self, size: int) -> float:
        points = self._points
        if size <= points[0][0]:
            return points[0][1]
        for (low, low_s), (high, high_s) in pairwise(points):
            if size <= high:
                return low_s + (high_s - low_s) * (size - low) / (high - low)
        last, last_s = points[-1]
        return last_s * size / last
