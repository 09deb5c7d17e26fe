"""TensorFlow Serving's ``Classify`` and ``Regress``, as REST and as gRPC: examples to one string tensor and back.

Both give the model serialised ``tf.Example`` messages. Runs in the worker process only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from airflow_mlscale import errors
from airflow_mlscale.roma import model
from airflow_mlscale.roma.adapters import tensors, tfserving_codec, tfserving_grpc_codec, tfserving_wire, v2_codec, wire

Verb = Literal["classify", "regress"]

_METHODS: Mapping[Verb, str] = {"classify": "tensorflow/serving/classify", "regress": "tensorflow/serving/regress"}


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The codec of one verb over one transport."""

    verb: Verb
    grpc: bool

    def decode(self, call: model.Call, signatures: Mapping[str, tensors.Signature], default: str) -> tensors.Inference:
        """Read a request.

        Raises:
            InvalidInputError: anything about it is wrong, or the signature is of another kind.
        """
        name, examples = _from_message(call.body) if self.grpc else _from_json(call.body)
        signature = v2_codec.named_signature(name or default, signatures)
        self._check(signature)
        array = np.empty(len(examples), dtype=object)
        array[:] = examples
        ((only, tensor),) = signature.inputs.items()
        tensors.check_shape(f"input {only!r} shape", array.shape, tensor)
        return tensors.Inference(signature=signature, inputs={only: array}, reply=signature.name)

    def encode(
        self, inference: tensors.Inference, outputs: Mapping[str, tensors.Array], *, name: str, version: str
    ) -> model.Answer:
        """Write the answer."""
        rows = _classes(inference, outputs) if self.verb == "classify" else _numbers(inference, outputs)
        if not self.grpc:
            return model.Answer(200, json.dumps({"results": rows}).encode())
        response = self._message(rows)
        tfserving_grpc_codec.set_spec(response.model_spec, name, version, inference.reply)
        return model.Answer(200, response.SerializeToString())

    def _check(self, signature: tensors.Signature) -> None:
        method, strings = _METHODS[self.verb], [one.datatype for one in signature.inputs.values()] == ["BYTES"]
        if signature.method != method or not strings:
            fix = f"{self.verb} needs a signature of method {method} with one string input, this is {signature.method}"
            raise errors.InvalidInputError("signature_name", signature.name, fix)

    def _message(self, rows: list[Any]) -> wire.Message:
        if self.verb == "regress":
            response = tfserving_wire.RegressionResponse()
            for value in rows:
                response.result.regressions.add(value=value)
            return response
        response = tfserving_wire.ClassificationResponse()
        for row in rows:
            classes = response.result.classifications.add().classes
            for label, score in row:
                classes.add(label=label, score=score)
        return response


def _from_message(body: bytes) -> tuple[str, list[bytes]]:
    request = wire.parse(tfserving_wire.ExamplesRequest, body)
    context = request.input.example_list_with_context.context
    given = [*request.input.example_list_with_context.examples]
    # Joined messages are merged when they are read: what the example says itself counts.
    examples = [context + example for example in given] or [*request.input.example_list.examples]
    if not examples:
        raise errors.InvalidInputError("input", "no examples", "give at least one example")
    return request.model_spec.signature_name, examples


def _from_json(body: bytes) -> tuple[Any, list[bytes]]:
    document = v2_codec.parse(body)
    given = document.get("examples")
    if not isinstance(given, list) or not given:
        raise errors.InvalidInputError("examples", given, "give a list with at least one object of features")
    context = _example("context", document["context"]) if "context" in document else b""
    examples = [context + _example(f"examples[{index}]", one) for index, one in enumerate(given)]
    return document.get("signature_name"), examples


def _example(field: str, features: Any) -> bytes:
    if not isinstance(features, dict):
        raise errors.InvalidInputError(field, repr(features)[:60], "give an object of features")
    example = tfserving_wire.Example()
    example.features.SetInParent()
    for name, given in features.items():
        try:
            _set_feature(f"{field} {name!r}", example.features.feature[name], given)
        except UnicodeEncodeError as exc:
            raise errors.InvalidInputError(field, ascii(name)[:60], "a name is no Unicode text") from exc
    serialised: bytes = example.SerializeToString()
    return serialised


def _set_feature(field: str, feature: wire.Message, given: Any) -> None:
    """Whole numbers and truth values are int64, decimals float, strings bytes; all values of one kind."""
    values = tfserving_codec.without_base64(field, given if isinstance(given, list) else [given])
    try:
        if all(isinstance(value, int) for value in values):
            feature.int64_list.SetInParent()
            feature.int64_list.value.extend(map(int, values))
        elif all(isinstance(value, float) for value in values):
            feature.float_list.value.extend(values)
        elif all(isinstance(value, str | bytes) for value in values):
            feature.bytes_list.value.extend(one.encode() if isinstance(one, str) else one for one in values)
        else:
            fix = "give values of one kind: whole numbers, decimals, or strings"
            raise errors.InvalidInputError(field, repr(given)[:60], fix)
    except (ValueError, OverflowError) as exc:
        if isinstance(exc, errors.InvalidInputError):
            raise
        raise errors.InvalidInputError(field, repr(given)[:60], f"a value does not fit: {exc}") from exc


def _classes(inference: tensors.Inference, outputs: Mapping[str, tensors.Array]) -> list[list[tuple[str, float]]]:
    """For each example its classes, as label and score; a missing half is empty or zero."""
    labels, scores = outputs.get("classes"), outputs.get("scores")
    if labels is None and scores is None:
        raise errors.RunFailedError("the signature has neither an output 'classes' nor 'scores'")
    for array in (labels, scores):
        if array is not None and (array.ndim != 2 or array.shape[0] != inference.rows):
            raise errors.RunFailedError(f"'classes' and 'scores' must be of shape [batch, classes], not {array.shape}")
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise errors.RunFailedError(f"'classes' {labels.shape} and 'scores' {scores.shape} differ in shape")
    texts = None if labels is None else [[tensors.text(one) for one in row] for row in labels]
    numbers: Sequence[Sequence[float]] | None = None if scores is None else scores.astype(float).tolist()
    if texts is None:
        return [[("", score) for score in row] for row in numbers or ()]
    if numbers is None:
        return [[(label, 0.0) for label in row] for row in texts]
    return [list(zip(row, values, strict=True)) for row, values in zip(texts, numbers, strict=True)]


def _numbers(inference: tensors.Inference, outputs: Mapping[str, tensors.Array]) -> list[float]:
    values = outputs.get("outputs")
    if values is None or values.size != inference.rows or values.ndim > 2:
        raise errors.RunFailedError("regression needs an output 'outputs' with one number for each example")
    numbers: list[float] = values.astype(float).ravel().tolist()
    return numbers
