"""What settings leave open: to other machines, which is refused or with `insecure` warned of at each start;
to others on this one, which is warned of.

Owns what counts as a danger, and what is said of it: each a sentence with what to do instead. Pure.
"""

import stat
from collections.abc import Sequence
from pathlib import Path

from ecd.addresses import is_loopback, split_address
from ecd.trust.settings import CloudTls, EdgeTls

# What others than its owner may not do with a file that holds secrets; the group may read it.
FORBIDDEN_MODE = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO


def refuse(dangers: Sequence[str], insecure: bool) -> None:
    """Raises ValueError with the first danger, unless they are allowed."""
    if dangers and not insecure:
        raise ValueError(f"{dangers[0]}, or set `insecure: true` if the network is trusted")


def cloud_dangers(listen: str, tls: CloudTls | None, tokens: Path | None, metrics: str | None) -> list[str]:
    """Other machines can come in and what keeps them honest is not set, or they can read the metrics."""
    found = []
    if _elsewhere(listen):
        reached = f"{listen} can be reached from other machines and"
        if tls is None:
            todo = "set `tls` with `certificate` and `key`, or listen on loopback"
            found.append(f"{reached} the link is not encrypted (no `tls`); {todo}")
        if tokens is None:
            todo = "set `tokens` to a file that `ecd token create` makes, or listen on loopback"
            found.append(f"{reached} edges need no token (no `tokens`); {todo}")
    if metrics and _elsewhere(metrics):
        found.append(f"metrics {metrics} can be read from other machines, by anybody; listen on 127.0.0.1")
    return found


def edge_dangers(
    clouds: Sequence[str], tls: EdgeTls | None, token: str | None, handover: str | None
) -> list[str]:
    """What is sent to another machine can be read, or anybody could send it; or a hand-over can."""
    found = []
    for address in filter(_elsewhere, clouds):
        there = f"the cloud {address} is another machine and"
        if tls is None:
            found.append(f"{there} the link is not encrypted (no `tls`); leave `insecure` out")
        if token is None:
            todo = "set `token` to what `ecd token create` at the cloud printed"
            found.append(f"{there} the edge shows no token (no `token`); {todo}")
    if handover is not None:
        found += handover_dangers("handover", split_address(handover)[0])
    return found


def handover_dangers(setting: str, host: str) -> list[str]:
    """Of a hand-over at that host, which is plain TCP."""
    if is_loopback(host):
        return []
    return [
        f"{setting} {host} is not this machine and what is handed over is not encrypted; "
        "go through a tunnel on loopback"
    ]


def open_handover(handover: str, token: str | None) -> list[str]:
    """Whoever reaches that address may have answers written here: on loopback every user of the machine."""
    if token is not None:
        return []
    return [
        f"whoever reaches handover {handover}, be it another user of this machine, may hand answers over "
        "(no `token`); set the same `token` at these edges, or leave `handover` out for the Unix socket"
    ]


def open_file(file: Path, mode: int, secrets: Sequence[str]) -> list[str]:
    """Settings with secrets, by their names, in a file of that mode."""
    if not secrets or not mode & FORBIDDEN_MODE:
        return []
    return [
        f"{file} holds {' and '.join(f'`{name}`' for name in secrets)} and others than its owner could read "
        f"or change it (mode {stat.S_IMODE(mode):04o}); `chmod 600 {file}`"
    ]


def _elsewhere(address: str) -> bool:
    return not is_loopback(split_address(address)[0])
