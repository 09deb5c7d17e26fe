"""How our errors look to Airflow; lives with the hooks, where sensors may use it too."""

from __future__ import annotations

from airflow_mlscale.hooks.outcome import translated

__all__ = ["translated"]
