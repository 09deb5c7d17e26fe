"""Which code decided: rows of different laws are not to be compared."""

from __future__ import annotations

import functools
from hashlib import sha256
from pathlib import Path

import airflow_mlscale

_MODULES = (
    "adaptive", "aggregation", "curve", "forecast", "oort", "optimisers", "paper", "policy", "server_step",
    "simulation", "sites", "static", "stopping",
)  # fmt: skip


@functools.cache
def name() -> str:
    """Eight digits of the policies' code."""
    package, digest = Path(airflow_mlscale.__file__).parent / "federated", sha256()
    for module in _MODULES:
        digest.update((package / f"{module}.py").read_bytes())
    return digest.hexdigest()[:8]
