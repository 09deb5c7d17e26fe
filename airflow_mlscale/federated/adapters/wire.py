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


def pack(weights: Any) -> dict[str, Any]:
    """Arrays in order → named parameters."""
    return {f"w{i:05d}": weight for i, weight in enumerate(weights)}


def unpack(params: Mapping[str, Any] | None) -> list[Any]:
    """Named parameters → arrays in order."""
    return [params[name] for name in sorted(params)] if params else []
