"""Keras 3 files: rewritten as a SavedModel when they are loaded, so that they are called without retracing.

Runs in the worker process only.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path

from airflow_mlscale import errors
from airflow_mlscale.roma.adapters import tensors


def export(file: Path, directory: Path) -> None:
    """Write a ``.keras`` file's model as a SavedModel, its batch dimension free.

    Raises:
        ModelArtefactError: Keras cannot load it, or only with code that it holds, or cannot export it.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)  # of the threads for this, which then stand idle
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.get_logger().setLevel("ERROR")
    try:
        network = keras.saving.load_model(file, compile=False, safe_mode=True)
        network.export(directory, format="tf_saved_model", verbose=False)
    except Exception as exc:  # Keras raises whatever it meets in the file
        fix = f"Keras cannot load it: {tensors.first_line(exc)}"
        raise errors.ModelArtefactError("artefact", str(file), fix) from exc
    del network  # its variables would be held twice
    keras.utils.clear_session()
    gc.collect()
