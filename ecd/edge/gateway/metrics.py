"""`/metrics`: the edge's counters for Prometheus, read from where they are kept when somebody asks.

Owns the names of the metrics; what is counted already is not counted again.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate
from time import process_time

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ecd.edge.latency import Histogram
from ecd.edge.service import EdgeService

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
        yield _histogram(
            "time_to_first_token", "From a request to its first tokens.", service.latencies.first_token
        )
        yield _histogram(
            "inter_token",
            "From a token to the next, 0 for those that come together.",
            service.latencies.inter_token,
        )
        link, uplink = service.uplink.link, service.uplink
        bytes_in, bytes_out = uplink.wire_bytes
        wire = CounterMetricFamily("ecd_edge_wire_bytes", "Bytes on the link to the cloud.", labels=["way"])
        wire.add_metric(["down"], bytes_in)
        wire.add_metric(["up"], bytes_out)
        yield wire
        yield CounterMetricFamily("ecd_edge_link_connects", "Times that the link was made.", uplink.connects)
        yield CounterMetricFamily("ecd_edge_cpu_seconds", "CPU time of the edge.", process_time())
        yield GaugeMetricFamily("ecd_edge_running", "Answers that run now.", len(service.answers))
        yield GaugeMetricFamily("ecd_edge_link_up", "1 while there is a link to the cloud.", link is not None)
        rtt_s = link.connection.rtt.smoothed_s if link is not None else None
        if rtt_s is not None:
            yield GaugeMetricFamily("ecd_edge_rtt_seconds", "Smoothed round-trip time of the link.", rtt_s)


def _histogram(name: str, text: str, seen: Histogram) -> HistogramMetricFamily:
    bounds = [*map(str, seen.bounds), "+Inf"]
    buckets = list(zip(bounds, accumulate(seen.counts), strict=True))
    return HistogramMetricFamily(f"ecd_edge_{name}_seconds", text, buckets, seen.sum_s)


@dataclass(frozen=True, slots=True)
class Metrics:
    """The registry of one edge, and what only the gateway counts: requests by path and status."""

    registry: CollectorRegistry
    requests: Counter

    @classmethod
    def of(cls, service: EdgeService) -> "Metrics":
        """Metrics of this service."""
        registry = CollectorRegistry()
        registry.register(EdgeCollector(service))
        requests = Counter(
            "ecd_http_requests", "HTTP requests answered.", ["path", "status"], registry=registry
        )
        return cls(registry, requests)


class RequestCount:
    """Counts what is answered, by path and status; ASGI middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]):
        self._app = app
        self._requests = metrics.requests
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands on to the application, and notes the status that it answers with."""
        path = scope.get("path")
        # A label for every path that somebody tries would grow without end.
        label = path if path in self._paths else "other"

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests.labels(label, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, noting)
