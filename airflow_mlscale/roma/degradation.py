"""When a served model has become worse than it should be, and whether somebody was told already.

Pure: fed with what the daemon says of a model; the trigger that watches brings it to Airflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import model

Quality = Mapping[str, Any]
"""Of the serving version, as ``GET /v2/models/{model}/feedback`` gives it: records, accuracy, mae."""


@dataclass(frozen=True, kw_only=True)
class DegradedCondition:
    """What is asked of a model; at least one of the three."""

    min_accuracy: float | None = None
    """Least part of the answers that must be right."""
    max_mae: float | None = None
    """Greatest mean absolute error."""
    objective: bool = False
    """Whether the objective must be met."""
    min_records: int = 100
    """Records of feedback, or requests, below which nothing is concluded."""
    window_s: float = 3600.0
    """Over which quality is counted, in minutes."""
    objective_window_s: float = 300.0
    """Over which the percentile is measured."""
    looks: int = 3
    """In a row that must say so before a model counts as degraded, or as recovered."""

    def __post_init__(self) -> None:
        if self.min_accuracy is None and self.max_mae is None and not self.objective:
            fix = "say what is asked of the model: min_accuracy, max_mae or objective=True"
            raise errors.InvalidInputError("min_accuracy", None, fix)
        if self.min_accuracy is not None and (not model.is_number(self.min_accuracy) or not 0 < self.min_accuracy <= 1):
            raise errors.InvalidInputError("min_accuracy", self.min_accuracy, "give a part above 0 and at most 1")
        if self.max_mae is not None and (not model.is_number(self.max_mae) or self.max_mae < 0):
            raise errors.InvalidInputError("max_mae", self.max_mae, "give an error of at least 0")
        for field, least in (("min_records", 1), ("looks", 1)):
            value = getattr(self, field)
            if not model.is_integer(value) or value < least:
                raise errors.InvalidInputError(field, value, f"give a whole number of at least {least}")
        if not model.is_number(self.window_s) or not 60 <= self.window_s <= 30 * 86_400:
            raise errors.InvalidInputError("window_s", self.window_s, "give between 60 seconds and 30 days")
        if not model.is_number(self.objective_window_s) or not 1 <= self.objective_window_s <= 1800:
            fix = "give between 1 and 1800 seconds"
            raise errors.InvalidInputError("objective_window_s", self.objective_window_s, fix)

    @property
    def of_quality(self) -> bool:
        """Whether feedback is needed."""
        return self.min_accuracy is not None or self.max_mae is not None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One look at the version that serves."""

    version: str
    degraded: bool | None
    """None without enough to conclude from."""
    reason: str = ""


def find(status: Mapping[str, Any], quality: Quality | None, condition: DegradedCondition) -> Finding:
    """Whether a model is worse than it should be.

    Args:
        status: of the model, over ``condition.objective_window_s``.
        quality: of the version that serves; None without any feedback.
        condition: what is asked.
    """
    version = str(status["version"])
    looks = [*_quality(quality or {}, condition), *_objective(status, condition)]
    bad = [reason for degraded, reason in looks if degraded]
    if bad:
        return Finding(version=version, degraded=True, reason="; ".join(bad))
    known = [reason for degraded, reason in looks if degraded is not None]
    return Finding(version=version, degraded=False if known else None, reason="; ".join(known))


def _quality(quality: Quality, condition: DegradedCondition) -> list[tuple[bool | None, str]]:
    if not condition.of_quality:
        return []
    records = quality.get("records", 0)
    if records < condition.min_records:
        return [(None, "")]
    found: list[tuple[bool | None, str]] = []
    accuracy, mae = quality["accuracy"], quality["mae"]
    if condition.min_accuracy is not None and accuracy is not None:
        told = f"accuracy {accuracy:.3f} of {records} answers, {condition.min_accuracy:g} is asked for"
        found.append((accuracy < condition.min_accuracy, told))
    if condition.max_mae is not None and mae is not None:
        told = f"mean absolute error {mae:.4g} of {records} answers, at most {condition.max_mae:g} is asked for"
        found.append((mae > condition.max_mae, told))
    return found


def _objective(status: Mapping[str, Any], condition: DegradedCondition) -> list[tuple[bool | None, str]]:
    if not condition.objective:
        return []
    if status["percentile_ms"] is None or status["requests"] < condition.min_records:
        return [(None, "")]
    target = status["objective"]
    told = (
        f"p{target['percentile']:g} {status['percentile_ms']:.1f} ms of {status['requests']} requests, "
        f"{target['milliseconds']:g} ms are asked for"
    )
    return [(status["percentile_ms"] > target["milliseconds"], told)]


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """What is known between two looks. It rings once for each version that gets worse, until that recovers."""

    version: str | None = None
    rung: bool = False
    """Whether somebody was told."""
    against: int = 0
    """Looks in a row that say the opposite of `rung`."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def alarm_from_json(document: Any) -> Alarm:
    """Read back what `Alarm.as_json` wrote; anything else is a fresh one."""
    try:
        return Alarm(**document)
    except TypeError:
        return Alarm()


def step(alarm: Alarm, finding: Finding, *, looks: int) -> tuple[bool, Alarm]:
    """Whether to ring now, and what is known then."""
    if finding.version != alarm.version:
        alarm = Alarm(version=finding.version)
    if finding.degraded is None:
        return False, alarm
    if finding.degraded == alarm.rung:
        return False, replace(alarm, against=0)
    if alarm.against + 1 < looks:
        return False, replace(alarm, against=alarm.against + 1)
    return finding.degraded, Alarm(version=alarm.version, rung=finding.degraded)
