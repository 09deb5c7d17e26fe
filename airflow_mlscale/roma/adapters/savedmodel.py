"""A TensorFlow SavedModel in a session of its own.

A v1 session gives each model its own thread pools, and loads SavedModels that ``tf.saved_model.load`` refuses.
Runs in the worker process only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf  # noqa: TID253 (this module runs in the worker process only)

from airflow_mlscale import errors
from airflow_mlscale.roma.adapters import signatures, tensors


class SavedModel:
    """One loaded model; a `warming.Executable`."""

    runtime = "tensorflow"

    def __init__(self, artefact: Path, *, threads: int) -> None:
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
                meta = tf.compat.v1.saved_model.load(self._session, [signatures.SERVING], str(artefact))
        except Exception as exc:  # TensorFlow raises whatever it meets in the file
            self._session.close()
            fix = f"TensorFlow cannot load it: {tensors.first_line(exc)}"
            raise errors.ModelArtefactError("artefact", str(artefact), fix) from exc
        self.signatures: Mapping[str, tensors.Signature] = signatures.of(str(artefact), meta.signature_def)
        self.default = signatures.default(self.signatures)
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
            fix = f"the model refuses them: {tensors.first_line(exc)}"
            raise errors.InvalidInputError("inputs", "these values", fix) from exc
        except Exception as exc:  # TensorFlow raises whatever the graph meets
            raise errors.RunFailedError(f"the model failed: {tensors.first_line(exc)}") from exc
        return dict(zip(signature.outputs, map(np.asarray, values), strict=True))

    def close(self) -> None:
        """Free the variables and threads."""
        self._run.clear()
        self._session.close()

    def _callable(self, signature: tensors.Signature) -> Callable[..., Any]:
        run: Callable[..., Any] = self._session.make_callable(
            [tensor.graph_name for tensor in signature.outputs.values()],
            feed_list=[tensor.graph_name for tensor in signature.inputs.values()],
        )
        return run
