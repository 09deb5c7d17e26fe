"""An ONNX model in ONNX Runtime. Runs in the worker process only."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from airflow_mlscale import errors
from airflow_mlscale.roma.adapters import signatures, tensors

_DATATYPES: Mapping[str, str] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}

_BFLOAT16 = 16
"""``onnx.TensorProto.BFLOAT16``: numpy has no such type, so its arrays cross as what they are in memory."""


class OnnxModel:
    """One loaded model; a `warming.Executable`. Its one signature is called ``serving_default``."""

    runtime = "onnxruntime"

    def __init__(self, artefact: Path, *, threads: int) -> None:
        """Load it.

        Args:
            artefact: the ``.onnx`` file.
            threads: executions that run side by side, each on its caller's thread: ONNX Runtime needs none itself.

        Raises:
            ModelArtefactError: ONNX Runtime is not installed or cannot load it.
        """
        try:
            import onnxruntime
        except ImportError as exc:
            fix = "ONNX Runtime is not installed; install airflow-provider-mlscale[onnx]"
            raise errors.ModelArtefactError("artefact", str(artefact), fix) from exc
        del threads
        self._library = onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(artefact), options, providers=["CPUExecutionProvider"])
        except Exception as exc:  # of a dozen classes without a common one
            fix = f"ONNX Runtime cannot load it: {tensors.first_line(exc)}"
            raise errors.ModelArtefactError("artefact", str(artefact), fix) from exc
        inputs = [_tensor(artefact, node) for node in self._session.get_inputs()]
        outputs = [_tensor(artefact, node) for node in self._session.get_outputs()]
        self.signatures: Mapping[str, tensors.Signature] = signatures.alone(inputs, outputs)
        self.default = "serving_default"
        self._brain = any(one.datatype == "BF16" for one in (*inputs, *outputs))

    def run(self, signature: tensors.Signature, inputs: Mapping[str, tensors.Array]) -> dict[str, tensors.Array]:
        """Execute once; see `savedmodel.SavedModel.run`."""
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        names = list(signature.outputs)
        try:
            if self._brain:
                given = {name: self._value(array) for name, array in inputs.items()}
                values = map(_array, self._session.run_with_ort_values(names, given))
                return dict(zip(names, values, strict=True))
            arrays = {name: _strings(array) if array.dtype == object else array for name, array in inputs.items()}
            return dict(zip(names, map(np.asarray, self._session.run(names, arrays)), strict=True))
        except state.InvalidArgument as exc:
            fix = f"the model refuses them: {tensors.first_line(exc)}"
            raise errors.InvalidInputError("inputs", "these values", fix) from exc
        except errors.MlscaleError:
            raise
        except Exception as exc:  # of a dozen classes without a common one
            raise errors.RunFailedError(f"the model failed: {tensors.first_line(exc)}") from exc

    def close(self) -> None:
        """Free the session."""
        del self._session

    def _value(self, array: tensors.Array) -> Any:
        kind = self._library.OrtValue
        if array.dtype == ml_dtypes.bfloat16:
            raw = np.ascontiguousarray(array).view(np.uint16)
            return kind.ortvalue_from_numpy_with_onnx_type(raw, _BFLOAT16)
        return kind.ortvalue_from_numpy(_strings(array) if array.dtype == object else array)


def _array(value: Any) -> tensors.Array:
    if value.data_type() != "tensor(bfloat16)":
        return np.asarray(value.numpy())
    shape = value.shape()
    raw = ctypes.string_at(value.data_ptr(), 2 * prod(shape)) if prod(shape) else b""
    return np.frombuffer(raw, dtype=ml_dtypes.bfloat16).reshape(shape)


def _strings(array: tensors.Array) -> tensors.Array:
    """Text, as ONNX Runtime takes it: bytes it would write out in Python's notation."""
    try:
        decoded = [one.decode() if isinstance(one, bytes) else str(one) for one in array.ravel()]
    except UnicodeDecodeError as exc:
        raise errors.InvalidInputError("inputs", "these strings", "ONNX models take UTF-8 text only") from exc
    text = np.empty(len(decoded), dtype=object)
    text[:] = decoded
    return text.reshape(array.shape)


def _tensor(artefact: Path, node: Any) -> tensors.Tensor:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        fix = f"{node.name!r} of type {node.type} cannot be served; export a model of dense tensors"
        raise errors.ModelArtefactError("artefact", str(artefact), fix)
    sizes = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return signatures.tensor(node.name, datatype, sizes or None)  # it does not tell a scalar from an unknown shape
