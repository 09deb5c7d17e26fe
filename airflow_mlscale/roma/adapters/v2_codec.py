"""Open Inference Protocol v2 bodies to arrays and back, with the binary tensor extension.

Runs in the worker process only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.roma.adapters import tensors

_REFUSED = {
    "shared_memory_region": "tensors in shared memory are not served; send them with the request",
    "classification": "the classification extension is not served; ask for the tensor itself",
}
"""Parameters of tensors that would change the meaning of the answer if they were ignored."""


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
            entry["data"] = _values(array, tensor)
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


def by_name(names: Iterable[Any], signature: tensors.Signature) -> list[str]:
    """The names of the inputs as they were given; each of the signature's exactly once."""
    seen: dict[str, Any] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or name in seen:
            raise errors.InvalidInputError(f"inputs[{index}].name", name, "give each input's own name once")
        seen[name] = None
    tensors.check_names(seen, signature)
    return list(seen)


def check_parameters(field: str, parameters: Mapping[str, Any]) -> None:
    """Refuse extensions that are not served."""
    for name, fix in _REFUSED.items():
        if name in parameters:
            raise errors.InvalidInputError(f"{field} {name}", parameters[name], fix)


def check_output(index: int, name: Any, signature: tensors.Signature) -> str:
    """The name of an output that was asked for."""
    if not isinstance(name, str) or name not in signature.outputs:
        raise errors.InvalidInputError(
            f"outputs[{index}].name", name, f"the model gives {', '.join(signature.outputs)}"
        )
    return name


def _inputs(given: list[Any], signature: tensors.Signature, raw: memoryview) -> tuple[dict[str, tensors.Array], int]:
    entries = [_object(f"inputs[{index}]", entry) for index, entry in enumerate(given)]
    inputs, used = {}, 0
    for name, entry in zip(by_name((entry.get("name") for entry in entries), signature), entries, strict=True):
        inputs[name], size = _input(name, entry, signature.inputs[name], raw[used:])
        used += size
    tensors.check_rows(inputs, signature)
    return inputs, used


def _input(name: str, entry: dict[str, Any], tensor: tensors.Tensor, raw: memoryview) -> tuple[tensors.Array, int]:
    field = f"input {name!r}"
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise errors.InvalidInputError(f"{field} shape", shape, "give a list of integers of at least 0")
    tensors.check_type(field, entry.get("datatype"), tensor)
    tensors.check_shape(f"{field} shape", shape, tensor)
    parameters = _object(f"{field} parameters", entry.get("parameters") or {})
    check_parameters(field, parameters)
    size = parameters.get("binary_data_size")
    if size is not None:
        if type(size) is not int or not 0 <= size <= len(raw):
            raise errors.InvalidInputError(f"{field} binary_data_size", size, f"{len(raw)} bytes are left")
        return tensors.from_raw(field, raw[:size], shape, tensor), size
    if "data" not in entry:
        raise errors.InvalidInputError(f"{field} data", None, "give the values, flat or nested")
    return tensors.reshaped(field, tensors.from_values(field, entry["data"], tensor).ravel(), shape), 0


def _reply(identity: str | None, asked: Any, parameters: Mapping[str, Any], signature: tensors.Signature) -> _Reply:
    everything = bool(parameters.get("binary_data_output", False))
    if not asked:
        names = tuple(signature.outputs)
        return _Reply(id=identity, outputs=names, binary=frozenset(names if everything else ()))
    if not isinstance(asked, list):
        raise errors.InvalidInputError("outputs", asked, "give a list of tensors to answer with, or leave it out")
    binary: dict[str, bool] = {}
    for index, entry in enumerate(asked):
        name = check_output(index, _object(f"outputs[{index}]", entry).get("name"), signature)
        wishes = _object(f"outputs[{index}].parameters", entry.get("parameters") or {})
        check_parameters(f"output {name!r}", wishes)
        binary[name] = bool(wishes.get("binary_data", everything))
    return _Reply(id=identity, outputs=tuple(binary), binary=frozenset(name for name, on in binary.items() if on))


def _values(array: tensors.Array, tensor: tensors.Tensor) -> list[Any]:
    """Flat, as JSON can carry them: it has no infinities and no NaN, they become null."""
    flat = array.ravel()
    if tensor.datatype == "BYTES":
        return [tensors.text(element) for element in flat]
    values: list[Any] = flat.tolist()
    if tensor.datatype in tensors.FLOATS and not np.isfinite(flat).all():
        return [value if isfinite(value) else None for value in values]
    return values


def _object(field: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise errors.InvalidInputError(field, repr(value)[:60], "give a JSON object")
    return value
