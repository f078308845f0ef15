"""Whether the edge tells a collector of OpenTelemetry about its answers.

The libraries come with the extra `ecd[otel]`, and only `spans` imports them.
"""

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator, Callable
from typing import Any

from ecd.config import EdgeConfig
from ecd.edge.service import EdgeService
from ecd.errors import ConfigError

LIBRARIES = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")


def check_spans(config: EdgeConfig) -> None:
    """Raises ConfigError when spans are asked for and the extra is missing."""
    missing = [name for name in LIBRARIES if not _is_there(name)]
    if config.otlp is not None and missing:
        raise ConfigError(
            f"otlp is set and {', '.join(missing)} is not installed; `pip install 'ecd[otel]'`, or take the "
            "setting out"
        )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@contextlib.asynccontextmanager
async def spans(config: EdgeConfig, service: EdgeService) -> AsyncIterator[Callable[[Any], Any]]:
    """Sends a span for each answer, if at all, while the context lasts.

    Gives what is to be put around an ASGI application, so that spans belong to those of its callers.
    """
    if config.otlp is None:
        yield lambda app: app
        return
    # Not above: they are not installed everywhere.
    from ecd.edge.spans import Spans, TraceParent, exporter

    made = Spans(exporter(config.otlp))
    service.on_begin.append(lambda answer: made.begun(answer, service.cloud_model))
    service.on_end.append(made.ended)
    try:
        yield TraceParent
    finally:
        await asyncio.to_thread(made.close)
