"""The Grafana dashboard against the metrics that both daemons really have."""

import json
import re
from pathlib import Path
from typing import Any

import httpx

from ecd.cloud.batcher import Batcher
from ecd.cloud.metrics import serving_metrics
from ecd.cloud.service import CloudService
from ecd.cloud.session import Vocabulary
from ecd.wire.connection import Role, Settings
from tests.cloud.test_cloud_service import FINGERPRINT, Engine
from tests.edge.gateway.instant_cloud import InstantCloud, serving

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "grafana" / "ecd.json").read_text(encoding="utf-8")
)
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
QUERIES += [each["query"]["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]


def test_every_query_is_about_ecd() -> None:
    assert len(QUERIES) > 30
    assert all("ecd_" in query for query in QUERIES)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


async def test_every_metric_exists() -> None:
    engine, cloud = Engine(), InstantCloud()
    service = CloudService(
        engine,
        Vocabulary(1000, frozenset(), lambda token: b"x"),
        Settings(Role.CLOUD, "cloud under test", FINGERPRINT),
        Batcher(engine.capacity, 4, 4),
    )
    async with (
        serving(cloud) as edge_url,
        serving_metrics("127.0.0.1:0", service.stats, service.status) as cloud_url,
        httpx.AsyncClient() as client,
    ):
        chat = {"messages": [{"role": "user", "content": "x"}]}
        assert (await client.post(f"{edge_url}/v1/chat/completions", json=chat)).status_code == 200
        # What is measured on a real link.
        cloud.connection.rtt.sample(0.02)
        texts = [(await client.get(url)).text for url in (f"{edge_url}/metrics", cloud_url)]
    service.close()
    there = set(re.findall(r"^(ecd_\w+)", "\n".join(texts), re.MULTILINE))
    named = {name for query in QUERIES for name in re.findall(r"\becd_\w+", query)}
    assert named <= there
    assert 'ecd_cloud_engine{of="kv_use"} 0.5' in texts[1]
