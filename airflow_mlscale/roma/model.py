"""What ROMA talks about: a model's specification, its objective, the states it goes through, one request.

Values only. How requests are ordered is `queueing`, what is decided about them `policy`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from math import ceil, isfinite
from typing import Any, Literal, get_args

from airflow_mlscale import errors
from airflow_mlscale.roma import devices, runtimes

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
"""Names of models and of versions."""

CHECKSUM = re.compile(r"[0-9a-f]{64}")

MIN_OBJECTIVE_MS = 0.001
MAX_OBJECTIVE_MS = 3_600_000.0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The promise of a model: ``percentile`` percent of the requests answered within ``milliseconds``."""

    milliseconds: float
    """From the head of the request to its answer, at least 0.001."""
    percentile: float = 95.0
    """In (0, 100]."""

    def __post_init__(self) -> None:
        if not is_number(self.milliseconds) or not MIN_OBJECTIVE_MS <= self.milliseconds <= MAX_OBJECTIVE_MS:
            raise errors.InvalidInputError(
                "objective.milliseconds",
                self.milliseconds,
                f"give the latency to keep in milliseconds, from {MIN_OBJECTIVE_MS:g} to {MAX_OBJECTIVE_MS:.0f}",
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
    """Where the model came from: a path on the daemon's host, or a URL without its secrets."""
    objective: Objective
    min_cores: float = 0.1
    """Guarantee that is never taken away; all of them together must fit the host."""
    max_cores: float | None = None
    """Most cores its guarantee (and, in reserve mode, its quota) may grow to; None for all of the host."""
    priority: int = 0
    """Under contention a higher one is served first."""
    max_batch: int = 64
    """Most requests joined into one execution; 1 turns batching off."""
    device: devices.Preference = "auto"
    """What executes it: what is expected to be done first, the CPU alone, or a GPU whenever it has a place on one."""
    gpu_memory_mb: float | None = None
    """Memory to reserve on a GPU; None to go by the size of its files until it was measured."""
    max_memory_mb: float | None = None
    """Resident memory (MiB) above which its worker is replaced by a fresh one; None for the daemon's default."""
    runtime: runtimes.Runtime = field(default_factory=runtimes.Runtime)
    """What computes it."""
    fingerprint: str = ""
    """Checksum of the artefact's files when they were deployed: tells a changed model from a changed setting."""
    files: str = ""
    """The daemon's own copy of them, which workers read; empty: the artefact itself."""

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
        if self.device not in get_args(devices.Preference):
            fix = f"choose one of {', '.join(get_args(devices.Preference))}"
            raise errors.InvalidInputError("device", _short(self.device), fix)
        if self.gpu_memory_mb is not None and not (is_number(self.gpu_memory_mb) and 0 < self.gpu_memory_mb <= 2**20):
            fix = "give a number of megabytes above 0, or null"
            raise errors.InvalidInputError("gpu_memory_mb", _short(self.gpu_memory_mb), fix)
        if self.max_memory_mb is not None and not (is_number(self.max_memory_mb) and 0 < self.max_memory_mb <= 2**30):
            fix = "give a number of megabytes above 0, or null"
            raise errors.InvalidInputError("max_memory_mb", _short(self.max_memory_mb), fix)

    @property
    def source(self) -> tuple[str, str, runtimes.Runtime]:
        """What a version is made of: with another one it is another version."""
        return self.artefact, self.fingerprint, self.runtime

    def threads(self, host_cores: float) -> int:
        """Executions that may run side by side: one for each core it may use."""
        return max(1, ceil(min(self.max_cores or host_cores, host_cores)))

    def same_files(self, other: ModelSpec) -> bool:
        """Whether a worker of the other one can go on serving this one."""
        return self.version == other.version and self.source == other.source

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def spec_from_json(document: Mapping[str, Any]) -> ModelSpec:
    """Read back what `ModelSpec.as_json` wrote."""
    runtime = runtimes.Runtime(**document.get("runtime", {}))
    return ModelSpec(**{**document, "objective": Objective(**document["objective"]), "runtime": runtime})


Split = Literal["deterministic", "random"]


@dataclass(frozen=True, kw_only=True)
class Canary:
    """How a new version is tried beside the one that serves, until it is promoted or rolled back."""

    fraction: float = 0.1
    """Part of the requests that it answers, at least 0 (warm, and asked only by its name or label), below 1."""
    split: Split = "deterministic"
    """``deterministic``: requests with the same route key go to the same version, and of those without one exactly
    the fraction, evenly spread. ``random``: each request by chance."""
    window_s: float = 60.0
    """Over which the two versions are compared."""
    min_requests: int = 50
    """Requests of each version in the window below which nothing is concluded."""
    confidence: float = 0.999
    """One-sided, with which it must be worse before it is rolled back; it is looked at every second, so high."""
    max_error_increase: float = 0.01
    """Part of its requests that may fail on top of the stable version's."""
    automatic: bool = True
    """Roll it back when it is worse; else only its status tells."""

    def __post_init__(self) -> None:
        if not is_number(self.fraction) or not 0 <= self.fraction < 1:
            raise errors.InvalidInputError("canary.fraction", self.fraction, "give a fraction of at least 0, below 1")
        if self.split not in get_args(Split):
            fix = f"choose one of {', '.join(get_args(Split))}"
            raise errors.InvalidInputError("canary.split", self.split, fix)
        if not is_number(self.window_s) or not 1 <= self.window_s <= 1800:
            raise errors.InvalidInputError("canary.window_s", self.window_s, "give between 1 and 1800 seconds")
        if not is_integer(self.min_requests) or self.min_requests < 1:
            fix = "give a whole number of at least 1"
            raise errors.InvalidInputError("canary.min_requests", self.min_requests, fix)
        if not is_number(self.confidence) or not 0.5 < self.confidence < 1:
            fix = "give a probability above 0.5 and below 1"
            raise errors.InvalidInputError("canary.confidence", self.confidence, fix)
        if not is_number(self.max_error_increase) or not 0 <= self.max_error_increase < 1:
            fix = "give a fraction of at least 0, below 1"
            raise errors.InvalidInputError("canary.max_error_increase", self.max_error_increase, fix)
        if not isinstance(self.automatic, bool):
            raise errors.InvalidInputError("canary.automatic", self.automatic, "give true or false")


LIFTABLE = ("max_cores", "gpu_memory_mb", "max_memory_mb")
"""Settings whose ``null`` in an order means what it says; of others it stands for none given."""


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
    device: devices.Preference | None = None
    gpu_memory_mb: float | None = None
    max_memory_mb: float | None = None
    runtime: runtimes.Runtime | None = None
    checksum: str | None = None
    """Refuse files that have another one: of the archive, the single file, or the directory (see `artefacts`)."""
    canary: Canary | None = None
    """Try it on a part of the requests first; None lets it take over as soon as it is warm."""
    lifted: frozenset[str] = frozenset()
    """Which of `LIFTABLE` have no value of their own any more."""

    def onto(
        self, last: ModelSpec | None, *, version: str, artefact: str, fingerprint: str = "", files: str = ""
    ) -> ModelSpec:
        """The specification this order makes of the one before.

        Raises:
            InvalidInputError: a value is out of range, or there is no objective at all.
        """
        objective = self.objective or (last.objective if last else None)
        if objective is None:
            raise errors.InvalidInputError(
                "objective", None, 'give one, such as {"milliseconds": 50, "percentile": 95}'
            )
        settable = (
            *("min_cores", "max_cores", "priority", "max_batch"),
            *("device", "gpu_memory_mb", "max_memory_mb", "runtime"),
        )
        named = {key: getattr(self, key) for key in settable}
        given: dict[str, Any] = {key: value for key, value in named.items() if value is not None or key in self.lifted}
        source: dict[str, Any] = {"version": version, "artefact": artefact, "fingerprint": fingerprint, "files": files}
        if last is not None:
            return replace(last, objective=objective, **source, **given)
        return ModelSpec(name=self.name, objective=objective, **source, **given)


def order_from_json(name: str, document: Any) -> DeployOrder:
    """Read a deployment's JSON body; unknown fields are refused, so that a slip is not silently ignored."""
    check_name("name", name)
    if not isinstance(document, dict):
        raise errors.InvalidInputError("body", _short(document), 'send a JSON object with at least "artefact"')
    known = {one.name for one in fields(DeployOrder)} - {"name", "lifted"}
    for key in document.keys() - known:
        raise errors.InvalidInputError(
            key, _short(document[key]), f"unknown field; known are {', '.join(sorted(known))}"
        )
    artefact = document.get("artefact")
    if not isinstance(artefact, str) or not artefact:
        raise errors.InvalidInputError("artefact", _short(artefact), "give the path or URL of a model")
    checksum = document.get("checksum")
    if checksum is not None and not (isinstance(checksum, str) and CHECKSUM.fullmatch(checksum)):
        raise errors.InvalidInputError("checksum", _short(checksum), "give a sha256 in 64 hexadecimal digits")
    version = document.get("version")
    if version is not None:
        version = check_name("version", str(version) if is_integer(version) else version)
    return DeployOrder(
        **{
            **document,
            "name": name,
            "version": version,
            "objective": _objective_from_json(document.get("objective")),
            "canary": canary_from_json(document.get("canary")),
            "runtime": runtimes.from_json(document.get("runtime")),
            "lifted": frozenset(key for key in LIFTABLE if document.get(key, "") is None),
        }
    )


def canary_from_json(document: Any) -> Canary | None:
    """Read a canary; unknown fields are refused."""
    if document is None:
        return None
    known = {one.name for one in fields(Canary)}
    if not isinstance(document, dict) or not document.keys() <= known:
        fix = f'give an object such as {{"fraction": 0.1}}; known are {", ".join(sorted(known))}'
        raise errors.InvalidInputError("canary", _short(document), fix)
    return Canary(**document)


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
    CRASH_LOOP = "crash_loop"
    """Its worker dies again and again; it is still started, with long pauses."""
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
    """The version being brought up or tried beside it, or the first one."""
    canary: Canary | None = None
    """How the candidate is tried; None lets it take over as soon as it is warm."""
    previous: ModelSpec | None = None
    """The version that served before, to which one can go back."""
    loaded: bool = True
    """False after an unload through the repository API."""
    failure: str | None = None
    """Why the last version that did not stay was given up or rolled back."""
    failed_version: str | None = None
    highest: int = 0
    """The greatest number that a version of it ever had, so that none is given twice."""

    @property
    def spec(self) -> ModelSpec | None:
        return self.active or self.candidate

    def counted(self, earlier: int) -> Desired:
        """With the greatest number among ``earlier`` ones and its own versions'."""
        named = [spec.version for spec in (self.active, self.candidate, self.previous) if spec]
        numbers = [int(version) for version in (*named, self.failed_version) if version and version.isdecimal()]
        return replace(self, highest=max(self.highest, earlier, *numbers))


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
    nan: bool = False
    """Whether an output holds what is not a number."""


def check_name(field: str, value: Any) -> str:
    """The name itself, or `InvalidInputError`."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise errors.InvalidInputError(
            field, _short(value), "use letters, digits, '.', '_' and '-', at most 80, beginning with a letter or digit"
        )
    return value


def is_number(value: Any) -> bool:
    """Whether it is a finite number; a truth value is none, nor is an integer beyond all floats."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:
        return False


def is_integer(value: Any) -> bool:
    """Whether it is a whole number; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> Any:
    return value if not isinstance(value, str | list | dict) or len(repr(value)) <= 80 else repr(value)[:77] + "..."
