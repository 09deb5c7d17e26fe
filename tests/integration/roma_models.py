"""Writes small real SavedModels with TensorFlow: ``python roma_models.py DIRECTORY``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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

    class SlowLine(Line):
        """The same after a good tenth of a second of work, however many rows."""

        @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
        def __call__(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            start = tf.eye(96)
            _, end = tf.while_loop(lambda i, m: i < 3000, lambda i, m: (i + 1, tf.matmul(m, start)), (0, start))
            return {"y": self.a * x + self.b * tf.linalg.trace(end) / 96}

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

    class Short(tf.Module):
        """Both 16-bit floats, doubled."""

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, 2], tf.float16, name="half"),
                tf.TensorSpec([None, 2], tf.bfloat16, name="brain"),
            ]
        )
        def __call__(self, half: tf.Tensor, brain: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"half_out": 2 * half, "brain_out": 2 * brain}

    class Pair(tf.Module):
        """Two signatures, the first with two inputs and two outputs."""

        @tf.function(
            input_signature=[tf.TensorSpec([None, 2], tf.float32, name="a"), tf.TensorSpec([None, 2], name="b")]
        )
        def sum(self, a: tf.Tensor, b: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"sum": a + b, "larger": tf.argmax(tf.stack([a, b], axis=1), axis=1)}

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="a")])
        def twice(self, a: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"twice": 2 * a}

    pair = Pair()
    tf.saved_model.save(pair, str(directory / "pair"), signatures={"serving_default": pair.sum, "twice": pair.twice})

    models = {
        "line1": Line(2, 1),
        "line2": Line(3, 1),
        "slow2": SlowLine(3, 1),
        "burner": Burner(),
        "words": Words(),
        "short": Short(),
    }
    for name, model in models.items():
        tf.saved_model.save(model, str(directory / name), signatures={"serving_default": model.__call__})

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        _save_examples(session, directory / "examples")

    keras.utils.set_random_seed(7)
    network = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1, activation="sigmoid")]
    )
    network.export(directory / "keras", verbose=False)
    network.save(directory / "network.keras")
    rows = [[0.5, -1.0, 2.0, 3.0], [1.0, 0.0, 0.25, -2.0]]
    truth = {"rows": rows, "outputs": network(tf.constant(rows)).numpy().tolist()}
    (directory / "truth.json").write_text(json.dumps(truth))

    _write_onnx(directory)

    (directory / "broken" / "variables").mkdir(parents=True)
    (directory / "broken" / "saved_model.pb").write_bytes(b"this is no protocol buffer")
    (directory / "empty").mkdir()


def _write_onnx(directory: Path) -> None:
    """``line.onnx``: two inputs, two outputs. ``halves.onnx``: 16-bit floats. ``text.onnx``: strings."""
    from onnx import TensorProto, checker, helper, save

    value = helper.make_tensor_value_info
    line = [helper.make_node("Mul", ["x", "a"], ["ax"]), helper.make_node("Add", ["ax", "b"], ["y"])]
    line.append(helper.make_node("ReduceMax", ["y"], ["most"], axes=[1], keepdims=0))
    graphs: dict[str, Any] = {
        "line": (
            line,
            [value("x", TensorProto.FLOAT, ["rows", "columns"]), value("b", TensorProto.FLOAT, ["rows", 1])],
            [value("y", TensorProto.FLOAT, ["rows", "columns"]), value("most", TensorProto.FLOAT, ["rows"])],
            [helper.make_tensor("a", TensorProto.FLOAT, [], [2.0])],
        ),
        "halves": (
            [helper.make_node("Add", ["half", "half"], ["half_out"]), helper.make_node("Identity", ["brain"], ["out"])],
            [value("half", TensorProto.FLOAT16, ["rows", 2]), value("brain", TensorProto.BFLOAT16, ["rows", 2])],
            [value("half_out", TensorProto.FLOAT16, ["rows", 2]), value("out", TensorProto.BFLOAT16, ["rows", 2])],
            [],
        ),
        "text": (
            [helper.make_node("StringNormalizer", ["text"], ["upper"], case_change_action="UPPER", locale="C.UTF-8")],
            [value("text", TensorProto.STRING, ["rows"])],
            [value("upper", TensorProto.STRING, ["rows"])],
            [],
        ),
    }
    for name, (nodes, inputs, outputs, constants) in graphs.items():
        graph = helper.make_graph(nodes, name, inputs, outputs, constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        checker.check_model(model)
        save(model, str(directory / f"{name}.onnx"))


def _save_examples(session: Any, directory: Path) -> None:
    """Classifies and regresses serialised examples, as estimators did: its feature ``a`` is the score."""
    import tensorflow as tf

    v1 = tf.compat.v1
    serialised = v1.placeholder(tf.string, [None], name="examples")
    features = {name: tf.io.FixedLenFeature([1], tf.float32, default_value=[0.0]) for name in ("a", "b")}
    parsed = tf.io.parse_example(serialised, features)
    scores = tf.concat([parsed["a"], 1 - parsed["a"]], axis=1)
    classes = tf.tile(tf.constant([["yes", "no"]]), [tf.shape(serialised)[0], 1])
    builder = v1.saved_model.Builder(str(directory))
    signatures = {
        "serving_default": v1.saved_model.classification_signature_def(serialised, classes, scores),
        "sum": v1.saved_model.regression_signature_def(serialised, parsed["a"] + parsed["b"]),
    }
    builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
    builder.save()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
