"""Spans of answers: what they tell, whose they are, and that a real collector gets them."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest

from ecd.config import EdgeConfig, Http
from ecd.edge import telemetry
from ecd.edge.http import gateway
from ecd.edge.run_args import AnswerSettings
from ecd.edge.telemetry import check_spans, spans
from ecd.errors import Code, ConfigError
from tests.edge.gateway.instant_cloud import ByteModel, InstantCloud

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "LIBRARIES", ("no_such_library.sdk",))
    check_spans(EdgeConfig(model="m"))
    with pytest.raises(ConfigError, match=r"no_such_library\.sdk is not installed; `pip install .ecd\[otel"):
        check_spans(EdgeConfig(model="m", otlp="http://127.0.0.1:4318"))


async def test_nobody_is_told_unless_asked() -> None:
    service = InstantCloud().service
    async with spans(EdgeConfig(model="m"), service) as around:
        assert around(service) is service
    assert not service.on_begin


class Collector(HTTPServer):
    """Takes OTLP over HTTP and keeps the spans."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        collector = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                told = collector.ExportTraceServiceRequest.FromString(body)
                server.spans += [
                    span
                    for resource in told.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                ]
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.end_headers()

            def log_message(self, *args: Any) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.sdk")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    yield collector
    collector.shutdown()
    thread.join()
    collector.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


async def test_a_collector_gets_a_span_for_each_answer(collector: Collector) -> None:
    cloud = InstantCloud()
    config = EdgeConfig(
        model="m", otlp=f"http://127.0.0.1:{collector.server_port}/", http=Http(listen="127.0.0.1:0")
    )
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 8}
    async with (
        spans(config, cloud.service) as around,
        gateway(config, cloud.service, ByteModel(), AnswerSettings(), around) as urls,
        httpx.AsyncClient(base_url=urls[0]) as client,
    ):
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        assert (await client.post("/v1/chat/completions", json=chat, headers=headers)).status_code == 200
        cloud.text = None
        asked = asyncio.create_task(client.post("/v1/chat/completions", json=chat))
        while len(cloud.opened) < 2:
            await asyncio.sleep(0.001)
        cloud.reset(Code.ENGINE, "it broke")
        assert (await asked).status_code >= 500
    answered, failed = collector.spans
    assert answered.name == "text_completion bytes"
    assert (answered.trace_id.hex(), answered.parent_span_id.hex()) == (TRACE, PARENT)
    told = attributes(answered)
    assert told["gen_ai.usage.output_tokens"] == 3
    assert told["gen_ai.usage.input_tokens"] == len(b"user:x;")
    assert told["gen_ai.request.max_tokens"] == 8
    assert [event.name for event in answered.events] == ["first token"]
    assert answered.start_time_unix_nano <= answered.events[0].time_unix_nano <= answered.end_time_unix_nano
    assert not failed.parent_span_id
    assert (failed.status.code, failed.status.message) == (2, "it broke")
    assert attributes(failed)["error.type"] == "ENGINE"
