"""Open Inference Protocol v2 messages (gRPC) to arrays and back.

Runs in the worker process only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.roma.adapters import tensors, v2_codec, v2_wire, wire


@dataclass(frozen=True, kw_only=True)
class _Reply:
    id: str
    outputs: tuple[str, ...]
    raw: bool
    """Whether the tensors go out as bytes: they do if they came in so."""


def decode(call: model.Call, signatures: Mapping[str, tensors.Signature], default: str) -> tensors.Inference:
    """Read a ``ModelInferRequest``.

    Raises:
        InvalidInputError: anything about it is wrong.
    """
    request = wire.parse(v2_wire.ModelInferRequest, call.body)
    parameters = v2_wire.parameters(request.parameters)
    signature = v2_codec.named_signature(parameters.get("signature_name") or default, signatures)
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        fix = f"give one for each of the {len(request.inputs)} inputs, or none"
        raise errors.InvalidInputError("raw_input_contents", f"{len(raws)} tensors", fix)
    names = v2_codec.by_name((entry.name for entry in request.inputs), signature)
    inputs = {
        name: _input(name, entry, signature.inputs[name], raws[index] if raws else None)
        for index, (name, entry) in enumerate(zip(names, request.inputs, strict=True))
    }
    tensors.check_rows(inputs, signature)
    outputs = tuple(dict.fromkeys(_asked(index, one, signature) for index, one in enumerate(request.outputs)))
    wanted = outputs or tuple(signature.outputs)
    # The 16-bit floats have no typed form, and either all tensors of a message are raw or none.
    raw = bool(raws) or any(signature.outputs[name].datatype not in v2_wire.CONTENTS for name in wanted)
    return tensors.Inference(signature=signature, inputs=inputs, reply=_Reply(id=request.id, outputs=wanted, raw=raw))


def encode(
    inference: tensors.Inference, outputs: Mapping[str, tensors.Array], *, name: str, version: str
) -> model.Answer:
    """Write a ``ModelInferResponse``."""
    reply: _Reply = inference.reply
    response = v2_wire.ModelInferResponse(model_name=name, model_version=version, id=reply.id)
    for output in reply.outputs:
        array, datatype = outputs[output], inference.signature.outputs[output].datatype
        entry = response.outputs.add(name=output, datatype=datatype, shape=array.shape)
        if reply.raw:
            response.raw_output_contents.append(tensors.to_raw(array))
        else:
            _fill(entry.contents, array, datatype)
    return model.Answer(200, response.SerializeToString())


def _input(name: str, entry: wire.Message, tensor: tensors.Tensor, raw: bytes | None) -> tensors.Array:
    field = f"input {name!r}"
    shape = list(entry.shape)
    if any(size < 0 for size in shape):
        raise errors.InvalidInputError(f"{field} shape", shape, "give sizes of at least 0")
    tensors.check_type(field, entry.datatype, tensor)
    tensors.check_shape(f"{field} shape", shape, tensor)
    v2_codec.check_parameters(field, v2_wire.parameters(entry.parameters))
    if raw is not None:
        return tensors.from_raw(field, raw, shape, tensor)
    contents = v2_wire.CONTENTS.get(tensor.datatype)
    if contents is None:
        raise errors.InvalidInputError(f"{field} contents", tensor.datatype, "send this type in raw_input_contents")
    values = list(getattr(entry.contents, contents))
    return tensors.reshaped(field, tensors.from_values(field, values, tensor), shape)


def _asked(index: int, entry: wire.Message, signature: tensors.Signature) -> str:
    name = v2_codec.check_output(index, entry.name, signature)
    v2_codec.check_parameters(f"output {name!r}", v2_wire.parameters(entry.parameters))
    return name


def _fill(contents: wire.Message, array: tensors.Array, datatype: str) -> None:
    field = v2_wire.CONTENTS[datatype]
    if datatype in ("BOOL", "FP32", "FP64"):  # packed on the wire just as in memory
        setattr(contents, field, tensors.to_raw(array))
    else:
        getattr(contents, field).extend(tensors.as_bytes(array) if datatype == "BYTES" else array.ravel().tolist())
