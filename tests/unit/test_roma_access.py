"""What is written down about requests: the log, the metrics, the traces; over real sockets and fake workers."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import parser

from airflow_mlscale.roma.adapters import access, tokens, tracing, v2_wire
from tests.fakes import roma_served

INFER = "/v2/models/m/infer"
V2 = "/inference.GRPCInferenceService/"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_request_is_a_line_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    log, tokens_path = tmp_path / "access.log", tmp_path / "tokens.json"
    token = tokens.add(tokens_path, "ci", frozenset({"infer"}))
    headers = {"authorization": f"Bearer {token}", "x-request-id": "order-7"}
    async with roma_served.serving(access_log=True, access_log_path=log, tokens_path=tokens_path) as served:
        async with served.answering(b'{"x": 1}'):
            answer = await served.http.post(INFER + "?secret=hunter2", content=b"{}", headers=headers)
        assert answer.headers["x-request-id"] == "order-7"
        unnamed = await served.http.get("/v2", headers={"authorization": "Bearer hunter2"})
        call = served.channel.unary_unary(V2 + "ModelInfer")(
            v2_wire.ModelInferRequest(model_name="m").SerializeToString(), metadata=[*headers.items()]
        )
        await call
        assert dict(await call.trailing_metadata())["x-request-id"] == "order-7"
    first, second, third = lines(log)
    assert first.pop("ms") >= first.pop("queue_ms") >= 0
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "id": "order-7",
        "client": "127.0.0.1",
        "token": "ci",
        "protocol": "v2",
        "method": "POST",
        "path": INFER,
        "model": "m",
        "version": "1",
        "status": 200,
        "batch": 1,
        "device": "cpu",
        "bytes": 2,
        "sent": 8,
    }
    assert (second["status"], second["token"], second["model"]) == (401, None, None)
    assert second["id"] == unnamed.headers["x-request-id"] != "order-7"
    assert (third["protocol"], third["id"], third["version"], third["batch"]) == ("v2-grpc", "order-7", "1", 1)
    assert token not in log.read_text()
    assert "hunter2" not in log.read_text()


@pytest.mark.parametrize("given", ["", "two words", "x" * 200, "tab\there", "ö"])
async def test_odd_names_of_requests_are_replaced(given: str) -> None:
    async with roma_served.serving() as served:
        answer = await served.http.get("/v2", headers=[(b"x-request-id", given.encode())])
    assert len(answer.headers["x-request-id"]) == 16


async def test_a_log_that_was_moved_away_is_opened_anew(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    async with roma_served.serving(access_log=True, access_log_path=log) as served:
        await served.http.get("/v2")
        log.rename(tmp_path / "access.log.1")
        await served.http.get("/v1/models/m")
    assert [line["path"] for line in lines(tmp_path / "access.log.1")] == ["/v2"]
    assert [line["path"] for line in lines(log)] == ["/v1/models/m"]


async def test_a_log_that_cannot_be_written_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    full = Path("/dev/full")
    async with roma_served.serving(access_log=True, access_log_path=full) as served:
        for _ in range(3):
            assert (await served.http.get("/v2")).status_code == 200
    told = [record for record in caplog.records if "access log" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.ERROR]


async def test_metrics_of_requests(tmp_path: Path) -> None:
    async with roma_served.serving() as served:
        for _ in range(3):
            assert (await served.http.post(INFER, content=b"{}")).status_code == 200
        for path in ("/v2/models/nobody/infer", "/v2/models/elsewhere/infer", "/none"):
            await served.http.post(path, content=b"{}")
        found = metrics((await served.http.get("/metrics")).text)
    of_m = {"model": "m", "version": "1"}
    assert value(found, "mlscale_roma_request_seconds_count", **of_m, protocol="v2") == 3
    assert value(found, "mlscale_roma_queue_seconds_count", **of_m) == 3
    assert value(found, "mlscale_roma_responses_total", **of_m, protocol="v2", status="200") == 3
    assert value(found, "mlscale_roma_requests_total", **of_m, outcome="served") == 3
    assert value(found, "mlscale_roma_batch_requests_sum", **of_m) == 3
    assert value(found, "mlscale_roma_batch_requests_bucket", **of_m, le="1.0") == 3
    assert value(found, "mlscale_roma_refused_total", protocol="v2", status="404") == 2
    assert value(found, "mlscale_roma_refused_total", protocol="http", status="404") == 1
    assert not any("nobody" in labels for labels, _ in map(str_labels, found))
    assert value(found, "mlscale_roma_host_cores") == 2.0
    assert value(found, "process_resident_memory_bytes") > 0


async def test_lost_requests_are_counted_by_reason() -> None:
    async with roma_served.serving() as served:
        served.occupy()
        headers = {"x-mlscale-deadline-ms": "5"}
        assert (await served.http.post(INFER, content=b"{}", headers=headers)).status_code == 503
        found = metrics((await served.http.get("/metrics")).text)
    lost = {"model": "m", "version": "1", "outcome": "shed", "reason": "late"}
    assert value(found, "mlscale_roma_lost_total", **lost) == 1


async def test_series_of_models_that_are_gone_go_too() -> None:
    async with roma_served.serving() as served:
        await served.http.post(INFER, content=b"{}")
        assert 'request_seconds_count{model="m"' in (await served.http.get("/metrics")).text
        await served.models.remove("m")
        assert 'model="m"' not in (await served.http.get("/metrics")).text


Sample = tuple[str, dict[str, str], float]


def metrics(text: str) -> list[Sample]:
    return [
        (sample.name, sample.labels, sample.value)
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    ]


def value(found: list[Sample], name: str, **labels: str) -> float:
    (only,) = [amount for each, given, amount in found if each == name and given == labels]
    return only


def str_labels(sample: Sample) -> tuple[str, float]:
    return str(sample[1]), sample[2]


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    yield exporter
    exporter.shutdown()


async def test_traces_go_on_where_the_client_began(
    spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tracer() -> tracing.Tracer:
        made = tracing.Tracer(InMemorySpanExporter())
        made._provider.add_span_processor(SimpleSpanProcessor(spans))
        return made

    monkeypatch.setattr(tracing, "open_tracer", tracer)
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    async with roma_served.serving() as served:
        await served.http.post(INFER, content=b"{}", headers=headers)
        await served.http.get("/v2")
        call = served.channel.unary_unary(V2 + "ModelInfer")
        await call(v2_wire.ModelInferRequest(model_name="m").SerializeToString(), metadata=[*headers.items()])
        served.occupy()
        await served.http.post(INFER, content=b"{}", headers={**headers, "x-mlscale-deadline-ms": "5"})
        finished = spans.get_finished_spans()
    names = [span.name for span in finished]
    assert names == [
        "queue",
        "execute",
        f"POST {INFER}",
        "queue",
        "execute",
        V2 + "ModelInfer",
        "queue",
        f"POST {INFER}",
    ]
    assert {format(span.context.trace_id, "032x") for span in finished} == {trace_id}
    queue, execute, whole = finished[:3]
    assert format(whole.parent.span_id, "016x") == "00f067aa0ba902b7"
    assert queue.parent.span_id == execute.parent.span_id == whole.context.span_id
    assert whole.start_time <= queue.start_time <= queue.end_time == execute.start_time <= execute.end_time
    assert whole.attributes["mlscale.model"] == "m"
    assert whole.attributes["mlscale.version"] == "1"
    assert whole.attributes["mlscale.batch"] == 1
    assert whole.status.is_unset
    assert not finished[-1].status.is_ok
    assert finished[-1].attributes["mlscale.status"] == 503


@pytest.mark.parametrize(
    ("environment", "exporter"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, None),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, None),
    ],
)
def test_the_standard_environment_decides(environment: dict[str, str], exporter: str | None) -> None:
    assert tracing.wanted(environment) == exporter


async def test_spans_arrive_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    posted: list[tuple[str, bytes]] = []

    async def collect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        (size,) = re.findall(r"content-length: (\d+)", head)
        posted.append((head.split()[1], await reader.readexactly(int(size))))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(collect, "127.0.0.1", 0) as collector:
        port = collector.sockets[0].getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        tracer = tracing.open_tracer()
        assert tracer is not None
        request = access.Entry(
            protocol="v2", client="", method="POST", path=INFER, status=200, seconds=0.01, size=0, model="m",
            note=access.Note("name-of-it", {}),
        )  # fmt: skip
        tracer.record(access._Traced(request))
        await asyncio.to_thread(tracer.close)  # sends what is left
    ((path, body),) = posted
    assert path == "/v1/traces"
    assert b"name-of-it" in gzip.decompress(body) if body[:2] == b"\x1f\x8b" else b"name-of-it" in body
    assert b"roma" in body


def test_notes_are_of_one_request() -> None:
    note = access.begin({b"x-request-id": b"a"})
    access.routed("1")
    assert (note.id, note.version, note.queue_s) == ("a", "1", None)
    assert access.begin({}).version is None
    assert note.version == "1"
