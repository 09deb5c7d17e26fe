"""Open Inference Protocol v2 bodies to arrays and back, with the binary tensor extension.

Runs in the worker process only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.roma.adapters import tensors


@dataclass(frozen=True, kw_only=True)
class _Reply:
    id: str | None
    outputs: tuple[str, ...]
    binary: frozenset[str]


def decode(call: model.Call, signatures: Mapping[str, tensors.Signature], default: str) -> tensors.Inference:
    """Read a request body.

    Raises:
        InvalidInputError: anything about it is wrong.
    """
    head = call.body if call.header_length is None else call.body[: call.header_length]
    document = parse(head)
    parameters = _object("parameters", document.get("parameters") or {})
    signature = named_signature(parameters.get("signature_name") or default, signatures)
    given = document.get("inputs")
    if not isinstance(given, list) or not given:
        raise errors.InvalidInputError("inputs", given, "give a list with at least one tensor")
    raw = memoryview(call.body)[len(head) :]
    inputs, used = _inputs(given, signature, raw)
    if used != len(raw):
        fix = f"the binary tensors take {used} bytes; check binary_data_size and Inference-Header-Content-Length"
        raise errors.InvalidInputError("body", f"{len(raw)} bytes after the JSON", fix)
    identity = document.get("id")
    if identity is not None and not isinstance(identity, str):
        raise errors.InvalidInputError("id", identity, "give a string")
    return tensors.Inference(
        signature=signature, inputs=inputs, reply=_reply(identity, document.get("outputs"), parameters, signature)
    )


def encode(
    inference: tensors.Inference, outputs: Mapping[str, tensors.Array], *, name: str, version: str
) -> model.Answer:
    """Write the answer."""
    reply: _Reply = inference.reply
    described, raw = [], []
    for output in reply.outputs:
        array = outputs[output]
        tensor = inference.signature.outputs[output]
        entry: dict[str, Any] = {"name": output, "datatype": tensor.datatype, "shape": list(array.shape)}
        if output in reply.binary:
            raw.append(tensors.to_raw(array))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = (
                [tensors.text(element) for element in array.ravel()]
                if tensor.datatype == "BYTES"
                else array.ravel().tolist()
            )
        described.append(entry)
    identity = {} if reply.id is None else {"id": reply.id}
    head = json.dumps({"model_name": name, "model_version": version, **identity, "outputs": described}).encode()
    return model.Answer(200, b"".join((head, *raw)), len(head) if raw else None)


def parse(body: bytes) -> dict[str, Any]:
    """A JSON object."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise errors.InvalidInputError("body", f"{len(body)} bytes", f"it is not JSON: {exc}") from exc
    return _object("body", document)


def named_signature(name: Any, signatures: Mapping[str, tensors.Signature]) -> tensors.Signature:
    """The signature, or `InvalidInputError`."""
    if not isinstance(name, str) or name not in signatures:
        raise errors.InvalidInputError("signature_name", name, f"the model has: {', '.join(sorted(signatures))}")
    return signatures[name]


def _inputs(given: list[Any], signature: tensors.Signature, raw: memoryview) -> tuple[dict[str, tensors.Array], int]:
    entries = {}
    for index, entry in enumerate(given):
        name = _object(f"inputs[{index}]", entry).get("name")
        if not isinstance(name, str) or name in entries:
            raise errors.InvalidInputError(f"inputs[{index}].name", name, "give each input's own name once")
        entries[name] = entry
    tensors.check_names(entries, signature)
    inputs, used = {}, 0
    for name, entry in entries.items():
        inputs[name], size = _input(name, entry, signature.inputs[name], raw[used:])
        used += size
    if signature.joinable and len({array.shape[0] for array in inputs.values()}) > 1:
        shapes = {name: list(array.shape) for name, array in inputs.items()}
        raise errors.InvalidInputError("inputs", shapes, "all inputs need the same first dimension")
    return inputs, used


def _input(name: str, entry: dict[str, Any], tensor: tensors.Tensor, raw: memoryview) -> tuple[tensors.Array, int]:
    field = f"input {name!r}"
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise errors.InvalidInputError(f"{field} shape", shape, "give a list of integers of at least 0")
    if entry.get("datatype") != tensor.datatype:
        raise errors.InvalidInputError(f"{field} datatype", entry.get("datatype"), f"the model takes {tensor.datatype}")
    size = _object(f"{field} parameters", entry.get("parameters") or {}).get("binary_data_size")
    if size is not None:
        if type(size) is not int or not 0 <= size <= len(raw):
            raise errors.InvalidInputError(f"{field} binary_data_size", size, f"{len(raw)} bytes are left")
        array = tensors.from_raw(field, bytes(raw[:size]), shape, tensor)
    elif "data" not in entry:
        raise errors.InvalidInputError(f"{field} data", None, "give the values, flat or nested")
    else:
        array = tensors.from_values(field, entry["data"], tensor).ravel()
        if array.size != prod(shape):
            raise errors.InvalidInputError(f"{field} shape", shape, f"the data holds {array.size} values")
        array = array.reshape(shape)
    tensors.check_shape(f"{field} shape", array, tensor)
    return array, size or 0


def _reply(identity: str | None, asked: Any, parameters: Mapping[str, Any], signature: tensors.Signature) -> _Reply:
    everything = bool(parameters.get("binary_data_output", False))
    if not asked:
        names = tuple(signature.outputs)
        return _Reply(id=identity, outputs=names, binary=frozenset(names if everything else ()))
    if not isinstance(asked, list):
        raise errors.InvalidInputError("outputs", asked, "give a list of tensors to answer with, or leave it out")
    binary: dict[str, bool] = {}
    for index, entry in enumerate(asked):
        name = _object(f"outputs[{index}]", entry).get("name")
        if not isinstance(name, str) or name not in signature.outputs:
            fix = f"the model gives {', '.join(signature.outputs)}"
            raise errors.InvalidInputError(f"outputs[{index}].name", name, fix)
        wishes = _object(f"outputs[{index}].parameters", entry.get("parameters") or {})
        binary[name] = bool(wishes.get("binary_data", everything))
    return _Reply(id=identity, outputs=tuple(binary), binary=frozenset(name for name, on in binary.items() if on))


def _object(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise errors.InvalidInputError(field, repr(value)[:60], "give a JSON object")
    return value
