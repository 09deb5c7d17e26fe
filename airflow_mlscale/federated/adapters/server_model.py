"""The model on the server of a run: a Keras model, or arrays by name for client scripts of any framework."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.federated import ports
from airflow_mlscale.federated.adapters import keras_model, user_functions
from airflow_mlscale.federated.settings import RunSettings

FILE = "model.npz"


def of(run: RunSettings) -> keras_model.KerasEvaluator | NamedWeights:
    """The run's model.

    Raises:
        InvalidInputError: a function of the run cannot be found or returns something else than it should.
    """
    return keras_model.KerasEvaluator(run) if run.model is not None else NamedWeights(run)


class NamedWeights:
    """`ports.Evaluator` of a run that only its client script can evaluate."""

    def __init__(self, run: RunSettings) -> None:
        path = str(run.initial_weights)
        function = user_functions.load("initial_weights", path)
        found = user_functions.call("initial_weights", path, **user_functions.accepted(function, run.data_args))
        self._arrays = _checked(path, found)

    def names(self) -> Sequence[str]:
        """Of the arrays, in their order."""
        return list(self._arrays)

    def initial_weights(self) -> ports.Weights:
        return list(self._arrays.values())

    def trained(self) -> Sequence[bool]:
        """Nobody says which arrays are statistics: all of real numbers count as trained."""
        return [array.dtype.kind == "f" for array in self._arrays.values()]

    def evaluate(self, weights: ports.Weights) -> Mapping[str, float]:
        raise RuntimeError("only the sites can evaluate this model")

    def export(self, weights: ports.Weights, directory: Path) -> ports.Exported:
        import numpy as np

        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f".{FILE}.partial"
        with partial.open("wb") as file:
            np.savez(file, **dict(zip(self._arrays, weights, strict=True)))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(directory / FILE)
        return ports.Exported(weights_file=str(directory / FILE))


def _checked(path: str, found: Any) -> dict[str, Any]:
    import numpy as np

    if not isinstance(found, Mapping) or not found:
        raise errors.InvalidInputError("initial_weights", path, f"must return arrays by name, returned {found!r:.100}")
    arrays = {name: np.asarray(value) for name, value in found.items()}
    for name, array in arrays.items():
        if not isinstance(name, str) or not name or name == "file":  # NumPy's savez has an argument of that name
            raise errors.InvalidInputError("initial_weights", name, "must have names of another kind")
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise errors.InvalidInputError("initial_weights", name, "must be an array of finite numbers")
    return arrays
