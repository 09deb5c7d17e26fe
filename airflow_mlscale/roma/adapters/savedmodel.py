"""A TensorFlow SavedModel in a session of its own: loading, warming up, running batches.

A v1 session gives each model its own thread pools, and loads SavedModels that ``tf.saved_model.load`` refuses.
Runs in the worker process only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf  # noqa: TID253 (this module runs in the worker process only)

from airflow_mlscale import errors
from airflow_mlscale.roma.adapters import tensors

WARM_UP_BUDGET_S = 3.0
"""No larger batch is tried once warming up took this long."""

_SERVING = "serve"


class SavedModel:
    """One loaded model."""

    def __init__(self, artefact: str, *, threads: int) -> None:
        """Load it.

        Args:
            artefact: the SavedModel's directory.
            threads: executions that run side by side; each runs on one thread.

        Raises:
            ModelArtefactError: TensorFlow cannot load it, or it has nothing to call.
        """
        tf.get_logger().setLevel("ERROR")  # it advises against the v1 loader, which is used on purpose
        options = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=1, inter_op_parallelism_threads=threads, use_per_session_threads=True
        )
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=options)
        try:
            with self._session.graph.as_default():
                meta = tf.compat.v1.saved_model.load(self._session, [_SERVING], artefact)
        except Exception as exc:  # TensorFlow raises whatever it meets in the file
            raise errors.ModelArtefactError("artefact", artefact, _first_line(exc)) from exc
        self.signatures = {
            name: _signature(name, definition)
            for name, definition in meta.signature_def.items()
            if not name.startswith("__saved_model") and definition.inputs and definition.outputs
        }
        if not self.signatures:
            fix = "it has no signature with inputs and outputs; write one with keras.Model.export(path)"
            raise errors.ModelArtefactError("artefact", artefact, fix)
        self.default = next((n for n in ("serving_default", "serve") if n in self.signatures), min(self.signatures))
        self._run = {name: self._callable(signature) for name, signature in self.signatures.items()}

    def run(self, signature: tensors.Signature, inputs: Mapping[str, tensors.Array]) -> dict[str, tensors.Array]:
        """Execute once.

        Raises:
            InvalidInputError: the model refuses these values.
            RunFailedError: the model failed.
        """
        try:
            values = self._run[signature.name](*(inputs[name] for name in signature.inputs))
        except tf.errors.InvalidArgumentError as exc:
            raise errors.InvalidInputError(
                "inputs", "these values", f"the model refuses them: {_first_line(exc)}"
            ) from exc
        except Exception as exc:  # TensorFlow raises whatever the graph meets
            raise errors.RunFailedError(f"the model failed: {_first_line(exc)}") from exc
        return dict(zip(signature.outputs, map(np.asarray, values), strict=True))

    def warm_up(self, *, max_batch: int, objective_s: float) -> tuple[dict[int, float], str]:
        """Run zeros through the default signature in growing batches.

        Returns:
            Seconds by batch size, and a note if nothing could be measured.
        """
        signature = self.signatures[self.default]
        measured: dict[int, float] = {}
        began, size = time.perf_counter(), 1
        try:
            while size <= (max_batch if signature.joinable else 1):
                inputs = {name: _zeros(tensor, size) for name, tensor in signature.inputs.items()}
                self.run(signature, inputs)  # the first run of a shape builds its plan
                measured[size] = min(self._timed(signature, inputs) for _ in range(3))
                if measured[size] > objective_s or time.perf_counter() - began > WARM_UP_BUDGET_S:
                    break
                size *= 2
        except errors.MlscaleError as exc:
            return measured, f"not warmed up with made-up inputs: {exc}"
        return measured, ""

    def described(self) -> dict[str, Any]:
        """All signatures as JSON, in the form of `ports.Loaded.signatures`."""
        return {
            name: {
                "method": signature.method,
                "inputs": [asdict(tensor) for tensor in signature.inputs.values()],
                "outputs": [asdict(tensor) for tensor in signature.outputs.values()],
            }
            for name, signature in self.signatures.items()
        }

    def _callable(self, signature: tensors.Signature) -> Callable[..., Any]:
        run: Callable[..., Any] = self._session.make_callable(
            [tensor.graph_name for tensor in signature.outputs.values()],
            feed_list=[tensor.graph_name for tensor in signature.inputs.values()],
        )
        return run

    def _timed(self, signature: tensors.Signature, inputs: Mapping[str, tensors.Array]) -> float:
        began = time.perf_counter()
        self.run(signature, inputs)
        return time.perf_counter() - began


def _signature(name: str, definition: Any) -> tensors.Signature:
    return tensors.Signature(
        name=name,
        method=definition.method_name,
        inputs={key: _tensor(key, definition.inputs[key]) for key in sorted(definition.inputs)},
        outputs={key: _tensor(key, definition.outputs[key]) for key in sorted(definition.outputs)},
    )


def _tensor(name: str, info: Any) -> tensors.Tensor:
    dtype = tf.dtypes.as_dtype(info.dtype)
    numpy_name = "object" if dtype == tf.string else np.dtype(dtype.as_numpy_dtype).name
    datatype = tensors.NAMES.get(numpy_name)
    if datatype is None or not info.name:
        fix = f"tensor {name!r} of type {dtype.name} cannot be served; export a signature of dense tensors"
        raise errors.ModelArtefactError("artefact", name, fix)
    shape = None if info.tensor_shape.unknown_rank else tuple(int(dim.size) for dim in info.tensor_shape.dim)
    return tensors.Tensor(
        name=name,
        graph_name=info.name,
        dtype=_enum_name(info.dtype),
        datatype=datatype,
        shape=shape,
    )


def _enum_name(value: int) -> str:
    from tensorflow.core.framework import types_pb2

    return str(types_pb2.DataType.Name(value))


def _zeros(tensor: tensors.Tensor, size: int) -> tensors.Array:
    shape = tensor.shape or (size,)
    sizes = [size if index == 0 and dim == -1 else 1 if dim == -1 else dim for index, dim in enumerate(shape)]
    if tensor.datatype == "BYTES":
        return np.full(sizes, b"", dtype=object)
    return np.zeros(sizes, dtype=tensors.DATATYPES[tensor.datatype])


def _first_line(exc: Exception) -> str:
    lines = str(exc).strip().splitlines()
    return (lines[0] if lines else type(exc).__name__)[:300]
