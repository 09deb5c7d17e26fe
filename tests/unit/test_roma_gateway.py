"""The gateway's HTTP side over fake workers: real sockets, no TensorFlow."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import measurement, model
from airflow_mlscale.roma.adapters import compression, inference, openapi, statuses
from tests.fakes import roma_served

INFER = "/v2/models/m/infer"
LONG = json.dumps({"values": list(range(3000))}).encode()


@pytest.fixture
async def served() -> AsyncIterator[roma_served.Served]:
    async with roma_served.serving() as one:
        yield one


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_compressed_bodies_reach_the_worker_plain(served: roma_served.Served, encoding: str, pack: Any) -> None:
    headers = {"content-encoding": encoding, "inference-header-content-length": "5"}
    async with served.answering(b"{}"):
        answer = await served.http.post(INFER, content=pack(LONG), headers=headers)
    assert answer.status_code == 200
    assert served.launcher.last.seen[-1] == model.Call("v2", LONG, 5)


@pytest.mark.parametrize(
    ("content", "encoding", "status"),
    [
        (b"nonsense", "gzip", 400),
        (gzip.compress(LONG)[:-9], "gzip", 400),
        (gzip.compress(LONG) + b"more", "gzip", 400),
        (gzip.compress(bytes(10**6)), "gzip", 413),
        (b"{}", "br", 415),
    ],
)
async def test_bad_compression_is_refused(content: bytes, encoding: str, status: int) -> None:
    async with roma_served.serving(max_body_bytes=100_000) as served:
        answer = await served.http.post(INFER, content=content, headers={"content-encoding": encoding})
    assert answer.status_code == status
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("accepted", "given"),
    [("gzip", "gzip"), ("deflate", "deflate"), ("br, gzip;q=0.5", "gzip"), ("gzip;q=0", None), ("br", None)],
)
async def test_answers_are_compressed_as_the_client_likes(
    served: roma_served.Served, accepted: str, given: str | None
) -> None:
    async with served.answering(LONG):
        answer = await served.http.post(INFER, content=b"{}", headers={"accept-encoding": accepted})
    assert answer.headers.get("content-encoding") == given
    assert answer.content == LONG


async def test_short_answers_are_not_compressed(served: roma_served.Served) -> None:
    async with served.answering(b"{}"):
        answer = await served.http.post(INFER, content=b"{}", headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in answer.headers


def test_binary_tensors_are_compressed_only_where_that_was_asked_for_alone() -> None:
    assert compression.preferred(b"gzip, deflate", binary=False) == "gzip"
    assert compression.preferred(b"gzip, deflate", binary=True) is None
    assert compression.preferred(b"gzip", binary=True) == "gzip"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /v2 HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000 + b"\r\n\r\n", 431),
        (b"GET /v2 HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40_000, 431),
        (b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", 431),
        (b"POST /v2 HTTP/1.1\r\n" + b"a: b\r\n" * 10_000, 431),
        (b"\x00\x01\x02\x03\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n", 400),
    ],
)
async def test_heads_that_are_too_large_or_none_are_refused(
    served: roma_served.Served, sent: bytes, status: int
) -> None:
    head, _, body = (await served.raw(sent)).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), head
    assert json.loads(body)["error"]
    assert (await served.http.get("/v2")).status_code == 200


async def test_connections_that_send_no_head_are_closed() -> None:
    async with roma_served.serving(header_timeout_s=0.05) as served:
        for sent in (b"", b"GET /v2 HTTP/1.1\r\nho"):
            assert (await served.raw(sent)).startswith(b"HTTP/1.1 408 ")
        for _ in range(3):  # a kept connection begins anew with each request
            assert (await served.http.get("/v2")).status_code == 200


async def test_head_is_answered_as_get_without_the_body(served: roma_served.Served) -> None:
    for path, status in (("/v2/health/live", 200), ("/v2/models/m", 200), ("/v2/models/nobody", 404), (INFER, 405)):
        answer = await served.http.head(path)
        assert (answer.status_code, answer.content) == (status, b"")
        assert (await served.http.get("/v2/health/live")).status_code == 200  # over the same connection


async def test_the_index_takes_truth_values_only(served: roma_served.Served) -> None:
    answer = await served.http.post("/v2/repository/index", json={"ready": "false"})
    assert (answer.status_code, answer.json()["field"]) == (400, "ready")
    assert [one["name"] for one in (await served.http.post("/v2/repository/index", json={"ready": True})).json()] == [
        "m"
    ]


async def test_the_index_names_what_could_be_loaded(served: roma_served.Served) -> None:
    index = (await served.http.post("/v2/repository/index")).json()
    assert [(one["name"], one["version"], one["state"]) for one in index] == [
        ("m", "1", "READY"),
        ("found", "3", "UNAVAILABLE"),
    ]
    assert (await served.http.post("/v2/repository/models/found/load")).status_code == 200
    index = (await served.http.post("/v2/repository/index")).json()
    assert [(one["name"], one["state"]) for one in index] == [("m", "READY"), ("found", "READY")]


async def test_a_load_that_takes_too_long_says_so_and_goes_on(served: roma_served.Served) -> None:
    await served.models.deploy(model.DeployOrder(name="s", artefact="/slow", objective=model.Objective(milliseconds=9)))
    load = "/v2/repository/models/s/load"
    answer = await served.http.post(load, params={"wait_s": 0.01})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert "still loading after 0.01 s" in answer.json()["error"]
    assert (await served.http.post(load, params={"wait_s": 0})).status_code == 200
    served.launcher.slow.set()
    assert (await served.http.post(load)).status_code == 200
    assert (await served.http.get("/v2/models/s/ready")).status_code == 200


async def test_slow_bodies_are_refused() -> None:
    async with roma_served.serving(body_timeout_s=0.05) as served:
        sent = f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nab".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(sent)
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 10)
        writer.close()


async def test_a_body_that_trickles_in_after_its_answer_ends_the_connection() -> None:
    async with roma_served.serving(header_timeout_s=0.2) as served:
        head = b"POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5000\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(head)
        closed = asyncio.ensure_future(reader.read())
        async with asyncio.timeout(10):
            while not (await asyncio.wait({closed}, timeout=0.02))[0]:
                writer.write(b" ")
        answer = await closed
        assert (answer[:13], answer.count(b"HTTP/1.1")) == (b"HTTP/1.1 404 ", 1)
        writer.close()
        whole = b"".join([head.replace(b"5000", b"2"), b"{}", head.replace(b"5000", b"2"), b"{}"])
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(whole)
        for _ in range(2):  # bodies that came whole leave it open
            assert b" 404 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        await asyncio.sleep(0.3)  # longer than a rest may take
        writer.write(whole)
        assert b" 404 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        writer.close()


async def test_a_client_that_hangs_up_half_way_leaves_nothing(served: roma_served.Served) -> None:
    for sent in (b"GET /v2", f"POST {INFER} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\nab".encode()):
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(sent)
    assert (await served.http.get("/v2/health/live")).json() == {"live": True}
    assert served.replica.meter.totals[measurement.Outcome.SERVED] == 0


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x-mlscale-deadline-ms": "soon"}, "X-Mlscale-Deadline-Ms"),
        ({"x-mlscale-deadline-ms": "-1"}, "X-Mlscale-Deadline-Ms"),
        ({"x-mlscale-priority": "high"}, "X-Mlscale-Priority"),
        ({"x-mlscale-priority": "99999999"}, "priority"),
        ({"inference-header-content-length": "9" * 6000}, "Inference-Header-Content-Length"),
        ({"inference-header-content-length": "3"}, "Inference-Header-Content-Length"),
    ],
)
async def test_bad_headers_are_named(served: roma_served.Served, headers: dict[str, str], message: str) -> None:
    answer = await served.http.post(INFER, content=b"{}", headers=headers)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("headers", "document"),
    [
        ({"x-mlscale-deadline-ms": "20"}, {}),
        ({"x-envoy-expected-rq-timeout-ms": "20"}, {}),
        ({"x-mlscale-deadline-ms": "60000", "x-envoy-expected-rq-timeout-ms": "20"}, {}),
        ({}, {"parameters": {"timeout": 20_000}}),
    ],
)
async def test_every_way_to_name_a_deadline_counts(
    served: roma_served.Served, headers: dict[str, str], document: Any
) -> None:
    served.occupy()
    answer = await served.http.post(INFER, json=document, headers=headers)
    assert answer.status_code in (429, 503)
    assert int(answer.headers["retry-after"]) >= 1


def test_a_distant_timeout_of_the_transport_leaves_the_objective() -> None:
    assert inference.Wishes(wait_s=60.0).deadline_s(10.0) is None
    assert inference.Wishes(wait_s=3.0).deadline_s(10.0) == 3.0
    assert inference.Wishes(use_s=60.0).deadline_s(10.0) == 60.0  # what the client says itself counts
    assert inference.Wishes(use_s=60.0, wait_s=3.0).deadline_s(10.0) == 3.0


@pytest.mark.parametrize("given", ["x", [], -5, 1e300, True])
def test_a_timeout_parameter_is_microseconds(given: Any) -> None:
    with pytest.raises(errors.InvalidInputError, match="timeout"):
        inference.timeout_s({"timeout": given})
    assert inference.timeout_s({"timeout": 2_500_000}) == 2.5
    assert inference.timeout_s({"timeout": 0}) is None


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models/m", 200),
        ("/v1/models/m/labels/stable", 200),
        ("/v1/models/m/labels/stable/metadata", 200),
        ("/v1/models/m/versions/1/metadata", 200),
        ("/v1/models/m/labels/canary", 404),
        ("/v1/models/m/versions/9", 404),
        ("/v1/models", 404),
        ("/v1", 404),
        ("/v1/models/m:generate", 404),
        ("/v1/models/m:predict", 405),
        ("/v2/models/m/nonsense", 404),
        ("/v2/repository/index", 405),
        ("/nonsense", 404),
        ("/v2/models/%00%ff/ready", 404),
    ],
)
async def test_paths(served: roma_served.Served, path: str, status: int) -> None:
    answer = await served.http.get(path)
    assert answer.status_code == status
    if status == 405:
        assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("verb", ["predict", "classify", "regress"])
async def test_verbs_reach_their_codecs(served: roma_served.Served, verb: str) -> None:
    async with served.answering(b'{"results": []}'):
        answer = await served.http.post(f"/v1/models/m/labels/stable:{verb}", content=b"{}")
    assert answer.json() == {"results": []}
    assert served.launcher.last.seen[-1].protocol == ("tfs" if verb == "predict" else f"tfs-{verb}")


@pytest.mark.parametrize("body", [b"[]", b'{"parameters": 5}', b'{"parameters": {"config": "{}"}}', b"{"])
async def test_loads_with_what_is_not_taken_are_refused(served: roma_served.Served, body: bytes) -> None:
    answer = await served.http.post("/v2/repository/models/m/load", content=body)
    assert answer.status_code == 400


async def test_the_openapi_document_is_one_and_tells_the_truth(served: roma_served.Served) -> None:
    document = (await served.http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for path, item in document["paths"].items():
        for name in ("model", "version", "label"):
            path = path.replace(f"{{{name}}}", {"model": "m", "version": "1", "label": "stable"}[name])
        known = {method.upper() for method in item} - {"PARAMETERS"}
        answer = await served.http.request("PATCH", path)
        assert answer.status_code == 405, path
        assert set(answer.headers["allow"].split(", ")) == known, path
        if "get" in item:
            answer = await served.http.get(path)
            assert str(answer.status_code) in item["get"]["responses"], path
            _check(document, item["get"]["responses"], answer)


def _check(document: dict[str, Any], responses: dict[str, Any], answer: httpx.Response) -> None:
    content = responses[str(answer.status_code)]["content"]
    if "application/json" in content:
        schema = {**content["application/json"]["schema"], "components": document["components"]}
        jsonschema.validate(answer.json(), schema)


def test_the_openapi_document_knows_every_field_of_a_deployment() -> None:
    known = openapi.document(token=True)["components"]["schemas"]["Deployment"]["properties"]
    with pytest.raises(errors.InvalidInputError, match="known are") as refused:
        model.order_from_json("m", {"artefact": "/a", "nonsense": 1})
    assert set(refused.value.fix.partition("known are ")[2].split(", ")) == set(known)


def test_every_error_has_a_status() -> None:
    assert statuses.of(statuses.StatusError(418, "x")) == (418, None)
    assert statuses.of(errors.InvalidInputError("x", 1, "y")) == (400, None)
    assert statuses.of(errors.AdmissionRefusedError("x")) == (409, None)
    assert statuses.of(RuntimeError("secret")) == (500, None)
    assert "secret" not in statuses.told(RuntimeError("secret"), 500)
