"""What the edge tells of itself: its state and its counters, on the control socket and over HTTP.

Owns the shape of `status` and `stats`, as docs/PROTOCOL.md lists them.
"""

import asyncio
from collections import Counter
from dataclasses import asdict
from time import process_time
from typing import Any

from ecd.edge.generation import Phase
from ecd.edge.pacing_stats import conditions_told, pace_told
from ecd.edge.service import EdgeService
from ecd.wire.connection import Rtt
from ecd.wire.link import Link


def status_told(service: EdgeService, draft_model: str) -> dict[str, Any]:
    """The links and what is served over them. `link` is that of the cloud that stands best; of several clouds
    `clouds` tells each by its address.
    """
    uplinks = service.uplinks
    shown = uplinks.shown
    running = Counter(a.cloud for a in service.answers.values() if a.generation.phase is Phase.STREAMING)
    return {
        "role": "edge",
        "state": "draining" if service.draining else "serving",
        "draft_model": draft_model,
        "target_model": service.cloud_model,
        "link": {
            "state": str(uplinks.state),
            "draining": uplinks.link is not None and uplinks.link.connection.peer_draining,
            "cloud": shown.key if shown else "",
            "reason": uplinks.reason,
            "refused": uplinks.refused is not None,
            "connects": uplinks.connects,
            **_link_told(uplinks.link),
        },
        "clouds": {
            uplink.key: {
                "weight": uplinks.fleet.members[uplink.key].weight,
                "standing": str(uplinks.standing(uplink)),
                "reason": uplink.reason,
                "refused": uplink.refused is not None,
                "connects": uplink.connects,
                "running": running[uplink],
                **_link_told(uplink.link),
            }
            for uplink in uplinks
            if len(uplinks) > 1
        },
        "sessions": len(service.answers),
    }


def _link_told(link: Link | None) -> dict[str, Any]:
    rtt = link.connection.rtt if link else Rtt()
    return {
        "rtt_ms": None if rtt.smoothed_s is None else rtt.smoothed_s * 1000,
        "rtt_variation_ms": None if rtt.smoothed_s is None else rtt.variation_s * 1000,
        "certificate_expires": link.certificate_expires() if link else None,
        "cloud_load": link.connection.peer_load if link else {},
    }


def stats_told(service: EdgeService) -> dict[str, Any]:
    """Counters since start, finished answers only, and what follows from them; called in the event loop.

    Bytes are counted as they pass, so those per token are of the tokens of running answers too.
    """
    totals = service.totals
    generations = [answer.generation for answer in service.answers.values()]
    tokens = totals.committed + sum(len(g.origins) - len(g.request.committed) for g in generations)
    newest = next(reversed(service.answers.values()), None)
    wire_in, wire_out = service.uplinks.wire_bytes
    packets_in, packets_out = service.uplinks.packet_bytes
    return {
        **asdict(totals),
        "conditions": conditions_told(service.meter, service.survival),
        "drafters": service.acceptance.totals(),
        "kv_cache": service.drafting.kv_stats(),
        "pace": {} if newest is None else pace_told(newest, service.acceptance),
        "confident": service.thresholds.told(),
        "cpu_s": process_time(),
        "tasks": len(asyncio.all_tasks()),
        "running": len(service.answers),
        "acceptance_rate": totals.accepted / totals.verified if totals.verified else 0.0,
        "forwards_per_token": totals.target_forwards / totals.committed if totals.committed else 0.0,
        "link_connects": service.uplinks.connects,
        "wire_bytes_in": wire_in,
        "wire_bytes_out": wire_out,
        "wire_bytes_per_token": (wire_in + wire_out) / tokens if tokens else 0.0,
        "packet_bytes_in": packets_in,
        "packet_bytes_out": packets_out,
        "packet_bytes_per_token": (packets_in + packets_out) / tokens if tokens else 0.0,
    }
