"""A task that tells in which trace it runs, instrumented as OpenTelemetry's documents say."""

from __future__ import annotations

from celery.signals import worker_process_init
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from tasks import app, tell


@worker_process_init.connect(weak=False)
def instrument(**_: object) -> None:
    trace.set_tracer_provider(TracerProvider())
    CeleryInstrumentor().instrument()


@app.task(name="traced.seen", shared=False)
def seen(value: str) -> None:
    span = trace.get_current_span()
    assert isinstance(span, ReadableSpan)
    told = {
        "value": value,
        "trace": format(span.get_span_context().trace_id, "032x"),
        "has_parent": span.parent is not None,
    }
    tell("seen", told)
