"""TensorFlow Serving's ``Predict`` messages to arrays and back.

Runs in the worker process only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.roma.adapters import tensors, tfserving_wire, v2_codec, wire

MAX_FILLED_BYTES = 64 * 2**20
"""A tensor may be sent as one value and a shape; it is not filled beyond this."""


@dataclass(frozen=True, kw_only=True)
class _Reply:
    signature: str
    outputs: tuple[str, ...]


def decode(call: model.Call, signatures: Mapping[str, tensors.Signature], default: str) -> tensors.Inference:
    """Read a ``PredictRequest``.

    Raises:
        InvalidInputError: anything about it is wrong.
    """
    request = wire.parse(tfserving_wire.PredictRequest, call.body)
    signature = v2_codec.named_signature(request.model_spec.signature_name or default, signatures)
    tensors.check_names(request.inputs, signature)
    inputs = {
        name: from_proto(f"input {name!r}", request.inputs[name], tensor) for name, tensor in signature.inputs.items()
    }
    tensors.check_rows(inputs, signature)
    for name in request.output_filter:
        if name not in signature.outputs:
            raise errors.InvalidInputError("output_filter", name, f"the model gives {', '.join(signature.outputs)}")
    outputs = tuple(dict.fromkeys(request.output_filter)) or tuple(signature.outputs)
    return tensors.Inference(
        signature=signature, inputs=inputs, reply=_Reply(signature=signature.name, outputs=outputs)
    )


def encode(
    inference: tensors.Inference, outputs: Mapping[str, tensors.Array], *, name: str, version: str
) -> model.Answer:
    """Write a ``PredictResponse``."""
    reply: _Reply = inference.reply
    response = tfserving_wire.PredictResponse()
    set_spec(response.model_spec, name, version, reply.signature)
    for output in reply.outputs:
        _fill(response.outputs[output], outputs[output], inference.signature.outputs[output].datatype)
    return model.Answer(200, response.SerializeToString())


def set_spec(spec: wire.Message, name: str, version: str, signature: str) -> None:
    """Which model answered; a version that is no number cannot be told in this protocol."""
    spec.name, spec.signature_name = name, signature
    if version.isdecimal() and int(version) < 2**63:
        spec.version.value = int(version)


def from_proto(field: str, given: wire.Message, tensor: tensors.Tensor) -> tensors.Array:
    """A ``TensorProto`` as an array of the signature's type."""
    tensors.check_type(field, tfserving_wire.DATATYPES.get(given.dtype, f"type {given.dtype}"), tensor)
    shape = [dim.size for dim in given.tensor_shape.dim]
    if given.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise errors.InvalidInputError(f"{field} shape", shape, "give a known shape of sizes of at least 0")
    tensors.check_shape(f"{field} shape", shape, tensor)
    if given.tensor_content:
        if tensor.datatype == "BYTES":
            raise errors.InvalidInputError(f"{field} tensor_content", "bytes", "send strings as string_val")
        return tensors.from_raw(field, given.tensor_content, shape, tensor)
    return tensors.reshaped(field, _filled(field, _values(field, given, tensor), shape), shape)


def _values(field: str, given: wire.Message, tensor: tensors.Tensor) -> tensors.Array:
    values = list(getattr(given, tfserving_wire.VALUES[tensor.datatype]))
    if tensor.datatype in ("FP16", "BF16"):  # bit patterns in integers
        if any(not 0 <= value < 2**16 for value in values):
            raise errors.InvalidInputError(f"{field} half_val", "values", "give bit patterns of 16 bits")
        return np.array(values, dtype=np.uint16).view(tensors.DATATYPES[tensor.datatype])
    return tensors.from_values(field, values, tensor)


def _filled(field: str, values: tensors.Array, shape: list[int]) -> tensors.Array:
    """As TensorFlow reads it: the last value counts for all that are missing, and zero if there is none."""
    count = prod(shape)
    if values.size >= count:  # too many are told when the shape is given
        return values
    if count * max(values.itemsize, 1) > MAX_FILLED_BYTES:
        fix = f"the data holds {values.size} values, and no more than {MAX_FILLED_BYTES} bytes are filled up"
        raise errors.InvalidInputError(f"{field} shape", shape, fix)
    empty = b"" if values.dtype == object else 0
    filled = np.full(count, values[-1] if values.size else empty, dtype=values.dtype)
    filled[: values.size] = values
    return filled


def _fill(proto: wire.Message, array: tensors.Array, datatype: str) -> None:
    """In the typed fields, where TensorFlow Serving puts them and clients look for them."""
    proto.dtype = tfserving_wire.NUMBERS[datatype]
    proto.tensor_shape.SetInParent()  # a scalar has a shape too, of no dimensions
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    field = tfserving_wire.VALUES[datatype]
    if datatype in ("BOOL", "FP32", "FP64"):  # packed on the wire just as in memory
        setattr(proto, field, tensors.to_raw(array))
    elif datatype == "BYTES":
        proto.string_val.extend(tensors.as_bytes(array))
    else:
        flat = array.ravel()
        getattr(proto, field).extend((flat.view(np.uint16) if field == "half_val" else flat).tolist())
