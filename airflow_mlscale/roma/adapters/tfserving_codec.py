"""TensorFlow Serving REST predict bodies to arrays and back: row format and columnar format.

See https://www.tensorflow.org/tfx/serving/api_rest. Runs in the worker process only.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.roma.adapters import tensors, v2_codec


def decode(call: model.Call, signatures: Mapping[str, tensors.Signature], default: str) -> tensors.Inference:
    """Read a request body.

    Raises:
        InvalidInputError: anything about it is wrong.
    """
    document = v2_codec.parse(call.body)
    signature = v2_codec.named_signature(document.get("signature_name") or default, signatures)
    if ("instances" in document) == ("inputs" in document):
        raise errors.InvalidInputError("body", sorted(document), "give either 'instances' (rows) or 'inputs' (columns)")
    rows = "instances" in document
    columns = _columns_of_rows(document["instances"], signature) if rows else _columns(document["inputs"], signature)
    inputs = {name: _array(name, values, signature.inputs[name]) for name, values in columns.items()}
    if rows and any(not array.ndim for array in inputs.values()):
        raise errors.InvalidInputError("instances", document["instances"], "give a list")
    tensors.check_rows(inputs, signature)
    return tensors.Inference(signature=signature, inputs=inputs, reply=rows)


def encode(
    inference: tensors.Inference, outputs: Mapping[str, tensors.Array], *, name: str, version: str
) -> model.Answer:
    """Write the answer: ``predictions`` for rows, ``outputs`` for columns."""
    columns = {output: _values(output, array) for output, array in outputs.items()}
    only = next(iter(columns.values())) if len(columns) == 1 else None
    if not inference.reply:
        return model.Answer(200, json.dumps({"outputs": columns if only is None else only}).encode())
    for output, array in outputs.items():
        if not array.ndim or array.shape[0] != inference.rows:
            fix = (
                f"output {output!r} of shape {list(array.shape)} has no row for each instance; use the 'inputs' format"
            )
            raise errors.InvalidInputError("instances", f"{inference.rows} rows", fix)
    rows = (
        [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] if only is None else only
    )
    return model.Answer(200, json.dumps({"predictions": rows}).encode())


def _columns_of_rows(instances: Any, signature: tensors.Signature) -> dict[str, Any]:
    if not isinstance(instances, list) or not instances:
        raise errors.InvalidInputError("instances", instances, "give a list with at least one row")
    if not all(_is_named(row) for row in instances):
        if any(_is_named(row) for row in instances):
            raise errors.InvalidInputError("instances", "mixed rows", "give named objects for all rows or for none")
        return {_only_input(signature, "instances"): instances}
    for row in instances:
        tensors.check_names(row, signature)
    return {name: [row[name] for row in instances] for name in signature.inputs}


def _columns(inputs: Any, signature: tensors.Signature) -> dict[str, Any]:
    if not _is_named(inputs):
        return {_only_input(signature, "inputs"): inputs}
    tensors.check_names(inputs, signature)
    return dict(inputs)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and set(value) != {"b64"}


def _only_input(signature: tensors.Signature, field: str) -> str:
    if len(signature.inputs) != 1:
        names = ", ".join(signature.inputs)
        raise errors.InvalidInputError(field, "unnamed values", f"the model has several inputs, name them: {names}")
    return next(iter(signature.inputs))


def _array(name: str, values: Any, tensor: tensors.Tensor) -> tensors.Array:
    field = f"input {name!r}"
    array = tensors.from_values(field, without_base64(field, values) if tensor.datatype == "BYTES" else values, tensor)
    tensors.check_shape(f"{field} shape", array.shape, tensor)
    return array


def without_base64(field: str, values: Any) -> Any:
    """Values with ``{"b64": "…"}`` replaced by the bytes it stands for."""
    if isinstance(values, list):
        return [without_base64(field, value) for value in values]
    if isinstance(values, dict) and set(values) == {"b64"}:
        try:
            return base64.b64decode(values["b64"], validate=True)
        except (binascii.Error, TypeError, ValueError) as exc:
            raise errors.InvalidInputError(field, repr(values)[:60], f"it is not base64: {exc}") from exc
    return values


def _values(name: str, array: tensors.Array) -> Any:
    if array.dtype != object:
        return array.tolist()
    return _strings(array.tolist(), as_base64=name.endswith("_bytes"))


def _strings(values: Any, *, as_base64: bool) -> Any:
    """TensorFlow Serving sends strings as text, and as base64 where the output's name ends with ``_bytes``."""
    if isinstance(values, list):
        return [_strings(value, as_base64=as_base64) for value in values]
    return {"b64": base64.b64encode(values).decode()} if as_base64 else tensors.text(values)
