"""How weights and answers travel in NVFlare's ``FLModel``: one vocabulary for server job and trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TASK = "train"
REVEAL = "reveal"
"""The task of decrypting a sum; only of runs that encrypt."""
SETTINGS_FILE = "mlscale_run.json"
"""File of the job's custom folder with the run's settings."""

EPOCHS = "mlscale_local_epochs"
"""Local epochs by site."""
BATCH = "mlscale_batch_size"
SAMPLES = "mlscale_samples"
SECONDS = "mlscale_train_s"
LOSS = "mlscale_loss"
FIRST_LOSS = "mlscale_first_loss"
"""Of the first local epoch: what the model could not do before."""
ERROR = "mlscale_error"


NUM_STEPS = "NUM_STEPS_CURRENT_ROUND"
"""NVFlare's own name of what an answer weighs."""
VALIDATION_SAMPLES = "mlscale_validation_samples"
"""Samples behind `FLModel.metrics`; without it those of the training are meant."""


def flatten(weights: Sequence[Any]) -> Any:
    """Arrays in order → one array of numbers in double precision: what is encrypted as a whole costs least."""
    import numpy as np

    return np.concatenate([np.ravel(weight).astype(np.float64) for weight in weights])


def unflatten(flat: Any, like: Sequence[Any]) -> list[Any]:
    """`flatten` undone, in the shapes and types of other arrays.

    Raises:
        ValueError: there are more or fewer numbers than these have.
    """
    import numpy as np

    numbers = np.asarray(flat, np.float64)
    ends = np.cumsum([weight.size for weight in like])
    if numbers.shape != (ends[-1],):
        raise ValueError(f"{numbers.shape} numbers for {ends[-1]}")
    parts = [part.reshape(weight.shape) for part, weight in zip(np.split(numbers, ends[:-1]), like, strict=True)]
    return [
        (part if np.issubdtype(weight.dtype, np.floating) else np.rint(part)).astype(weight.dtype)
        for part, weight in zip(parts, like, strict=True)
    ]


def pack(weights: Any, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Arrays in order → parameters, of these names or of our own."""
    names = [f"w{i:05d}" for i in range(len(weights))] if names is None else names
    return dict(zip(names, weights, strict=True))


def named(params: Mapping[str, Any] | None, names: Sequence[str], given: Sequence[Any] | None = None) -> list[Any]:
    """Parameters as a client script sends them → arrays in order.

    Args:
        params: arrays, or what becomes one, by name.
        names: which there must be, and no others.
        given: the arrays that the script was sent, if it tells differences to them.

    Raises:
        ValueError: the names are others, or something is no array of numbers.
    """
    import numpy as np

    params = params or {}
    if missing := [name for name in names if name not in params]:
        raise ValueError(f"sent no parameter {missing[0]!r}; it was given {len(names)} and sent {len(params)}")
    if more := [name for name in params if name not in names]:
        raise ValueError(f"sent a parameter {more[0]!r} that the model does not have")
    found = [np.asarray(params[name]) for name in names]
    if bad := [name for name, array in zip(names, found, strict=True) if array.dtype.kind not in "biuf"]:
        raise ValueError(f"sent a parameter {bad[0]!r} that is no array of numbers")
    if given is None:
        return found
    if [array.shape for array in found] != [array.shape for array in given]:
        raise ValueError("sent weights of other shapes than it was given")
    return [(old + moved).astype(old.dtype) for old, moved in zip(given, found, strict=True)]


def unpack(params: Mapping[str, Any] | None) -> list[Any]:
    """Named parameters → arrays in order."""
    return [params[name] for name in sorted(params)] if params else []
