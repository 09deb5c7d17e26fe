"""Loaded models before their first request: measured with made-up inputs, and compared with each other.

Runs in the worker process only.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from airflow_mlscale import errors
from airflow_mlscale.roma.adapters import tensors

BUDGET_S = 3.0
"""No larger batch is tried once warming up took this long."""

TURNS = 5
"""Of each model at each batch size in a race."""

COMPARED = (1, 3)
"""Batch sizes at which outputs are compared."""


class Executable(Protocol):
    """A model that is loaded in some runtime. Called from several threads at once."""

    runtime: str
    signatures: Mapping[str, tensors.Signature]
    default: str
    """Name of the signature that is meant where none is named."""

    def run(self, signature: tensors.Signature, inputs: Mapping[str, tensors.Array]) -> dict[str, tensors.Array]:
        """Execute once.

        Raises:
            InvalidInputError: the model refuses these values.
            RunFailedError: the model failed.
        """

    def close(self) -> None:
        """Free what it holds."""


def measure(model: Executable, *, max_batch: int, objective_s: float) -> tuple[dict[int, float], str]:
    """Run zeros through the default signature in growing batches.

    Returns:
        Seconds by batch size, and a note if nothing could be measured.
    """
    signature = model.signatures[model.default]
    measured: dict[int, float] = {}
    began, size = time.perf_counter(), 1
    try:
        while size <= (max_batch if signature.joinable else 1):
            inputs = {name: _zeros(tensor, size) for name, tensor in signature.inputs.items()}
            model.run(signature, inputs)  # the first run of a shape builds its plan
            measured[size] = min(_timed(model, signature, inputs) for _ in range(3))
            if measured[size] > objective_s or time.perf_counter() - began > BUDGET_S:
                break
            size *= 2
    except errors.MlscaleError as exc:
        return measured, f"not warmed up with made-up inputs: {exc}"
    return measured, ""


def warm(model: Executable, sizes: Iterable[int]) -> str:
    """Run zeros of these batch sizes once: the first run of a shape builds its plan. Returns why it cannot."""
    signature = model.signatures[model.default]
    try:
        for size in sizes:
            model.run(signature, {name: _zeros(tensor, size) for name, tensor in signature.inputs.items()})
    except errors.MlscaleError as exc:
        return str(exc)
    return ""


def race(models: Sequence[Executable], sizes: Sequence[int]) -> list[dict[int, float]]:
    """Measure warm models by turns, so that whatever else the host does meets them alike.

    Returns:
        Seconds by batch size of each model; the sizes that were reached within `BUDGET_S`, the first at least.
    """
    measured: list[dict[int, float]] = [{} for _ in models]
    began = time.perf_counter()
    for size in sizes:
        signature = models[0].signatures[models[0].default]
        inputs = {name: _zeros(tensor, size) for name, tensor in signature.inputs.items()}
        for turn in range(TURNS):
            for index in range(len(models)):
                place = (turn + index) % len(models)  # each also runs right after each other: it finds warm caches
                model, seconds = models[place], measured[place]
                taken = _timed(model, model.signatures[model.default], inputs)
                seconds[size] = min(taken, seconds.get(size, taken))
        if time.perf_counter() - began > BUDGET_S:
            break
    return measured


def greatest_difference(model: Executable, native: Executable, *, rtol: float, atol: float) -> tuple[float | None, str]:
    """Compare every signature on zeros and on random inputs (of a fixed seed).

    Returns:
        The greatest absolute difference of any value (None if nothing could be compared), and why the two do
        not agree, or nothing.
    """
    greatest: float | None = None
    why = ""
    for name, signature in native.signatures.items():
        if (other := model.signatures.get(name)) is None or not _alike(signature, other):
            return greatest, f"signature {name!r} is another in {model.runtime}"
        for inputs in _made_up(signature):
            try:
                expected = native.run(signature, inputs)
            except errors.MlscaleError:  # values made up that the model itself refuses say nothing
                continue
            try:
                found = model.run(other, inputs)
            except errors.MlscaleError as exc:
                return greatest, f"it cannot run what {native.runtime} can: {exc}"
            for output, array in expected.items():
                difference, agrees = _difference(found[output], array, rtol=rtol, atol=atol)
                greatest = max(greatest or 0.0, difference)
                why = why or ("" if agrees else f"output {output!r} differs by {difference:.3g}")
    if greatest is None:
        return None, f"it could not be compared: {native.runtime} refuses all made-up inputs"
    return greatest, why


def _difference(found: tensors.Array, expected: tensors.Array, *, rtol: float, atol: float) -> tuple[float, bool]:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf"), False
    if expected.dtype == object:
        same = tensors.as_bytes(found) == tensors.as_bytes(expected)
        return 0.0 if same else float("inf"), same
    if expected.dtype.kind in "iub":
        same = bool(np.array_equal(found, expected))
        apart = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0)
        return float(apart), same
    one, other = found.astype(np.float64), expected.astype(np.float64)
    agrees = bool(np.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True))
    with np.errstate(invalid="ignore"):
        apart = np.abs(one - other)
    finite = apart[np.isfinite(apart)]
    return float(finite.max(initial=0.0)) if agrees or finite.size == apart.size else float("inf"), agrees


def _alike(one: tensors.Signature, other: tensors.Signature) -> bool:
    """Whether clients would see the same names and types; a runtime may know more or less of the shapes."""
    return all(
        {name: tensor.datatype for name, tensor in mine.items()}
        == {name: tensor.datatype for name, tensor in theirs.items()}
        for mine, theirs in ((one.inputs, other.inputs), (one.outputs, other.outputs))
    )


def _made_up(signature: tensors.Signature) -> list[dict[str, tensors.Array]]:
    generator = np.random.default_rng(7)
    sizes = COMPARED if signature.joinable else (1,)
    zeros = [{name: _zeros(tensor, size) for name, tensor in signature.inputs.items()} for size in sizes]
    drawn = [{name: _random(generator, tensor, size) for name, tensor in signature.inputs.items()} for size in sizes]
    return [*zeros, *drawn]


def _random(generator: np.random.Generator, tensor: tensors.Tensor, size: int) -> tensors.Array:
    shape = _sizes(tensor, size)
    if tensor.datatype == "BYTES":
        return np.full(shape, b"7", dtype=object)
    if tensor.datatype in tensors.FLOATS:
        return generator.standard_normal(shape).astype(tensors.DATATYPES[tensor.datatype])
    return generator.integers(0, 2, shape).astype(tensors.DATATYPES[tensor.datatype])  # small: they may be indices


def _zeros(tensor: tensors.Tensor, size: int) -> tensors.Array:
    if tensor.datatype == "BYTES":
        return np.full(_sizes(tensor, size), b"", dtype=object)
    return np.zeros(_sizes(tensor, size), dtype=tensors.DATATYPES[tensor.datatype])


def _sizes(tensor: tensors.Tensor, size: int) -> list[int]:
    shape = (size,) if tensor.shape is None else tensor.shape
    return [size if index == 0 and dim == -1 else 1 if dim == -1 else dim for index, dim in enumerate(shape)]


def _timed(model: Executable, signature: tensors.Signature, inputs: Mapping[str, tensors.Array]) -> float:
    began = time.perf_counter()
    model.run(signature, inputs)
    return time.perf_counter() - began
