"""Signatures of SavedModels, read with or without TensorFlow. Runs in the worker process only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma.adapters import tensors, tfserving_wire, wire

SERVING = "serve"
"""Tag of the graphs that are meant to be served."""

PREDICT = "tensorflow/serving/predict"

_NAMES = {number: name for name, number in tfserving_wire.TYPES.items()}


def read(directory: Path) -> dict[str, tensors.Signature]:
    """Of a SavedModel on disk, without TensorFlow.

    Raises:
        ModelArtefactError: it cannot be read, or has nothing to call.
    """
    try:
        document = wire.parse(tfserving_wire.SavedModel, (directory / "saved_model.pb").read_bytes())
    except (OSError, errors.InvalidInputError) as exc:
        raise errors.ModelArtefactError("artefact", str(directory), f"it is no SavedModel: {exc}") from exc
    graphs = [one for one in document.meta_graphs if SERVING in one.meta_info_def.tags]
    if not graphs:
        fix = f"it has no graph tagged {SERVING!r}; write one with keras.Model.export(path)"
        raise errors.ModelArtefactError("artefact", str(directory), fix)
    return of(str(directory), graphs[0].signature_def)


def of(artefact: str, definitions: Mapping[str, Any]) -> dict[str, tensors.Signature]:
    """From ``SignatureDef`` messages, TensorFlow's or our own.

    Raises:
        ModelArtefactError: there is nothing to call, or a tensor is of a kind that cannot be served.
    """
    found = {
        name: _signature(name, definition)
        for name, definition in definitions.items()
        if not name.startswith("__saved_model") and definition.inputs and definition.outputs
    }
    if not found:
        fix = "it has no signature with inputs and outputs; write one with keras.Model.export(path)"
        raise errors.ModelArtefactError("artefact", artefact, fix)
    return found


def default(signatures: Mapping[str, tensors.Signature]) -> str:
    """Name of the signature that is meant where none is named."""
    return next((name for name in ("serving_default", "serve") if name in signatures), min(signatures))


def alone(inputs: list[tensors.Tensor], outputs: list[tensors.Tensor]) -> dict[str, tensors.Signature]:
    """The one signature of a model whose format knows no signatures."""
    return {
        "serving_default": tensors.Signature(
            name="serving_default",
            method=PREDICT,
            inputs={one.name: one for one in inputs},
            outputs={one.name: one for one in outputs},
        )
    }


def tensor(name: str, datatype: str, shape: tuple[int, ...] | None) -> tensors.Tensor:
    """A tensor of such a model."""
    dtype = _NAMES[tfserving_wire.NUMBERS[datatype]]
    return tensors.Tensor(name=name, graph_name=name, dtype=dtype, datatype=datatype, shape=shape)


def described(signatures: Mapping[str, tensors.Signature]) -> dict[str, Any]:
    """As JSON, in the form of `ports.Loaded.signatures`."""
    return {
        name: {
            "method": signature.method,
            "inputs": [asdict(one) for one in signature.inputs.values()],
            "outputs": [asdict(one) for one in signature.outputs.values()],
        }
        for name, signature in signatures.items()
    }


def _signature(name: str, definition: Any) -> tensors.Signature:
    return tensors.Signature(
        name=name,
        method=definition.method_name,
        inputs={key: _tensor(key, definition.inputs[key]) for key in sorted(definition.inputs)},
        outputs={key: _tensor(key, definition.outputs[key]) for key in sorted(definition.outputs)},
    )


def _tensor(name: str, info: Any) -> tensors.Tensor:
    datatype = tfserving_wire.DATATYPES.get(info.dtype)
    if datatype is None or not info.name:
        kind = f"type {info.dtype} of TensorFlow" if info.name else "a sparse or composite kind"
        fix = f"tensor {name!r} of {kind} cannot be served; export a signature of dense tensors"
        raise errors.ModelArtefactError("artefact", name, fix)
    shape = None if info.tensor_shape.unknown_rank else tuple(int(dim.size) for dim in info.tensor_shape.dim)
    return tensors.Tensor(name=name, graph_name=info.name, dtype=_NAMES[info.dtype], datatype=datatype, shape=shape)
