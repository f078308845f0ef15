"""`/metrics`: the edge's counters for Prometheus, read from where they are kept when somebody asks.

Owns the names of the metrics; what is counted already is not counted again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import process_time

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ecd.edge.answer import Answer
from ecd.edge.service import EdgeService
from ecd.errors import EcdError
from ecd.wire.messages import Finish

# Upper edges in seconds: a token at the pace of an accelerator, and of a CPU with a long prompt.
FIRST_TOKEN_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
COUNTERS = {
    "answers": "Answers begun.",
    "finished": "Answers that came to their end.",
    "failed": "Answers that failed.",
    "cancelled": "Answers that were cancelled.",
    "resumed": "Times that an answer was opened again after a lost stream.",
    "committed": "Tokens of finished answers.",
    "drafted": "Tokens guessed for them.",
    "verified": "Guesses that the target looked at.",
    "accepted": "Guesses that it accepted.",
    "target_forwards": "Forwards of the target.",
    "cached_tokens": "Prompt tokens that the cloud's KV cache held.",
    "prefill_tokens": "Prompt tokens that the target read.",
    "prefix_tokens": "Prompt tokens that did not have to be sent.",
    "draft_cached_tokens": "Tokens of prompts that the edge's KV cache held.",
    "draft_prefill_tokens": "Tokens of prompts that the draft model read.",
    "assisted": "Texts of which the draft model's KV cache came as pages.",
    "assisted_tokens": "Tokens of them that came so.",
    "assists_failed": "Texts whose pages were damaged, late or did not come.",
    "page_bytes": "Bytes of pages that came.",
    "alternates_sent": "Second choices sent.",
    "alternates_used": "Second choices that the text went on with.",
}


class EdgeCollector(Collector):
    """What the edge counts anyway, as metrics."""

    def __init__(self, service: EdgeService):
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """The values of now."""
        service = self._service
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"ecd_edge_{name}", text, getattr(service.totals, name))
        link, uplinks = service.uplinks.link, service.uplinks
        bytes_in, bytes_out = uplinks.wire_bytes
        wire = CounterMetricFamily("ecd_edge_wire_bytes", "Bytes on the link to the cloud.", labels=["way"])
        wire.add_metric(["down"], bytes_in)
        wire.add_metric(["up"], bytes_out)
        yield wire
        yield CounterMetricFamily("ecd_edge_link_connects", "Times that the link was made.", uplinks.connects)
        yield CounterMetricFamily("ecd_edge_cpu_seconds", "CPU time of the edge.", process_time())
        yield GaugeMetricFamily("ecd_edge_running", "Answers that run now.", len(service.answers))
        yield GaugeMetricFamily("ecd_edge_link_up", "1 while there is a link to the cloud.", link is not None)
        rtt_s = link.connection.rtt.smoothed_s if link is not None else None
        if rtt_s is not None:
            yield GaugeMetricFamily("ecd_edge_rtt_seconds", "Smoothed round-trip time of the link.", rtt_s)


@dataclass(frozen=True, slots=True)
class Metrics:
    """The registry of one edge, and what is counted only here: requests, answers' times."""

    registry: CollectorRegistry
    requests: Counter
    first_token: Histogram
    token: Histogram

    @classmethod
    def of(cls, service: EdgeService) -> "Metrics":
        """Metrics of this service."""
        registry = CollectorRegistry()
        registry.register(EdgeCollector(service))
        requests = Counter(
            "ecd_http_requests", "HTTP requests answered.", ["path", "status"], registry=registry
        )
        first_token = Histogram(
            "ecd_edge_first_token_seconds",
            "From the request to the first token of its answer.",
            buckets=FIRST_TOKEN_S,
            registry=registry,
        )
        token = Histogram(
            "ecd_edge_token_seconds",
            "Mean time between tokens of an answer, behind the first that came.",
            buckets=TOKEN_S,
            registry=registry,
        )
        metrics = cls(registry, requests, first_token, token)
        service.on_end.append(metrics.ended)
        return metrics

    def ended(self, answer: Answer, outcome: EcdError | Finish) -> None:
        """An answer is over, complete or not."""
        if answer.first_at is None or answer.last_at is None:
            return
        self.first_token.observe(answer.first_at - answer.started_at)
        if answer.later_tokens > 0:
            self.token.observe((answer.last_at - answer.first_at) / answer.later_tokens)


class RequestCount:
    """Counts what is answered, by the path of its route and by status; ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[Route]):
        self._app = app
        self._requests = metrics.requests
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands on to the application, and notes the status that it answers with."""
        label = self._label(scope)

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests.labels(label, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, noting)

    def _label(self, scope: Scope) -> str:
        # Here, since what is refused on the way to the router never has a route. A label for every path or
        # name that somebody tries would grow without end.
        found = (route for route in self._routes if route.matches(scope)[0] is not Match.NONE)
        return next((route.path_format for route in found), "other")
