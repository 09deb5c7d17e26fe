"""Writes small real SavedModels with TensorFlow: ``python roma_models.py DIRECTORY``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_built: list[Path] = []


def built(directories: pytest.TempPathFactory) -> Path:
    """The directory of the models, written once for each test session in a process of its own."""
    if not _built:
        directory = directories.mktemp("models")
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
        subprocess.run([sys.executable, __file__, str(directory)], check=True, env=environment, timeout=180)
        _built.append(directory)
    return _built[0]


def main(directory: Path) -> None:
    import keras
    import tensorflow as tf

    class Line(tf.Module):
        """y = a·x + b, of any number of rows of three."""

        def __init__(self, a: float, b: float) -> None:
            super().__init__()
            self.a, self.b = tf.Variable(float(a)), tf.Variable(float(b))

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
        def __call__(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": self.a * x + self.b}

    class Burner(tf.Module):
        """Turns a matrix ``turns`` times: as slow as one likes, and without a batch dimension."""

        @tf.function(input_signature=[tf.TensorSpec([], tf.int32, name="turns")])
        def __call__(self, turns: tf.Tensor) -> dict[str, tf.Tensor]:
            start = tf.eye(96)
            _, end = tf.while_loop(lambda i, m: i < turns, lambda i, m: (i + 1, tf.matmul(m, start)), (0, start))
            return {"trace": tf.linalg.trace(end)}

    class Words(tf.Module):
        """Joins a text and a number: strings in and out, two inputs."""

        @tf.function(
            input_signature=[tf.TensorSpec([None], tf.string, name="text"), tf.TensorSpec([None], tf.int64, name="n")]
        )
        def __call__(self, text: tf.Tensor, n: tf.Tensor) -> dict[str, tf.Tensor]:
            joined = tf.strings.join([text, tf.strings.as_string(n)], "-")
            return {"joined": joined, "length": tf.strings.length(joined)}

    for name, model in {"line1": Line(2, 1), "line2": Line(3, 1), "burner": Burner(), "words": Words()}.items():
        tf.saved_model.save(model, str(directory / name), signatures={"serving_default": model.__call__})

    keras.utils.set_random_seed(7)
    network = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1, activation="sigmoid")]
    )
    network.export(directory / "keras", verbose=False)
    rows = [[0.5, -1.0, 2.0, 3.0], [1.0, 0.0, 0.25, -2.0]]
    truth = {"rows": rows, "outputs": network(tf.constant(rows)).numpy().tolist()}
    (directory / "truth.json").write_text(json.dumps(truth))

    (directory / "broken" / "variables").mkdir(parents=True)
    (directory / "broken" / "saved_model.pb").write_bytes(b"this is no protocol buffer")
    (directory / "empty").mkdir()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
