"""Settings of deadline control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from airflow_mlscale import errors
from airflow_mlscale.cpu.ports import LONGEST_TTL_S
from airflow_mlscale.spark.model import Mode

POLICIES = ("remaining_work", "paper")
"""Names of `policy.make`."""
ON_INFEASIBLE = ("fail", "best_effort")
FLOOR_CORES = 0.2
LEAST_PERIODS_OF_A_LEASE = 3
"""A lease is renewed once a period: it outlives one renewal that fails, and one that comes late."""


@dataclass(frozen=True, kw_only=True)
class DeadlineSettings:
    """How an application is brought to its deadline.

    Raises:
        InvalidInputError: a value is out of its range.
    """

    mode: Mode = Mode.WORK_CONSERVING
    """What a share means; see `Mode`."""
    policy: str = POLICIES[0]
    """Who decides: ``remaining_work`` (ours), or ``paper`` (dynaSpark as published)."""
    min_cores: float | None = None
    """Cores that are never taken away, part of the host's admission; None for no such claim."""
    max_cores: float | None = None
    """Most cores to ask for; None for as many as the application has slots."""
    on_infeasible: str = "fail"
    """What to do when a profile says that the deadline cannot be met: ``fail`` or ``best_effort``."""
    aim: float = 0.996
    """Part of the time from start to deadline in which the job should be done."""
    caution: float = 1.0
    """How many standard deviations of the remaining work to stay ahead; they shrink as work is done."""
    confidence: float = 2.0
    """Half the width of the predicted interval, in standard deviations of the remaining work."""
    period_s: float = 1.0
    """How often the share is decided."""
    read_period_s: float = 0.5
    """How often the driver's REST API is read."""
    floor_cores: float = FLOOR_CORES
    """Least ceiling: below it executors miss heartbeats."""
    deadband: float = 0.05
    """Relative change of the share that is not worth an action."""
    unknown: float = 0.007
    """Work kept for what no profile tells, as a part of all: without it the last bit would be done at a crawl."""
    spare: float = 1.0
    """Time kept for a task that fails or straggles, in times of what the worst of late took."""
    trust: float = 0.25
    """Weight of the profile in β at the start, as evidence of so much of its work; fades as work is done."""
    rate_window_s: float = 5.0
    """Time constant of the measured rate of use."""
    driver_cores: float = 1.0
    """Guaranteed to the driver while executors wait for it: no share of theirs shortens a starved driver's gaps.
    While they run tasks it is what the driver used lately, and a little more."""
    park_after_s: float = 1.0
    """Length of a driver gap after which the executors' guarantee is parked."""
    headroom: float = 0.7
    """Part of the maximum above which a needed share is guaranteed without waiting for idle cycles."""
    settle_s: float = 15.0
    """How long a guarantee is kept before idle cycles are tried again."""
    learning_rate: float = 0.4
    """Weight of a new run in the profile."""
    ttl_s: float = 10.0
    """Life of a CPU lease without renewal; at least `LEAST_PERIODS_OF_A_LEASE` periods."""

    def __post_init__(self) -> None:
        one_of("mode", self.mode, Mode)
        one_of("policy", self.policy, POLICIES)
        one_of("on_infeasible", self.on_infeasible, ON_INFEASIBLE)
        for field in ("min_cores", "max_cores"):
            value = getattr(self, field)
            if value is not None and not (_is_number(value) and 0 < value < inf):
                raise errors.InvalidInputError(field, value, "must be a number of cores above 0")
        if self.min_cores is not None and self.max_cores is not None and self.min_cores > self.max_cores:
            raise errors.InvalidInputError("min_cores", self.min_cores, f"must not exceed max_cores={self.max_cores}")
        if self.max_cores is not None and self.max_cores < self.floor_cores:
            raise errors.InvalidInputError(
                "max_cores", self.max_cores, f"must be at least {self.floor_cores}: below it executors miss heartbeats"
            )
        for field, (low, high) in _RANGES.items():
            value = getattr(self, field)
            if not (_is_number(value) and low <= value <= high):
                raise errors.InvalidInputError(field, value, f"must be a number from {low} to {high}")
        if self.ttl_s < LEAST_PERIODS_OF_A_LEASE * self.period_s:
            raise errors.InvalidInputError(
                "ttl_s",
                self.ttl_s,
                f"must be at least {LEAST_PERIODS_OF_A_LEASE} times period_s={self.period_s}, "
                "or the lease lapses between two renewals",
            )

    @property
    def capped(self) -> bool:
        """Whether shares have ceilings: the published law is a reservation whatever `mode` says."""
        return self.mode is Mode.RESERVE or self.policy == POLICIES[1]

    @property
    def low(self) -> float:
        """Least share while tasks run."""
        return max(self.floor_cores, self.min_cores or 0.0)

    def high(self, slots: float) -> float:
        """Most cores worth asking for when ``slots`` tasks can run at once."""
        return max(self.low, min(slots, self.max_cores or inf))


_RANGES = {
    "aim": (0.5, 1.0),
    "caution": (0.0, 10.0),
    "confidence": (0.0, 10.0),
    "period_s": (0.1, 60.0),
    "read_period_s": (0.1, 60.0),
    "floor_cores": (0.05, 1.0),
    "deadband": (0.0, 1.0),
    "unknown": (0.0, 1.0),
    "spare": (0.0, 10.0),
    "trust": (0.0, 10.0),
    "rate_window_s": (0.1, 600.0),
    "driver_cores": (0.0, 64.0),
    "park_after_s": (0.0, 3600.0),
    "headroom": (0.1, 1.0),
    "settle_s": (0.0, 3600.0),
    "learning_rate": (0.01, 1.0),
    "ttl_s": (2.0, LONGEST_TTL_S),
}


def tuned(
    tuning: Mapping[str, float],
    *,
    mode: str,
    min_cores: float | None,
    max_cores: float | None,
    on_infeasible: str,
    policy: str = POLICIES[0],
) -> DeadlineSettings:
    """Settings from an operator's arguments; ``tuning`` holds any of the others by name.

    Raises:
        InvalidInputError: an unknown name, or a value out of its range.
    """
    for name in tuning:
        one_of("tuning", name, _RANGES)
    word = Mode(one_of("mode", mode, Mode))
    return DeadlineSettings(
        mode=word,
        policy=policy,
        min_cores=min_cores,
        max_cores=max_cores,
        on_infeasible=on_infeasible,
        **dict(tuning),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def one_of(field: str, value: object, known: Iterable[str]) -> str:
    """The value, if it is one of the known words.

    Raises:
        InvalidInputError: it is not.
    """
    words = [str(word) for word in known]
    if not isinstance(value, str) or value not in words:
        raise errors.InvalidInputError(field, value, f"must be one of {', '.join(words)}")
    return str(value)
