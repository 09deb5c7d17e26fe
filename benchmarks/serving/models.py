"""The models of a session: what is asked of them, and what one request looks like."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from struct import pack

from benchmarks.serving import setup


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model as it is offered to every system."""

    name: str
    says: str
    shape: tuple[int, ...]
    """Of one request."""
    part: float
    """Of the machine's work that it is given; those of all models sum to 1."""
    least_objective_ms: float
    """Objectives are `OBJECTIVE_FACTOR` times the service time alone, and no less than this."""

    @property
    def artefact(self) -> Path:
        return setup.model_path(self.name)

    def values(self) -> bytes:
        """One input, float32, the same in every run."""
        rng, count = Random(self.name), 1
        for size in self.shape:
            count *= size
        return pack(f"<{count}f", *(rng.random() for _ in range(count)))


MODELS: Mapping[str, Model] = {
    one.name: one
    for one in (
        Model(
            name="pitch",
            says="the pitch detector of basic-pitch, as published",
            shape=(1, 43844, 1),
            part=0.3,
            least_objective_ms=100,
        ),
        Model(
            name="mobilenet",
            says="MobileNetV2's architecture with random weights",
            shape=(1, 224, 224, 3),
            part=0.3,
            least_objective_ms=100,
        ),
        Model(
            name="efficientnet",
            says="EfficientNetB0's architecture with random weights",
            shape=(1, 224, 224, 3),
            part=0.3,
            least_objective_ms=100,
        ),
        Model(
            name="flight_delay",
            says="the demo's flight-delay network with random weights",
            shape=(1, 26),
            part=0.1,
            least_objective_ms=50,
        ),
    )
}

OBJECTIVE_FACTOR = 8.0
"""Objective ÷ service time of one request alone on the machine (median)."""


def objective_ms(model: Model, alone_s: float) -> float:
    """The 95th percentile to keep, in steps of 10 ms."""
    return max(model.least_objective_ms, 10.0 * round(100 * OBJECTIVE_FACTOR * alone_s))


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model with what this machine made of it."""

    model: Model
    objective_ms: float
    rate_per_s: float
    """Mean rate at load 1."""
    min_cores: float | None = None
    """What it is promised; None for the system's default."""


def v2_binary(model: Model, input_name: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of one request with the binary tensor extension; answers come binary too."""
    values = model.values()
    tensor = {
        "name": input_name,
        "shape": list(model.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(values)},
    }
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    content = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(header))}
    return header + values, content
