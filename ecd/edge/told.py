"""What the edge tells of itself: its state and its counters, on the control socket and over HTTP.

Owns the shape of `status` and `stats`, as docs/PROTOCOL.md lists them.
"""

import asyncio
from dataclasses import asdict
from time import process_time
from typing import Any

from ecd.edge.pacing_stats import conditions_told, pace_told
from ecd.edge.service import EdgeService


def status_told(service: EdgeService, draft_model: str) -> dict[str, Any]:
    """The link and what is served over it."""
    uplink = service.uplink
    rtt = uplink.link.connection.rtt if uplink.link else None
    load = uplink.link.connection.peer_load if uplink.link else {}
    return {
        "role": "edge",
        "state": "draining" if service.draining else "serving",
        "draft_model": draft_model,
        "target_model": service.cloud_model,
        "link": {
            "state": str(uplink.state),
            "draining": uplink.link is not None and uplink.link.connection.peer_draining,
            "cloud": f"{uplink.host}:{uplink.port}",
            "reason": uplink.reason,
            "refused": uplink.refused is not None,
            "connects": uplink.connects,
            "rtt_ms": rtt.smoothed_s * 1000 if rtt and rtt.smoothed_s is not None else None,
            "rtt_variation_ms": rtt.variation_s * 1000 if rtt and rtt.smoothed_s is not None else None,
            "cloud_load": load,
        },
        "sessions": len(service.answers),
    }


def stats_told(service: EdgeService) -> dict[str, Any]:
    """Counters since start, finished answers only, and what follows from them; called in the event loop."""
    service, totals = service, service.totals
    newest = next(reversed(service.answers.values()), None)
    wire_in, wire_out = service.uplink.wire_bytes
    packets_in, packets_out = service.uplink.packet_bytes
    return {
        **asdict(totals),
        "conditions": conditions_told(service.meter, service.survival),
        "drafters": service.acceptance.totals(),
        "pace": {} if newest is None else pace_told(newest, service.acceptance),
        "cpu_s": process_time(),
        "tasks": len(asyncio.all_tasks()),
        "running": len(service.answers),
        "acceptance_rate": totals.accepted / totals.verified if totals.verified else 0.0,
        "forwards_per_token": totals.target_forwards / totals.committed if totals.committed else 0.0,
        "link_connects": service.uplink.connects,
        "wire_bytes_in": wire_in,
        "wire_bytes_out": wire_out,
        "wire_bytes_per_token": (wire_in + wire_out) / totals.committed if totals.committed else 0.0,
        "packet_bytes_in": packets_in,
        "packet_bytes_out": packets_out,
        "packet_bytes_per_token": (packets_in + packets_out) / totals.committed if totals.committed else 0.0,
    }
