"""Tensors between JSON, raw bytes and numpy: types, shapes and their errors.

Runs in the worker process only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import ml_dtypes  # noqa: F401 (teaches numpy the name bfloat16)
import numpy as np
import numpy.typing as npt

from airflow_mlscale import errors

Array = npt.NDArray[Any]

DATATYPES: Mapping[str, str] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "BF16": "bfloat16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
"""Open Inference Protocol name → numpy name."""

FLOATS = ("BF16", "FP16", "FP32", "FP64")

NAMES: Mapping[str, str] = {numpy: name for name, numpy in DATATYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One input or output of a signature."""

    name: str
    graph_name: str
    """Of the tensor in the graph, such as ``serving_default_x:0``."""
    dtype: str
    """TensorFlow's own name, such as ``DT_FLOAT``."""
    datatype: str
    """Open Inference Protocol name."""
    shape: tuple[int, ...] | None
    """-1 for a free dimension; None for an unknown rank."""

    @property
    def joinable(self) -> bool:
        """Whether the first dimension is free."""
        return bool(self.shape) and self.shape is not None and self.shape[0] == -1


@dataclass(frozen=True, kw_only=True)
class Signature:
    """One callable of a model."""

    name: str
    method: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]

    @property
    def joinable(self) -> bool:
        """Whether requests can be joined along the first dimension of everything."""
        return all(tensor.joinable for tensor in [*self.inputs.values(), *self.outputs.values()])


@dataclass(frozen=True, kw_only=True)
class Inference:
    """One decoded call."""

    signature: Signature
    inputs: Mapping[str, Array]
    reply: Any
    """What the codec needs to encode the answer; opaque to everybody else."""

    @property
    def rows(self) -> int:
        first = next(iter(self.inputs.values()))
        return int(first.shape[0]) if first.ndim else 1


def from_values(field: str, values: Any, tensor: Tensor) -> Array:
    """Nested JSON values as an array of the tensor's type; the caller checks the shape."""
    if tensor.datatype == "BYTES":
        return _from_strings(field, values)
    try:
        array = np.array(values)
    except (ValueError, OverflowError) as exc:  # ragged lists, integers beyond 64 bits
        raise errors.InvalidInputError(field, _short(values), "give lists of numbers of equal length") from exc
    target = np.dtype(DATATYPES[tensor.datatype])
    allowed = {"V": "fiu", "f": "fiu", "i": "iu", "u": "iu", "b": "b"}[target.kind]  # bfloat16 is a V to numpy
    if target.kind in "iu" and array.dtype.kind == "f":
        array = _whole(values, array)
    if array.size and array.dtype.kind not in allowed:
        raise errors.InvalidInputError(field, _short(values), f"give values of type {tensor.datatype} only")
    if target.kind in "iu" and array.size:
        limits = np.iinfo(target)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise errors.InvalidInputError(field, _short(values), f"a value does not fit {tensor.datatype}")
    with np.errstate(over="ignore"):
        return array.astype(target)


def _whole(values: Any, array: Array) -> Array:
    """Whole numbers on both sides of 2^63 are floats to numpy; take them for what they are, if that is all there is."""
    exact = np.array(values, dtype=object)
    if not all(type(value) is int and 0 <= value < 2**64 for value in exact.ravel()):
        return array
    return exact.astype(np.uint64)


def from_raw(field: str, raw: bytes | memoryview, shape: Sequence[int], tensor: Tensor) -> Array:
    """Little-endian bytes as an array (v2 binary extension)."""
    count = prod(shape)
    if tensor.datatype == "BYTES":
        elements = list(_split_elements(field, raw))
        if len(elements) != count:
            fix = f"shape {list(shape)} needs {count} elements, the data holds {len(elements)}"
            raise errors.InvalidInputError(field, f"{len(raw)} bytes", fix)
        array = np.empty(count, dtype=object)
        array[:] = elements
        return reshaped(field, array, shape)
    target = np.dtype(DATATYPES[tensor.datatype]).newbyteorder("<")
    if len(raw) != count * target.itemsize:
        fix = f"shape {list(shape)} of {tensor.datatype} needs {count * target.itemsize} bytes"
        raise errors.InvalidInputError(field, f"{len(raw)} bytes", fix)
    return reshaped(field, np.frombuffer(raw, dtype=target), shape)


def to_raw(array: Array) -> bytes:
    """The reverse of `from_raw`."""
    if array.dtype == object:
        return b"".join(struct.pack("<I", len(element)) + element for element in map(_as_bytes, array.ravel()))
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def reshaped(field: str, array: Array, shape: Sequence[int]) -> Array:
    """The array in a shape of as many elements, or `InvalidInputError`."""
    try:
        return array.reshape(shape)
    except (ValueError, OverflowError) as exc:  # beyond numpy's dimensions or sizes, or another number of elements
        fix = f"the data holds {array.size} values, in shapes of at most 64 dimensions"
        raise errors.InvalidInputError(f"{field} shape", _short(list(shape)), fix) from exc


def check_shape(field: str, shape: Sequence[int], tensor: Tensor) -> None:
    """Refuse what the signature does not allow."""
    if tensor.shape is None:
        return
    fits = len(tensor.shape) == len(shape) and all(
        want in (-1, have) for want, have in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise errors.InvalidInputError(field, _short(list(shape)), f"the model takes shape {list(tensor.shape)}")


def check_rows(inputs: Mapping[str, Array], signature: Signature) -> None:
    """Refuse inputs of different numbers of rows where rows are joined."""
    if signature.joinable and len({array.shape[0] for array in inputs.values()}) > 1:
        shapes = {name: list(array.shape) for name, array in inputs.items()}
        raise errors.InvalidInputError("inputs", shapes, "all inputs need the same first dimension")


def check_type(field: str, datatype: Any, tensor: Tensor) -> None:
    """Refuse another datatype than the signature's."""
    if datatype != tensor.datatype:
        raise errors.InvalidInputError(f"{field} datatype", _short(datatype), f"the model takes {tensor.datatype}")


def check_names(given: Mapping[str, Any], signature: Signature) -> None:
    """Refuse missing and unknown inputs."""
    wanted = ", ".join(signature.inputs)
    for name in signature.inputs:
        if name not in given:
            raise errors.InvalidInputError(
                "inputs", list(given), f"input {name!r} is missing; the model takes {wanted}"
            )
    for name in given:
        if name not in signature.inputs:
            raise errors.InvalidInputError("inputs", name, f"unknown input; the model takes {wanted}")


def text(element: Any) -> str:
    """A string element for JSON."""
    return _as_bytes(element).decode("utf-8", errors="replace")


def as_bytes(array: Array) -> list[bytes]:
    """The elements of a string tensor, flat."""
    return [_as_bytes(element) for element in array.ravel()]


def first_line(exc: Exception) -> str:
    """What matters of a library's error message."""
    lines = str(exc).strip().splitlines()
    return (lines[0] if lines else type(exc).__name__)[:300]


def _as_bytes(element: Any) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()


def _from_strings(field: str, values: Any) -> Array:
    def convert(value: Any) -> Any:
        if isinstance(value, list):
            return [convert(one) for one in value]
        if isinstance(value, str):
            return _encoded(field, value)
        if isinstance(value, bytes):
            return value
        raise errors.InvalidInputError(field, _short(value), "give strings only")

    try:
        array = np.array(convert(values), dtype=object)
    except ValueError as exc:
        raise errors.InvalidInputError(field, _short(values), "give lists of strings of equal length") from exc
    if any(isinstance(element, list) for element in array.ravel()):
        raise errors.InvalidInputError(field, _short(values), "give lists of strings of equal length")
    return array


def _encoded(field: str, value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as exc:  # half a pair of surrogates
        raise errors.InvalidInputError(field, ascii(value)[:60], "it is no Unicode text") from exc


def _split_elements(field: str, raw: bytes | memoryview) -> Iterator[bytes]:
    at, raw = 0, bytes(raw)
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        if at + 4 + size > len(raw):
            raise errors.InvalidInputError(field, f"{len(raw)} bytes", "an element is longer than the data")
        yield raw[at + 4 : at + 4 + size]
        at += 4 + size


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
