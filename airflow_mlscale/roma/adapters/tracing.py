"""OpenTelemetry traces of inference: one span for the request, within it the wait in the line and the execution.

Off, and without any cost, unless the standard environment asks for it: ``OTEL_EXPORTER_OTLP_ENDPOINT`` (or
``…_TRACES_ENDPOINT``) says where to, or ``OTEL_TRACES_EXPORTER`` is ``otlp`` or ``console``. All other settings
(sampler, headers, resource attributes) are OpenTelemetry's own. Callers pass their context by W3C's ``traceparent``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

log = logging.getLogger(__name__)

_CARRIED = (b"traceparent", b"tracestate")


class Traced(Protocol):
    """A request that has ended; times in nanoseconds since the epoch."""

    name: str
    headers: Mapping[bytes, bytes]
    begin_ns: int
    end_ns: int
    steps: Sequence[tuple[str, int, int]]
    """Name, begin and end of what happened in it."""
    attributes: Mapping[str, Any]
    failed: bool


def wanted(environment: Mapping[str, str] = os.environ) -> str | None:
    """Which exporter the environment asks for: ``otlp``, ``console`` or None."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    if exporter:
        return exporter if exporter in ("otlp", "console") else None
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return "otlp" if any(environment.get(name) for name in endpoints) else None


def open_tracer() -> Tracer | None:
    """The tracer that the environment asks for; None if it asks for none, or OpenTelemetry is not installed."""
    exporter = wanted()
    if exporter is None:
        return None
    try:
        return Tracer(_exporter(exporter))
    except ImportError as exc:
        log.warning("no traces, although the environment asks for them: install the extra `otel` (%s)", exc)
        return None


class Tracer:
    """Sends spans to an exporter, in the background and in batches; what it cannot get rid of is dropped."""

    def __init__(self, exporter: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk import resources
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        default = resources.Resource({resources.SERVICE_NAME: "roma"})
        # Resource.create reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, and knows no better name by itself.
        found = resources.Resource.create()
        named = str(found.attributes.get(resources.SERVICE_NAME, "")).startswith("unknown_service")
        self._provider = TracerProvider(resource=found.merge(default) if named else found)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("airflow_mlscale.roma")
        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()

    def record(self, one: Traced) -> None:
        """A request has ended."""
        trace = self._trace
        carrier = {name.decode(): one.headers[name].decode("latin-1") for name in _CARRIED if name in one.headers}
        span = self._tracer.start_span(
            one.name,
            context=self._propagator.extract(carrier),
            kind=trace.SpanKind.SERVER,
            attributes=one.attributes,
            start_time=one.begin_ns,
        )
        within = trace.set_span_in_context(span)
        for name, begin_ns, end_ns in one.steps:
            self._tracer.start_span(name, context=within, start_time=begin_ns).end(end_ns)
        if one.failed:
            span.set_status(trace.StatusCode.ERROR)
        span.end(one.end_ns)

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


def _exporter(name: str) -> Any:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
