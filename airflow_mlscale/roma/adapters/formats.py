"""How models lie on disk, and which runtimes read what. Nothing is loaded here."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path


class Format(StrEnum):
    """A way of writing a model down."""

    SAVED_MODEL = "a SavedModel"
    KERAS = "a Keras file"
    ONNX = "an ONNX file"
    OPENVINO = "an OpenVINO file"


RUNTIMES: Mapping[Format, tuple[str, ...]] = {
    Format.SAVED_MODEL: ("tensorflow", "openvino", "openvino-bf16"),
    Format.KERAS: ("tensorflow", "openvino", "openvino-bf16"),
    Format.ONNX: ("onnxruntime", "openvino", "openvino-bf16"),
    Format.OPENVINO: ("openvino", "openvino-bf16"),
}
"""What can run each, the native one first."""

_SUFFIXES: Mapping[str, Format] = {".keras": Format.KERAS, ".onnx": Format.ONNX, ".xml": Format.OPENVINO}

SUFFIXES = tuple(_SUFFIXES)

KNOWN = "a TensorFlow SavedModel, or a .keras, .onnx or OpenVINO .xml file"


def find(path: Path) -> tuple[Format, Path] | None:
    """The format of an artefact, and the directory (of a SavedModel) or file to load; None if it holds no model.

    A directory that is no SavedModel may hold exactly one file of another format, with its weights beside it.
    """
    if path.is_dir():
        if (path / "saved_model.pb").is_file() or (path / "saved_model.pbtxt").is_file():
            return Format.SAVED_MODEL, path
        inside = [one for one in path.iterdir() if one.suffix in _SUFFIXES and one.is_file()]
        return (_SUFFIXES[inside[0].suffix], inside[0]) if len(inside) == 1 else None
    kind = _SUFFIXES.get(path.suffix)
    return (kind, path) if kind and path.is_file() else None
