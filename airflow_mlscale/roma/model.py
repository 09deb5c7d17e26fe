"""What ROMA talks about: a model's specification, its objective, the states it goes through, one request.

Values only. How requests are ordered is `queueing`, what is decided about them `policy`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from math import ceil, isfinite
from typing import Any

from airflow_mlscale import errors

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
"""Names of models and of versions."""

MAX_OBJECTIVE_MS = 3_600_000.0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The promise of a model: ``percentile`` percent of the requests answered within ``milliseconds``."""

    milliseconds: float
    """From the last byte of the request to the first of the answer, > 0."""
    percentile: float = 95.0
    """In (0, 100]."""

    def __post_init__(self) -> None:
        if not is_number(self.milliseconds) or not 0 < self.milliseconds <= MAX_OBJECTIVE_MS:
            raise errors.InvalidInputError(
                "objective.milliseconds",
                self.milliseconds,
                f"give the latency to keep in milliseconds, a number above 0 and at most {MAX_OBJECTIVE_MS:.0f}",
            )
        if not is_number(self.percentile) or not 0 < self.percentile <= 100:
            raise errors.InvalidInputError(
                "objective.percentile", self.percentile, "give a percentile above 0 and at most 100, such as 95"
            )

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What somebody wants served."""

    name: str
    version: str
    artefact: str
    """Directory of a TensorFlow SavedModel on the daemon's host."""
    objective: Objective
    min_cores: float = 0.1
    """Guarantee that is never taken away; all of them together must fit the host."""
    max_cores: float | None = None
    """Most cores its guarantee (and, in reserve mode, its quota) may grow to; None for all of the host."""
    priority: int = 0
    """Under contention a higher one is served first."""
    max_batch: int = 64
    """Most requests joined into one execution; 1 turns batching off."""
    fingerprint: str = ""
    """Of the artefact's files when they were deployed: tells a changed model from a changed setting."""

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_name("version", self.version)
        if not is_number(self.min_cores) or self.min_cores < 0:
            raise errors.InvalidInputError("min_cores", self.min_cores, "give a number of cores, at least 0")
        if self.max_cores is not None and (
            not is_number(self.max_cores) or not self.max_cores > 0 or self.max_cores < self.min_cores
        ):
            raise errors.InvalidInputError(
                "max_cores", self.max_cores, f"give a number above 0 and not below min_cores={self.min_cores}, or null"
            )
        if not is_integer(self.priority) or abs(self.priority) > 1000:
            raise errors.InvalidInputError("priority", self.priority, "give an integer between -1000 and 1000")
        if not is_integer(self.max_batch) or not 1 <= self.max_batch <= 4096:
            raise errors.InvalidInputError("max_batch", self.max_batch, "give an integer between 1 and 4096")

    def threads(self, host_cores: float) -> int:
        """Executions that may run side by side: one for each core it may use."""
        return max(1, ceil(min(self.max_cores or host_cores, host_cores)))

    def same_files(self, other: ModelSpec) -> bool:
        """Whether a worker of the other one can go on serving this one."""
        return (self.version, self.artefact, self.fingerprint) == (other.version, other.artefact, other.fingerprint)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def spec_from_json(document: Mapping[str, Any]) -> ModelSpec:
    """Read back what `ModelSpec.as_json` wrote."""
    return ModelSpec(**{**document, "objective": Objective(**document["objective"])})


@dataclass(frozen=True, kw_only=True)
class DeployOrder:
    """A wish as it arrives: everything but the name and the artefact has a default, or stays as it is."""

    name: str
    artefact: str
    version: str | None = None
    """None: keep the version if the files are the same, else one more than the highest number so far."""
    objective: Objective | None = None
    min_cores: float | None = None
    max_cores: float | None = None
    priority: int | None = None
    max_batch: int | None = None

    def onto(self, last: ModelSpec | None, *, version: str, artefact: str, fingerprint: str) -> ModelSpec:
        """The specification this order makes of the one before.

        Raises:
            InvalidInputError: a value is out of range, or there is no objective at all.
        """
        objective = self.objective or (last.objective if last else None)
        if objective is None:
            raise errors.InvalidInputError(
                "objective", None, 'give one, such as {"milliseconds": 50, "percentile": 95}'
            )
        named = {key: getattr(self, key) for key in ("min_cores", "max_cores", "priority", "max_batch")}
        given: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
        files: dict[str, Any] = {"version": version, "artefact": artefact, "fingerprint": fingerprint}
        if last is not None:
            return replace(last, objective=objective, **files, **given)
        return ModelSpec(name=self.name, objective=objective, **files, **given)


def order_from_json(name: str, document: Any) -> DeployOrder:
    """Read a deployment's JSON body; unknown fields are refused, so that a slip is not silently ignored."""
    check_name("name", name)
    if not isinstance(document, dict):
        raise errors.InvalidInputError("body", _short(document), 'send a JSON object with at least "artefact"')
    known = {"artefact", "version", "objective", "min_cores", "max_cores", "priority", "max_batch"}
    for key in document.keys() - known:
        raise errors.InvalidInputError(
            key, _short(document[key]), f"unknown field; known are {', '.join(sorted(known))}"
        )
    artefact = document.get("artefact")
    if not isinstance(artefact, str) or not artefact:
        raise errors.InvalidInputError("artefact", _short(artefact), "give the path of a SavedModel directory")
    version = document.get("version")
    if version is not None:
        version = check_name("version", str(version) if is_integer(version) else version)
    return DeployOrder(
        **{**document, "name": name, "version": version, "objective": _objective_from_json(document.get("objective"))}
    )


def _objective_from_json(document: Any) -> Objective | None:
    if document is None:
        return None
    if not isinstance(document, dict) or not {"milliseconds"} <= document.keys() <= {"milliseconds", "percentile"}:
        raise errors.InvalidInputError(
            "objective", _short(document), 'give an object such as {"milliseconds": 50, "percentile": 95}'
        )
    return Objective(**document)


class State(StrEnum):
    """What a model, or one version of it, is doing."""

    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    UNLOADED = "unloaded"


class Verdict(StrEnum):
    """How a model fares against its objective."""

    NO_DATA = "no_data"
    ON_TARGET = "on_target"
    AT_RISK = "at_risk"
    """Within the objective, but above nine tenths of it or at its most cores with work waiting."""
    VIOLATING = "violating"


@dataclass(frozen=True, kw_only=True)
class Desired:
    """What must come back after a crash, for one model."""

    name: str
    active: ModelSpec | None = None
    """The version that serves."""
    candidate: ModelSpec | None = None
    """The version being brought up beside it, or the first one."""
    loaded: bool = True
    """False after an unload through the repository API."""
    failure: str | None = None
    """Why the last candidate was given up."""
    failed_version: str | None = None

    @property
    def spec(self) -> ModelSpec | None:
        return self.active or self.candidate


@dataclass(frozen=True, slots=True)
class Call:
    """One inference request as it crosses to a worker, still in its own protocol's bytes."""

    protocol: str
    """``v2`` or ``tfs``."""
    body: bytes
    header_length: int | None = None
    """Of the JSON part when binary tensors follow it (v2 binary extension)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the client."""

    status: int
    body: bytes
    header_length: int | None = None
    """Of the JSON part when binary tensors follow it."""
    retry_after_s: float | None = None


def check_name(field: str, value: Any) -> str:
    """The name itself, or `InvalidInputError`."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise errors.InvalidInputError(
            field, _short(value), "use letters, digits, '.', '_' and '-', at most 80, beginning with a letter or digit"
        )
    return value


def is_number(value: Any) -> bool:
    """Whether it is a finite number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def is_integer(value: Any) -> bool:
    """Whether it is a whole number; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> Any:
    return value if not isinstance(value, str | list | dict) or len(repr(value)) <= 80 else repr(value)[:77] + "..."
