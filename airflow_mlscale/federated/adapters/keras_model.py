"""The Keras model on the server: initial weights, held-out evaluation, export."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import ports
from airflow_mlscale.federated.adapters import user_functions
from airflow_mlscale.federated.settings import RunSettings

EVALUATION_BATCH = 4096


def build(run: RunSettings) -> Any:
    """The user's compiled model.

    Raises:
        InvalidInputError: the function returned something else.
    """
    import keras

    keras.utils.set_random_seed(run.seed)
    function = user_functions.load("model", run.model)
    built = user_functions.call("model", run.model, **user_functions.accepted(function, run.data_args))
    if not isinstance(built, keras.Model):
        raise errors.InvalidInputError(
            "model", run.model, f"must return a keras.Model, returned {type(built).__name__}"
        )
    if not getattr(built, "compiled", False):
        raise errors.InvalidInputError("model", run.model, "must return a compiled model: call model.compile(...)")
    if not built.built:
        raise errors.InvalidInputError("model", run.model, "must know its input shape: begin with keras.Input(...)")
    return built


def trained(model: Any) -> list[bool]:
    """For each array of the model's weights whether gradients train it."""
    return [bool(variable.trainable) for variable in model.weights]


class KerasEvaluator:
    """`ports.Evaluator` with Keras. Building it checks the metric on a few held-out samples."""

    def __init__(self, run: RunSettings) -> None:
        self._run = run
        self._model = build(run)
        if run.privacy is not None:
            _check_private(run, self._model)
        held_out = user_functions.call("evaluation_data", run.evaluation_data, **run.data_args)
        self._x, self._y = user_functions.arrays("evaluation_data", run.evaluation_data, held_out)
        self._initial = self._model.get_weights()
        name = run.target.metric
        self._model.compile(
            optimizer=self._model.optimizer, loss=self._model.loss, metrics=[] if name == "loss" else [_metric(name)]
        )
        try:
            self._evaluate(self._x[:64], self._y[:64])
        except Exception as exc:  # Keras and TensorFlow raise a dozen kinds
            raise errors.InvalidInputError(
                "metric", name, f"cannot be computed for this model and its evaluation data ({exc})"
            ) from exc

    def initial_weights(self) -> ports.Weights:
        return self._initial  # type: ignore[no-any-return]

    def trained(self) -> Sequence[bool]:
        return trained(self._model)

    def evaluate(self, weights: ports.Weights) -> Mapping[str, float]:
        self._model.set_weights(list(weights))
        return self._evaluate(self._x, self._y)

    def export(self, weights: ports.Weights, directory: Path) -> ports.Exported:
        self._model.set_weights(list(weights))
        partial = directory / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        self._model.save(partial / "model.keras")
        _export(self._model, partial / "saved_model")
        for name in ("model.keras", "saved_model"):
            target = directory / name
            shutil.rmtree(target, ignore_errors=True)
            (partial / name).replace(target)
        partial.rmdir()
        return ports.Exported(keras_model=str(directory / "model.keras"), saved_model=str(directory / "saved_model"))

    def _evaluate(self, x: Any, y: Any) -> dict[str, float]:
        seen = self._model.evaluate(x, y, batch_size=EVALUATION_BATCH, verbose=0, return_dict=True)
        return {name: float(seen[name]) for name in {self._run.target.metric, "loss"}}


def _check_private(run: RunSettings, model: Any) -> None:
    """Moving means and variances would have to leave the sites unprotected."""
    import keras

    # Keras has no public way to walk into nested models.
    found = [layer.name for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    if found:
        raise errors.InvalidInputError(
            "model",
            run.model,
            f"has batch normalisation ({', '.join(found)}); privacy needs LayerNormalization instead",
        )


def _metric(name: str) -> Any:
    """The metric's Keras form; names of accuracies stay names, so that Keras chooses by the shape of the output."""
    import keras

    if name == "auc":
        return keras.metrics.AUC(name=name)
    if name in ("precision", "recall"):
        return getattr(keras.metrics, name.capitalize())(name=name)
    if name == "root_mean_squared_error":
        return keras.metrics.RootMeanSquaredError(name=name)
    return name


def _export(built: Any, path: Path) -> None:
    """Write a SavedModel whose signature ``serving_default`` names inputs and outputs as the model's layers do."""
    import tensorflow as tf
    from keras.export import ExportArchive

    inputs = [
        tf.TensorSpec(shape=(None, *tensor.shape[1:]), dtype=tensor.dtype, name=tensor.name) for tensor in built.inputs
    ]
    names = [tensor._keras_history.operation.name for tensor in built.outputs]  # a Sequential has no output_names

    def serve(*tensors: Any) -> dict[str, Any]:
        outputs = built(list(tensors) if len(tensors) > 1 else tensors[0], training=False)
        flat = outputs if isinstance(outputs, list | tuple) else [outputs]
        return dict(zip(names, flat, strict=True))

    archive = ExportArchive()
    archive.track(built)
    archive.add_endpoint("serve", serve, input_signature=inputs)
    archive.write_out(str(path), verbose=False)
