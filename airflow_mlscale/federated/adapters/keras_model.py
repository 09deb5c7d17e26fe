"""The Keras model on the server: initial weights, held-out evaluation, export."""

from __future__ import annotations

import inspect
import shutil
from collections import Counter
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
    function = user_functions.load("model", str(run.model))
    built = user_functions.call("model", str(run.model), **user_functions.accepted(function, run.data_args))
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


def names(model: Any, form: str) -> list[str]:
    """How a client script is told the model's arrays, in their order: by variable, or as NVFlare names those of layers.

    Raises:
        InvalidInputError: two have the same name.
    """
    if form == "keras_layer_weights":
        by_variable = {
            id(variable): f"{layer.name}{NVFLARE_LAYER}{i}"
            for layer in model.layers
            for i, variable in enumerate(layer.weights)
        }
        found = [by_variable[id(variable)] for variable in model.weights]
    else:
        found = [str(variable.path) for variable in model.weights]
    if twice := [name for name, count in Counter(found).items() if count > 1]:
        raise errors.InvalidInputError("model", twice[0], "several of its weights have this name; name its layers")
    return found


NVFLARE_LAYER = "_nvf_"
"""What NVFlare puts between a layer's name and the number of its array."""


class Measure:
    """A metric and the loss of a model on data that it is not trained on.

    A second view of the same variables, so that the model's own compilation stays as the user wrote it.
    """

    def __init__(self, run: RunSettings, model: Any, x: Any, y: Any) -> None:
        """Check the metric on a few samples.

        Raises:
            InvalidInputError: it cannot be computed.
        """
        import keras

        self._name, self._x, self._y = run.target.metric, x, y
        self._key, found = metric(run)
        ends = [each[0] if len(each) == 1 else each for each in (model.inputs, model.outputs)]
        self._view = keras.Model(*ends)  # a Sequential model knows no `input` before it is called
        self._view.compile(loss=model.loss, metrics=[] if found is None else [found])
        try:
            self._evaluate(x[:64], y[:64])
        except Exception as exc:  # Keras and TensorFlow raise a dozen kinds
            raise errors.InvalidInputError(
                "metric", self._name, f"cannot be computed for this model and its evaluation data ({exc})"
            ) from exc

    def __call__(self) -> dict[str, float]:
        """The target's metric and ``loss`` of the weights that the model has now."""
        return self._evaluate(self._x, self._y)

    def _evaluate(self, x: Any, y: Any) -> dict[str, float]:
        seen = self._view.evaluate(x, y, batch_size=EVALUATION_BATCH, verbose=0, return_dict=True)
        return {"loss": float(seen["loss"]), self._name: float(seen[self._key])}


class KerasEvaluator:
    """`ports.Evaluator` with Keras. Building it checks the metric on a few held-out samples."""

    def __init__(self, run: RunSettings) -> None:
        self._run = run
        self._model = build(run)
        if run.privacy is not None:
            _check_private(run, self._model)
        self._initial = self._model.get_weights()
        self._measure: Measure | None = None
        if run.evaluation_data is not None:
            told = user_functions.arguments(run, "evaluation_data", run.evaluation_data, run.data_args)
            held_out = user_functions.call("evaluation_data", run.evaluation_data, **told)
            data = user_functions.arrays("evaluation_data", run.evaluation_data, held_out)
            self._measure = Measure(run, self._model, *data)

    def names(self) -> Sequence[str]:
        """What a client script is told the arrays are called."""
        return names(self._model, self._run.client_script_format)

    def initial_weights(self) -> ports.Weights:
        return self._initial  # type: ignore[no-any-return]

    def trained(self) -> Sequence[bool]:
        return trained(self._model)

    def evaluate(self, weights: ports.Weights) -> Mapping[str, float]:
        if self._measure is None:
            raise RuntimeError("there is no held-out data")
        self._model.set_weights(list(weights))
        return self._measure()

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


def metric(run: RunSettings) -> tuple[str, Any]:
    """The target's metric: its name in Keras' results, and what Keras compiles; the latter None for the loss.

    ``accuracy`` stays a name, so that Keras chooses by the shape of the output.

    Raises:
        InvalidInputError: there is no such metric, or it needs arguments.
    """
    import keras

    name = run.target.metric
    if name in ("loss", "accuracy"):
        return name, None if name == "loss" else name
    found = _own_metric(name) if ":" in name else _keras_metric(name)
    if not isinstance(found, keras.metrics.Metric):
        found = keras.metrics.MeanMetricWrapper(found, name=getattr(found, "__name__", "metric"))
    return str(found.name), found


def _keras_metric(name: str) -> Any:
    import keras

    try:
        found = keras.metrics.get(name)
    except (TypeError, ValueError) as exc:  # an unknown name, or one of a class that needs arguments
        fix = f"Keras cannot make it of its name alone ({exc}); write a function that returns it, 'module:function'"
        raise errors.InvalidInputError("metric", name, fix) from exc
    of_classes = isinstance(found, keras.metrics.FBetaScore)  # by itself Keras tells one score for each class
    return type(found)(average="macro") if of_classes else found


def _own_metric(path: str) -> Any:
    """A metric class's instance, what a function without arguments returns, or a function of labels and outputs."""
    import keras

    found = user_functions.load("metric", path)
    needed = [each for each in inspect.signature(found).parameters.values() if each.default is each.empty]
    named = [each for each in needed if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
    if inspect.isclass(found) or not named:
        made = user_functions.call("metric", path)
        if not isinstance(made, keras.metrics.Metric):
            fix = f"must give a keras.metrics.Metric, gave {type(made).__name__}"
            raise errors.InvalidInputError("metric", path, fix)
        return made
    return found


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
