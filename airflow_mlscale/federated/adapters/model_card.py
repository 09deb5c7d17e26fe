"""Writes the model card beside the exported model."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

from airflow_mlscale import __version__
from airflow_mlscale.federated import card, model
from airflow_mlscale.federated.settings import RunSettings

PACKAGES = ("keras", "nvflare", "numpy", "opendp", "tenseal", "tensorflow", "tensorflow-cpu")
"""Whose versions may matter to who loads the model or trains it again."""


def write(run: RunSettings, state: model.RunState) -> Path | None:
    """Write ``model_card.json`` and ``model_card.md`` beside the saved model; returns the latter's path.

    None, and nothing is written, while nothing is exported.
    """
    if not state.exported:
        return None
    found = card.card(run, state, versions())
    directory = Path(state.exported).parent
    _put((directory / card.FILE).with_suffix(".json"), json.dumps(found, indent=1))
    return _put(directory / card.FILE, card.markdown(found))


def versions() -> dict[str, str]:
    """Of this package, of Python and of whichever of `PACKAGES` are installed."""
    found = {"airflow-provider-mlscale": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _put(path: Path, text: str) -> Path:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path
