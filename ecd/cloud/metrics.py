"""The cloud's counters for Prometheus, read from where they are kept when somebody asks.

Owns the names of the metrics, and whether they are served: the libraries come with the extra `ecd[http]`.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, make_asgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ecd.http_server import http_server

COUNTERS = {
    "steps": "Steps of the engine.",
    "forwards": "Forwards of sessions in them.",
    "forwards_without_hints": "Forwards that had no hint to verify.",
    "committed": "Tokens committed.",
    "verified": "Hints that were looked at.",
    "accepted": "Hints that were accepted.",
    "batch_tokens": "Tokens in all steps.",
    "batch_sessions": "Sessions in all steps.",
    "sessions": "Sessions begun.",
    "failed": "Sessions that failed in the engine.",
    "dropped_hints": "Hints that came too late, or did not follow the text.",
    "invalid_hints": "Hints that no edge of good will sends.",
    "alternates_used": "Second choices that the text went on with.",
    "engine_restarts": "Times that the engine was started again.",
}
GAUGES = {
    "running": "Sessions that run now.",
    "queued": "Sessions that wait for room.",
    "max_verify": "Most hints that a step verifies of a session, by load.",
}


class CloudCollector(Collector):
    """What the cloud counts anyway, as metrics; the functions tell its `stats` and `status`."""

    def __init__(self, stats: Callable[[], dict[str, Any]], status: Callable[[], dict[str, Any]]):
        self._stats = stats
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """The values of now."""
        stats, status = self._stats(), self._status()
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"ecd_cloud_{name}", text, stats[name])
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"ecd_cloud_{name}", text, stats[name])
        yield GaugeMetricFamily("ecd_cloud_connections", "Edges that are connected.", status["connections"])
        draining = status["state"] == "draining"
        yield GaugeMetricFamily("ecd_cloud_draining", "1 while no new sessions are taken.", draining)
        yield GaugeMetricFamily(
            "ecd_cloud_step_seconds", "What a step takes with a token a session.", stats["step_ms"] / 1000
        )
        yield CounterMetricFamily(
            "ecd_cloud_gap_seconds", "Time between steps whose work was there.", stats["gap_s"]
        )
        yield CounterMetricFamily("ecd_cloud_gaps", "Such times.", stats["gaps"])
        yield CounterMetricFamily("ecd_cloud_cpu_seconds", "CPU time of the cloud.", stats["cpu_s"])
        wire = CounterMetricFamily("ecd_cloud_wire_bytes", "Bytes on the links to edges.", labels=["way"])
        wire.add_metric(["up"], stats["wire_bytes_in"])
        wire.add_metric(["down"], stats["wire_bytes_out"])
        yield wire
        engine = GaugeMetricFamily("ecd_cloud_engine", "What fills the engine, by name.", labels=["of"])
        for name, value in stats["engine"].items():
            engine.add_metric([name], value)
        yield engine


@contextlib.asynccontextmanager
async def serving_metrics(
    listen: str, stats: Callable[[], dict[str, Any]], status: Callable[[], dict[str, Any]]
) -> AsyncIterator[str]:
    """Serves them at `listen` while the context lasts; gives the URL. Raises DaemonError."""
    registry = CollectorRegistry()
    registry.register(CloudCollector(stats, status))
    async with http_server(make_asgi_app(registry), listen, flag="--metrics") as urls:
        yield f"{urls[0]}/metrics"
