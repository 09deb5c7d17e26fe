"""How weights and answers travel in NVFlare's ``FLModel``: one vocabulary for server job and trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TASK = "train"
SETTINGS_FILE = "mlscale_run.json"
"""File of the job's custom folder with the run's settings."""

EPOCHS = "mlscale_local_epochs"
BATCH = "mlscale_batch_size"
SAMPLES = "mlscale_samples"
SECONDS = "mlscale_train_s"
LOSS = "mlscale_loss"
ERROR = "mlscale_error"


def pack(weights: Any) -> dict[str, Any]:
    """Arrays in order → named parameters."""
    return {f"w{i:05d}": weight for i, weight in enumerate(weights)}


def unpack(params: Mapping[str, Any] | None) -> list[Any]:
    """Named parameters → arrays in order."""
    return [params[name] for name in sorted(params)] if params else []
