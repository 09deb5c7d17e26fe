"""Which library computes a model: what may be asked for, and which one wins a comparison.

Values and the choice only. How a library is driven is an adapter's business (`roma.adapters.loading`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import exp, isfinite, log
from typing import Any, Literal, get_args

from airflow_mlscale import errors

Name = Literal["native", "auto", "tensorflow", "onnxruntime", "openvino", "openvino-bf16"]

REDUCED: tuple[Name, ...] = ("openvino-bf16",)
"""Those that compute in less than the model's own precision."""

MIN_GAIN = 0.05
"""Part of a runtime's time that another one must save to be worth the change."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What a deployment asks for."""

    name: Name = "native"
    """``native``: TensorFlow for SavedModels and Keras files, ONNX Runtime for ONNX, OpenVINO for its own format.
    ``auto``: all that can are measured while warming up, and the fastest that agrees with the native one serves."""
    rtol: float = 1e-3
    """Of ``auto``: outputs agree where they differ by at most ``atol + rtol · |native output|``."""
    atol: float = 1e-5
    """See ``rtol``."""
    reduced_precision: bool = False
    """Whether ``auto`` may take runtimes that compute in bfloat16: what they get wrong depends on the inputs, and
    only made-up ones are compared."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or self.name not in get_args(Name):
            fix = f"choose one of {', '.join(get_args(Name))}"
            raise errors.InvalidInputError("runtime.name", _short(self.name), fix)
        if self.reduced_precision not in (True, False):
            value = _short(self.reduced_precision)
            raise errors.InvalidInputError("runtime.reduced_precision", value, "give true or false")
        for field in ("rtol", "atol"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                fix = "give a tolerance of at least 0, below 1"
                raise errors.InvalidInputError(f"runtime.{field}", _short(value), fix)


def from_json(document: Any) -> Runtime | None:
    """A name, or an object of `Runtime`'s fields; None stays None.

    Raises:
        InvalidInputError: it is something else.
    """
    if document is None or isinstance(document, Runtime):
        return document
    if isinstance(document, str):
        return Runtime(name=document)  # type: ignore[arg-type] # it is checked there
    known = {one.name for one in fields(Runtime)}
    if not isinstance(document, dict) or not document.keys() <= known:
        fix = (
            f'give a name, or an object such as {{"name": "auto", "rtol": 0.001}}; known are {", ".join(sorted(known))}'
        )
        raise errors.InvalidInputError("runtime", _short(document), fix)
    return Runtime(**document)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How one runtime did with a model."""

    runtime: str
    service_s: Mapping[int, float]
    """Measured seconds by batch size."""
    greatest_difference: float | None = None
    """Of any output value from the native runtime's; None if it was not compared."""
    compared: bool = False
    """Whether it could be loaded beside the native one."""
    refused: str = ""
    """Why it cannot serve."""

    def as_json(self) -> dict[str, Any]:
        """For the model's status."""
        difference = self.greatest_difference
        return {
            "runtime": self.runtime,
            "ms": {str(size): round(1000 * seconds, 3) for size, seconds in sorted(self.service_s.items())},
            "greatest_difference": difference if difference is None or isfinite(difference) else None,
            "refused": self.refused or None,
        }


def fastest(trials: Sequence[Trial]) -> Trial:
    """The one that should serve, of trials in order of preference, the native one first.

    Each must save at least `MIN_GAIN` of the time of the best before it: of equals the more exact one serves.
    """
    best = trials[0]
    for one in trials[1:]:
        if not one.refused and relative_time(one, best) <= 1 - MIN_GAIN:
            best = one
    return best


def relative_time(one: Trial, other: Trial) -> float:
    """Time of one by that of the other: the geometric mean over the batch sizes that both measured; 1 if none."""
    sizes = [size for size in one.service_s if size in other.service_s]
    if not sizes:
        return 1.0
    return exp(sum(log(one.service_s[size] / other.service_s[size]) for size in sizes) / len(sizes))


def report(wanted: Runtime, chosen: Trial, trials: Sequence[Trial]) -> dict[str, Any]:
    """What the model's status says of its runtime."""
    tolerance = {"rtol": wanted.rtol, "atol": wanted.atol} if wanted.name == "auto" else None
    return {
        "name": chosen.runtime,
        "asked": wanted.name,
        "tolerance": tolerance,
        "candidates": [one.as_json() for one in trials],
    }


def _short(value: Any) -> str:
    return repr(value)[:80]
