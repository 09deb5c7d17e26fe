"""The OpenAPI document of everything that HTTP serves, at ``/openapi.json``.

Written by hand beside the routes, because the gateway has no framework that would know; a test asks every path
that stands here, and another every status.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from airflow_mlscale import __version__
from airflow_mlscale.roma import queueing, runtimes
from airflow_mlscale.roma.adapters import tfserving_wire

Schema = dict[str, Any]

_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"}
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_OBJECT: Schema = {"type": "object"}
_NOTHING: Schema = {"type": "object", "additionalProperties": True}

_VERSION: Schema = {"anyOf": [_NAME, {"type": "integer", "minimum": 0}]}
_REASON: Schema = {"type": "string", "minLength": 1, "maxLength": 500}

_STATUSES: Mapping[int, str] = {
    400: "Something in the request is wrong",
    401: "The token is missing, wrong or expired",
    403: "The token lacks the scope; without tokens, only local programs are served",
    404: "Unknown model or version",
    408: "The body came too slowly",
    409: "The guarantees of all models would not fit the host",
    413: "The body is too large",
    415: "The body's encoding is unknown",
    429: "Too many requests wait for the model, or came in a second",
    431: "The headers are too large",
    500: "The model failed",
    503: "No answer in time, or the model does not serve now",
}
_READ = (400, 401, 403, 404, 429, 503)
_INFER = (*_STATUSES,)
_WRITE = (400, 401, 403, 404, 408, 409, 413, 415, 429, 503)


@functools.cache
def text(*, token: bool) -> bytes:
    """The document as it is sent."""
    return json.dumps(document(token=token)).encode()


def document(*, token: bool) -> dict[str, Any]:
    """OpenAPI 3.1; ``token`` says whether this daemon asks for one."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ROMA",
            "version": __version__,
            "description": "Models that keep a latency objective: Open Inference Protocol v2, TensorFlow Serving's "
            "REST API, and ROMA's control API.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {**_v2_paths(), **_v1_paths(), **_control_paths(), **_other_paths()},
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}] if token else [],
    }


def _v2_paths() -> dict[str, Any]:
    infer = {
        "post": _operation(
            "Inference",
            body="InferRequest",
            gives="InferResponse",
            statuses=_INFER,
            parameters=_wishes(),
            binary=True,
        )
    }
    metadata = {"get": _operation("Inputs and outputs", gives="ModelMetadata", statuses=_READ)}
    ready = {"get": _operation("Whether the model can answer now", gives="Ready", statuses=_READ)}
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    wait = _query("wait_s", "Seconds to wait for the model", 0, 600)
    paths = {
        "/v2": {"get": _operation("Server metadata", gives="Server", statuses=(401, 403, 429))},
        "/v2/health/live": {"get": _operation("Liveness", gives="Live", statuses=())},
        "/v2/health/ready": {"get": _operation("Readiness of all models", gives="ServerReady", statuses=(503,))},
        "/v2/repository/index": {"post": _operation("All models", body="IndexRequest", gives="Index", statuses=_WRITE)},
        "/v2/repository/models/{model}/load": {
            "post": _operation(
                "Serve again, or a model found under the model root",
                body="RepositoryRequest",
                gives="Empty",
                statuses=(*_WRITE, 503),
                parameters=[wait],
            )
        },
        "/v2/repository/models/{model}/unload": {
            "post": _operation("Stop serving but remember", body="RepositoryRequest", gives="Empty", statuses=_WRITE)
        },
    }
    quality = _query("window_s", "Seconds over which quality is told", 60, 30 * 86_400)
    paths[f"{model}/feedback"] = {
        "post": _operation("Tell the truth about answers", body="Feedback", gives="Counted", statuses=_WRITE),
        "get": _operation("Quality of each version", gives="Quality", statuses=_READ, parameters=[quality]),
    }
    for path in (model, version):
        paths |= {path: metadata, f"{path}/ready": ready, f"{path}/infer": infer}
    return {path: _with_path_parameters(path, item) for path, item in paths.items()}


def _v1_paths() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for path in ("", "/versions/{version}", "/labels/{label}"):
        base = f"/v1/models/{{model}}{path}"
        paths[base] = {"get": _operation("State of the versions", gives="ModelStatus", statuses=_READ)}
        paths[f"{base}/metadata"] = {"get": _operation("Signatures", gives="SignatureMetadata", statuses=_READ)}
        for verb, body, gives in (
            ("predict", "PredictRequest", "PredictResponse"),
            ("classify", "ExamplesRequest", "ExamplesResponse"),
            ("regress", "ExamplesRequest", "ExamplesResponse"),
        ):
            operation = _operation(verb.capitalize(), body=body, gives=gives, statuses=_INFER, parameters=_wishes())
            paths[f"{base}:{verb}"] = {"post": operation}
    return {path: _with_path_parameters(path, item) for path, item in paths.items()}


def _control_paths() -> dict[str, Any]:
    window = _query("window_s", "Seconds over which the status is measured", 1, 1800)
    settled = _query("settled_within_s", "Seconds to wait until nothing is being loaded", 0, 600)
    since = _query("since", "Seconds since the epoch", 0, 1e12)
    paths = {
        "/v2/mlscale/models": {
            "get": _operation("Status of all models", gives="Statuses", statuses=_READ, parameters=[window])
        },
        "/v2/mlscale/models/{model}": {
            "get": _operation("Status", gives="Status", statuses=_READ, parameters=[window, settled]),
            "put": _operation("Deploy or update", body="Deployment", gives="Status", statuses=_WRITE, also=202),
            "delete": _operation("Undeploy and forget", gives="Removed", statuses=_READ),
        },
        "/v2/mlscale/models/{model}/promote": {
            "post": _operation(
                "Let the version that is tried serve", body="Wish", gives="Status", statuses=_WRITE, also=202
            )
        },
        "/v2/mlscale/models/{model}/rollback": {
            "post": _operation("Leave the latest version", body="Wish", gives="Status", statuses=_WRITE, also=202)
        },
        "/v2/mlscale/models/{model}/journal": {
            "get": _operation("Decisions about the model", gives="Records", statuses=_READ, parameters=[since])
        },
        "/v2/mlscale/journal": {
            "get": _operation("All decisions", gives="Records", statuses=_READ, parameters=[since])
        },
        "/v2/mlscale/host": {"get": _operation("How cores are divided, and the GPUs", gives="Host", statuses=_READ)},
    }
    return {path: _with_path_parameters(path, item) for path, item in paths.items()}


def _other_paths() -> dict[str, Any]:
    metrics = _operation("Prometheus metrics", gives="Empty", statuses=(401, 403, 429))
    metrics["responses"]["200"]["content"] = {"text/plain": {"schema": _TEXT}}
    return {
        "/metrics": {"get": metrics},
        "/openapi.json": {"get": _operation("This document", gives="Any", statuses=(401, 403, 429))},
    }


def _operation(
    summary: str,
    *,
    gives: str,
    statuses: Sequence[int],
    body: str | None = None,
    parameters: Sequence[Schema] = (),
    binary: bool = False,
    also: int | None = None,
) -> dict[str, Any]:
    good = _json(gives)
    if binary:
        good["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    responses: dict[str, Any] = {"200": {"description": "Done", "content": good}}
    if also is not None:
        responses[str(also)] = {"description": "Taken, under way", "content": good}
    for status in statuses:
        content = _json("Ready503") if status == 503 and gives == "ServerReady" else _json("Error")
        responses[str(status)] = {"description": _STATUSES[status], "content": content}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = list(parameters)
    if body is not None:
        content = _json(body)
        if binary:
            content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"required": body not in ("IndexRequest", "RepositoryRequest"), "content": content}
    return operation


def _with_path_parameters(path: str, item: dict[str, Any]) -> dict[str, Any]:
    names = [name for name in ("model", "version", "label") if f"{{{name}}}" in path]
    parameters = [{"name": name, "in": "path", "required": True, "schema": _NAME} for name in names]
    return {**item, "parameters": parameters} if parameters else item


def _wishes() -> list[Schema]:
    return [
        {
            "name": "X-Mlscale-Deadline-Ms",
            "in": "header",
            "required": False,
            "description": "Milliseconds after which the client has no use for the answer",
            "schema": {"type": "number", "minimum": 0.001, "maximum": 3_600_000},
        },
        {
            "name": "X-Mlscale-Priority",
            "in": "header",
            "required": False,
            "description": "Among the requests of one model a higher one goes first",
            "schema": {"type": "integer", "minimum": -queueing.MAX_PRIORITY, "maximum": queueing.MAX_PRIORITY},
        },
        {
            "name": "X-Mlscale-Route-Key",
            "in": "header",
            "required": False,
            "description": "While a new version is tried, requests with the same key go to the same version",
            "schema": {"type": "string", "pattern": "^[ -~]*$"},
        },
    ]


def _query(name: str, text: str, low: float, high: float) -> Schema:
    schema = {"type": "number", "minimum": low, "maximum": high}
    return {"name": name, "in": "query", "required": False, "description": text, "schema": schema}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _object(required: Sequence[str] = (), **properties: Schema) -> Schema:
    schema: Schema = {"type": "object", "properties": properties}
    return {**schema, "required": list(required)} if required else schema


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _canary() -> Schema:
    described = _object(
        fraction={"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        split={"type": "string", "enum": ["deterministic", "random"]},
        window_s={"type": "number", "minimum": 1, "maximum": 1800},
        min_requests={"type": "integer", "minimum": 1},
        confidence={"type": "number", "exclusiveMinimum": 0.5, "exclusiveMaximum": 1},
        max_error_increase={"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        automatic={"type": "boolean"},
    )
    return {**described, "additionalProperties": False}


def _runtime() -> Schema:
    name: Schema = {"type": "string", "enum": list(get_args(runtimes.Name))}
    tolerance: Schema = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    described = _object(name=name, rtol=tolerance, atol=tolerance, reduced_precision={"type": "boolean"})
    return {"anyOf": [name, {**described, "additionalProperties": False}]}


def _record() -> Schema:
    simple: Schema = {"type": ["number", "string", "boolean"]}
    many: Schema = {"anyOf": [simple, _list({"type": ["number", "string", "boolean"]})]}
    return {
        **_object(("label",), label=many, prediction=many, version=_VERSION, id=_TEXT),
        "additionalProperties": False,
    }


def _schemas() -> dict[str, Schema]:
    datatype: Schema = {"type": "string", "enum": sorted(tfserving_wire.NUMBERS)}
    shape = _list({"type": "integer", "minimum": -1})
    described = _object(("name", "datatype", "shape"), name=_TEXT, datatype=datatype, shape=shape)
    data: Schema = {"type": "array", "items": {}}
    asked = _object(("name",), name=_TEXT, parameters=_OBJECT)
    sizes = _list({"type": "integer", "minimum": 0})
    given = _object(
        ("name", "datatype", "shape"), name=_TEXT, datatype=datatype, shape=sizes, parameters=_OBJECT, data=data
    )
    objective = _object(
        ("milliseconds",),
        milliseconds={"type": "number", "exclusiveMinimum": 0, "maximum": 3_600_000},
        percentile={"type": "number", "exclusiveMinimum": 0, "maximum": 100},
    )
    records = {"type": "array", "items": _OBJECT}
    instances: Schema = {"type": "array", "minItems": 1, "items": {}}
    examples: Schema = {"type": "array", "minItems": 1, "items": _OBJECT}
    return {
        "Any": {},
        "Empty": _NOTHING,
        "Error": _object(("error",), error=_TEXT, field=_TEXT, value=_TEXT, fix=_TEXT),
        "Server": _object(("name", "version", "extensions"), name=_TEXT, version=_TEXT, extensions=_list(_TEXT)),
        "Live": _object(("live",), live={"type": "boolean"}),
        "ServerReady": _object(("ready",), ready={"type": "boolean"}),
        "Ready503": {"anyOf": [_object(("ready",), ready={"type": "boolean"}), _object(("error",), error=_TEXT)]},
        "Ready": _object(("name", "ready"), name=_TEXT, ready={"type": "boolean"}),
        "ModelMetadata": _object(
            ("name", "versions", "platform", "inputs", "outputs"),
            name=_TEXT,
            versions=_list(_TEXT),
            platform=_TEXT,
            inputs=_list(described),
            outputs=_list(described),
        ),
        "InferRequest": _object(
            ("inputs",), id=_TEXT, parameters=_OBJECT, inputs={**_list(given), "minItems": 1}, outputs=_list(asked)
        ),
        "InferResponse": _object(
            ("model_name", "model_version", "outputs"),
            model_name=_TEXT,
            model_version=_TEXT,
            id=_TEXT,
            outputs=_list(given),
        ),
        "IndexRequest": _object(ready={"type": "boolean"}),
        "Index": _list(_object(("name", "version", "state", "reason"), name=_TEXT, version=_TEXT, state=_TEXT)),
        "RepositoryRequest": _object(parameters=_OBJECT),
        "ModelStatus": _object(("model_version_status",), model_version_status=_list(_OBJECT)),
        "SignatureMetadata": _object(("model_spec", "metadata"), model_spec=_OBJECT, metadata=_OBJECT),
        "PredictRequest": {
            "anyOf": [
                _object(("instances",), signature_name=_TEXT, instances=instances),
                _object(("inputs",), signature_name=_TEXT, inputs={}),
            ]
        },
        "PredictResponse": _object(predictions=_list({}), outputs={}),
        "ExamplesRequest": _object(("examples",), signature_name=_TEXT, context=_OBJECT, examples=examples),
        "ExamplesResponse": _object(("results",), results=_list({})),
        "Deployment": {
            **_object(
                ("artefact",),
                artefact={"type": "string", "minLength": 1},
                version=_VERSION,
                objective=objective,
                min_cores={"type": "number", "minimum": 0},
                max_cores={"type": ["number", "null"], "exclusiveMinimum": 0},
                priority={"type": "integer", "minimum": -1000, "maximum": 1000},
                max_batch={"type": "integer", "minimum": 1, "maximum": 4096},
                device={"type": "string", "enum": ["auto", "cpu", "gpu"]},
                gpu_memory_mb={"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 2**20},
                max_memory_mb={"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 2**30},
                canary=_canary(),
                runtime=_runtime(),
                checksum={"type": "string", "pattern": "^[0-9a-f]{64}$"},
            ),
            "additionalProperties": False,
        },
        "Wish": {**_object(version=_VERSION, reason=_REASON), "additionalProperties": False},
        "Feedback": _object(("records",), records={**_list(_record()), "minItems": 1, "maxItems": 10_000}),
        "Counted": _object(("counted", "unknown_ids"), counted=_NUMBER, unknown_ids=_list(_TEXT)),
        "Quality": _object(("name", "window_s", "versions"), name=_TEXT, window_s=_NUMBER, versions=_OBJECT),
        "Status": _object(("name", "version", "state", "settled"), name=_TEXT, version=_TEXT, state=_TEXT),
        "Statuses": _object(("models",), models=_list(_OBJECT)),
        "Removed": _object(("removed",), removed=_TEXT),
        "Records": _object(("records",), records=records),
        "Host": _object(("cpu", "enforces", "cores"), cpu=_TEXT, cores=_NUMBER, time=_NUMBER, gpus=_list(_OBJECT)),
    }
