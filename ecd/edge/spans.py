"""A span of OpenTelemetry for each answer: when it began, its first token, its end, and what it took.

Owns names and attributes; those with `gen_ai.` are of OpenTelemetry's conventions for generative AI.
Spans leave in batches from a thread of the SDK's.
"""

from collections.abc import Mapping
from time import monotonic, time_ns
from typing import Any

from opentelemetry import context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ecd import __version__
from ecd.edge.answer import Answer
from ecd.errors import EcdError
from ecd.wire.messages import Finish

# The last spans are not to hold up the end of the daemon for longer.
LAST_EXPORT_MS = 2000
PARENT = TraceContextTextMapPropagator()


def exporter(url: str) -> SpanExporter:
    """Sends spans to the collector at `url`, for example http://127.0.0.1:4318, as OTLP over HTTP."""
    return OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces", timeout=LAST_EXPORT_MS / 1000)


class Spans:
    """The spans of the answers that run."""

    def __init__(self, exporter: SpanExporter):
        resource = Resource.create({"service.name": "ecd-edge", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ecd", __version__)
        self._running: dict[int, Span] = {}

    def begun(self, answer: Answer, model: Mapping[str, Any]) -> None:
        """An answer begins, for whoever asks in the current context."""
        request = answer.generation.request
        name = str(model.get("name", ""))
        self._running[answer.id] = self._tracer.start_span(
            f"text_completion {name}".strip(),
            kind=SpanKind.SERVER,
            start_time=_wall_ns(answer.started_at),
            attributes={
                "gen_ai.operation.name": "text_completion",
                "gen_ai.provider.name": "ecd",
                "gen_ai.request.model": name,
                "gen_ai.request.max_tokens": request.max_tokens,
                "gen_ai.request.temperature": request.sampling.temperature,
                "gen_ai.usage.input_tokens": len(request.prompt),
                "ecd.session": answer.id,
                "ecd.drafts": answer.generation.slot is not None,
            },
        )

    def ended(self, answer: Answer, outcome: EcdError | Finish) -> None:
        """It is over, complete or not."""
        span, tally = self._running.pop(answer.id), answer.generation.tally
        if answer.first_at is not None:
            span.add_event("first token", timestamp=_wall_ns(answer.first_at))
        span.set_attributes(
            {
                "gen_ai.usage.output_tokens": len(answer.generation.origins),
                "ecd.target_forwards": tally.forwards,
                "ecd.verified": tally.verified,
                "ecd.accepted": tally.accepted,
                "ecd.resumed": tally.resumed,
            }
        )
        match outcome:
            case EcdError():
                span.set_attribute("error.type", outcome.code.name)
                span.set_status(Status(StatusCode.ERROR, str(outcome)))
            case Finish():
                span.set_attribute("gen_ai.response.finish_reasons", (outcome.name.lower(),))
        span.end()

    def close(self) -> None:
        """Sends what has not been sent; waits for it, but not long."""
        self._provider.force_flush(LAST_EXPORT_MS)
        self._provider.shutdown()


class TraceParent:
    """Makes the span that a request names in `traceparent` the current one; ASGI middleware."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hands on to the application."""
        headers = {name.decode("latin-1"): text.decode("latin-1") for name, text in scope.get("headers", ())}
        token = context.attach(PARENT.extract(headers))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)


def _wall_ns(at: float) -> int:
    """A time of the monotonic clock, in seconds, as nanoseconds since 1970."""
    return time_ns() - int((monotonic() - at) * 1e9)
