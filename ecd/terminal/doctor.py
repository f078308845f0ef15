"""`ecdctl doctor`: what an edge tells of itself, judged, with what to do about it.

Owns the findings and their words. What drafting promises is foreseen by whoever calls.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ecd.client import BlockingClient
from ecd.errors import BadRequest

# Logs of two machines can be laid beside each other up to so many seconds, and certificates are valid.
CLOCKS_APART_S = 2.0
# The cloud tells its time in each PONG; so long is waited for the next one.
PONG_S, LOOK_S = 6.0, 0.02
# A link whose round trips vary by more than this share, and this many milliseconds, is not steady.
UNSTEADY_SHARE, UNSTEADY_MS = 0.5, 10.0
# A certificate that ends in fewer days should be renewed.
CERTIFICATE_DAYS = 14
MEASURE: dict[str, Any] = {"prompt": "Count from one to forty in words.", "max_tokens": 64}
MEASURED = ("rtt_ms", "draft_ms", "step_ms", "slope", "acceptance")


class Level(StrEnum):
    """FAILED: nothing works before it is mended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at, what was found, and what to do if it is not well."""

    level: Level
    about: str
    found: str
    todo: str = ""


def examine(client: BlockingClient, foresee: Callable[[Mapping[str, Any]], str]) -> list[Finding]:
    """Asks the edge, and has it answer a prompt if it has measured nothing yet.

    `foresee` says what drafting gives under conditions as `stats` tells them. Raises BadRequest for a cloud.
    """
    status = client.call("status")
    if status["role"] != "edge":
        raise BadRequest("`ecdctl doctor` examines an edge, and this is a cloud; name an edge's --socket")
    findings = [edge_found(status), link_found(status["link"])]
    if findings[-1].level is Level.FAILED:
        return findings
    findings.append(rtt_found(status["link"]))
    findings.append(certificate_found(status["link"]["certificate_expires"], time.time()))
    findings.append(clock_found(_clocks_apart_s(client)))
    conditions = client.call("stats")["conditions"]
    if _unmeasured(conditions):
        client.call("run", **MEASURE)
        conditions = client.call("stats")["conditions"]
    findings.append(speeds_found(conditions))
    if findings[-1].level is Level.OK:
        findings.append(Finding(Level.OK, "to expect", foresee(conditions)))
    return findings


def edge_found(status: Mapping[str, Any]) -> Finding:
    """Whether it takes prompts."""
    if status["state"] != "serving":
        todo = "it ends when its answers are complete; start it again"
        return Finding(Level.FAILED, "edge", f"is {status['state']}", todo)
    return Finding(Level.OK, "edge", f"serving with {status['draft_model']}")


def link_found(link: Mapping[str, Any]) -> Finding:
    """Whether there is a link; a cloud makes none with an edge of another tokenizer, token or version."""
    if link["refused"]:
        todo = (
            "the cloud will not have this edge: where the tokenizer or vocabulary differs, give the edge a "
            "draft of the target's family; where the token is wrong, set the cloud's; for a version, update "
            "one end"
        )
        return Finding(Level.FAILED, "link", f"{link['cloud']}: {link['reason']}", todo)
    if link["state"] != "connected":
        todo = "see that the cloud runs and listens there, and that the way to it (tunnel, firewall) is open"
        return Finding(Level.FAILED, "link", f"{link['cloud']}: {link['reason'] or link['state']}", todo)
    if link["draining"]:
        return Finding(Level.WARNING, "link", "the cloud is draining", "new prompts wait for the next one")
    return Finding(Level.OK, "link", f"connected to {link['cloud']}; tokenizers and versions match")


def rtt_found(link: Mapping[str, Any]) -> Finding:
    """How far the cloud is, and how steady the link."""
    rtt_ms, varies_ms = link["rtt_ms"], link["rtt_variation_ms"]
    if rtt_ms is None:
        return Finding(Level.WARNING, "round trip", "not measured yet", "ask again in some seconds")
    found = f"{rtt_ms:.1f} ms, varying by {varies_ms:.1f} ms"
    if varies_ms > max(UNSTEADY_MS, UNSTEADY_SHARE * rtt_ms):
        todo = "something on the way queues or loses packets; text will come in bursts"
        return Finding(Level.WARNING, "round trip", found, todo)
    return Finding(Level.OK, "round trip", found)


def certificate_found(expires: float | None, now: float) -> Finding:
    """How long the cloud's certificate is still good; times in seconds since 1970."""
    if expires is None:
        return Finding(Level.OK, "TLS", "off; the cloud is on this machine, or `insecure` is set")
    days = (expires - now) / 86400
    if days < 0:
        todo = "renew it and send the cloud SIGHUP: no new link can be made"
        return Finding(Level.FAILED, "TLS", f"the cloud's certificate expired {-days:.0f} days ago", todo)
    found = f"the cloud's certificate is good for {days:.0f} days"
    if days < CERTIFICATE_DAYS:
        return Finding(Level.WARNING, "TLS", found, "renew it and send the cloud SIGHUP")
    return Finding(Level.OK, "TLS", found)


def clock_found(apart_s: float | None) -> Finding:
    """Whether both clocks tell the same time."""
    if apart_s is None:
        return Finding(Level.WARNING, "clock", "the cloud does not tell its time", "update the cloud")
    found = f"{abs(apart_s):.1f} s {'ahead of' if apart_s > 0 else 'behind'} the cloud's"
    if abs(apart_s) > CLOCKS_APART_S:
        todo = "set both by NTP (timedatectl set-ntp true): certificates and logs go by them"
        return Finding(Level.WARNING, "clock", found, todo)
    return Finding(Level.OK, "clock", "the cloud's, within 2 s")


def speeds_found(conditions: Mapping[str, Any]) -> Finding:
    """What a guess and a step take, and how often guesses are right."""
    if missing := _unmeasured(conditions):
        todo = "ask the edge some prompts with drafting on, and examine it again"
        return Finding(Level.WARNING, "speeds", f"not measured yet: {', '.join(missing)}", todo)
    return Finding(
        Level.OK,
        "speeds",
        f"{conditions['draft_ms']:.1f} ms a guess, {conditions['step_ms']:.1f} ms a target step, each hint "
        f"in it {conditions['slope']:.1%} more, {conditions['acceptance']:.0%} of guesses right",
    )


def _unmeasured(conditions: Mapping[str, Any]) -> list[str]:
    return [name for name in MEASURED if conditions.get(name) is None]


def _clocks_apart_s(client: BlockingClient) -> float | None:
    """How far this machine's clock, which is the edge's, is ahead; None if the cloud does not tell.

    What the cloud said last may be seconds old, so the next is waited for: that was half a round trip ago.
    """
    before, give_up = _cloud_time(client), time.monotonic() + PONG_S
    while time.monotonic() < give_up:
        link = client.call("status")["link"]
        told = _time_in(link["cloud_load"])
        if told is not None and told != before:
            return time.time() - (told + (link["rtt_ms"] or 0.0) / 2000)
        time.sleep(LOOK_S)
    return None


def _cloud_time(client: BlockingClient) -> float | None:
    return _time_in(client.call("status")["link"]["cloud_load"])


def _time_in(load: Mapping[str, Any]) -> float | None:
    """What a cloud says, which may be nonsense: seconds since 1970."""
    match load.get("time"):
        case int() | float() as told if 0 <= told < 1e11:
            return float(told)
        case _:
            return None
