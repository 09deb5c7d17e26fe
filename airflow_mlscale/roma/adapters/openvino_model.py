"""A model in OpenVINO: SavedModels (without TensorFlow), ONNX files and its own ``.xml``.

Runs in the worker process only.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from airflow_mlscale import errors
from airflow_mlscale.roma.adapters import signatures, tensors

_DATATYPES: Mapping[str, str] = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "bf16": "BF16",
    "f32": "FP32",
    "f64": "FP64",
}

_REFUSALS = ("shape_inference", "ParameterMismatch", "shape_validation")
"""What its messages hold when inputs do not fit each other; it has one class for all of them."""


class OpenVinoModel:
    """One loaded model; a `warming.Executable`."""

    def __init__(self, artefact: Path, *, threads: int, precision: str = "f32") -> None:
        """Load it.

        Args:
            artefact: directory of a SavedModel, or an ``.onnx`` or ``.xml`` file.
            threads: executions that run side by side; each runs on one thread of OpenVINO's.
            precision: of the inner computations, ``f32`` or ``bf16``.

        Raises:
            ModelArtefactError: OpenVINO is not installed, cannot load it, or would not serve all of it.
        """
        self.runtime = "openvino" if precision == "f32" else f"openvino-{precision}"
        try:
            import openvino
        except ImportError as exc:
            fix = "OpenVINO is not installed; install airflow-provider-mlscale[openvino]"
            raise errors.ModelArtefactError("artefact", str(artefact), fix) from exc
        self._library = openvino
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise errors.ModelArtefactError("runtime", self.runtime, "this CPU has no instructions for bfloat16")
        saved = signatures.read(artefact) if artefact.is_dir() else None
        if saved and not _alike(saved):
            fix = f"OpenVINO reads one signature alone, and it has {', '.join(sorted(saved))}"
            raise errors.ModelArtefactError("artefact", str(artefact), fix)
        try:
            self._compiled = core.compile_model(core.read_model(artefact), "CPU", _options(threads, precision))
        except Exception as exc:  # RuntimeError mostly, whatever is wrong
            fix = f"OpenVINO cannot load it: {_reason(exc)}"
            raise errors.ModelArtefactError("artefact", str(artefact), fix) from exc
        self.signatures: Mapping[str, tensors.Signature] = saved or self._described(artefact)
        self.default = signatures.default(self.signatures)
        self._check(artefact, self.signatures[self.default])
        self._own = threading.local()

    def run(self, signature: tensors.Signature, inputs: Mapping[str, tensors.Array]) -> dict[str, tensors.Array]:
        """Execute once; see `savedmodel.SavedModel.run`."""
        request = getattr(self._own, "request", None)
        try:
            if request is None:
                request = self._own.request = self._compiled.create_infer_request()
            for name, array in inputs.items():
                request.set_tensor(name, self._tensor(array))
            request.infer()
            return {name: _array(request.get_tensor(name), one) for name, one in signature.outputs.items()}
        except Exception as exc:  # RuntimeError mostly, whatever is wrong
            if any(word in str(exc) for word in _REFUSALS):
                fix = f"the model refuses them: {_reason(exc)}"
                raise errors.InvalidInputError("inputs", "these values", fix) from exc
            raise errors.RunFailedError(f"the model failed: {_reason(exc)}") from exc

    def close(self) -> None:
        """Free the model; only for the thread that loaded it."""
        self._own = threading.local()
        del self._compiled

    def _tensor(self, array: tensors.Array) -> Any:
        if array.dtype == ml_dtypes.bfloat16:
            raw = np.ascontiguousarray(array).view(np.uint16)
            return self._library.Tensor(raw, list(array.shape), self._library.Type.bf16)
        return self._library.Tensor(array)

    def _described(self, artefact: Path) -> dict[str, tensors.Signature]:
        inputs = [_described(artefact, port) for port in self._compiled.inputs]
        return signatures.alone(inputs, [_described(artefact, port) for port in self._compiled.outputs])

    def _check(self, artefact: Path, signature: tensors.Signature) -> None:
        """What it read must be the signature that clients see, tensor by tensor."""
        ports = {name: port for port in (*self._compiled.inputs, *self._compiled.outputs) for name in port.names}
        for name, one in {**signature.inputs, **signature.outputs}.items():
            found = ports[name].element_type.get_type_name() if name in ports else "nothing"
            if _DATATYPES.get(found) != one.datatype:
                fix = f"OpenVINO has {found} where the model has {name!r} of {one.datatype}"
                raise errors.ModelArtefactError("artefact", str(artefact), fix)


def _alike(saved: Mapping[str, tensors.Signature]) -> bool:
    """Whether there is only one signature: Keras exports the same function under two names."""
    if len(saved) == 1:
        return True
    if saved.keys() != {"serve", "serving_default"}:
        return False
    one, other = (
        [(tensor.name, tensor.datatype, tensor.shape) for tensor in (*each.inputs.values(), *each.outputs.values())]
        for each in saved.values()
    )
    return one == other


def _options(threads: int, precision: str) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": threads,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # cores are shared by weight; a pinned thread would wait for its own
    }


def _array(found: Any, one: tensors.Tensor) -> tensors.Array:
    data: tensors.Array = np.array(found.data)  # a copy: the next execution writes there
    return data.view(ml_dtypes.bfloat16) if one.datatype == "BF16" else data


def _described(artefact: Path, port: Any) -> tensors.Tensor:
    kind = port.element_type.get_type_name()
    name = port.any_name if port.names else ""
    if kind not in _DATATYPES or not name:
        fix = f"{name!r} of type {kind} cannot be served in OpenVINO"
        raise errors.ModelArtefactError("artefact", str(artefact), fix)
    rank = port.partial_shape.rank
    shape = (
        tuple(-1 if size.is_dynamic else size.get_length() for size in port.partial_shape) if rank.is_static else None
    )
    return signatures.tensor(name, _DATATYPES[kind], shape)


def _reason(exc: Exception) -> str:
    """The lines that say something, of a message that begins with places in its sources."""
    lines = [line.strip() for line in str(exc).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "FrontEnd API"))]
    text, _, _ = " ".join(told).partition(" To facilitate the conversion")  # and the address of its manual
    return text[:300] or tensors.first_line(exc)
