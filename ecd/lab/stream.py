"""Making the requests of a streaming benchmark, one at a time, and measuring them at the client.

Owns what is asked and when the clock is read. Knows neither statistics nor how the daemons were started.

One cloud serves all modes and learns one curve of what steps cost. It is the machine's, and only under ecd
does the cloud choose by it: in cloud there are no hints, in rounds and wait all are verified. So it cannot
favour those; it spares ecd some of the steps with which it would find out for itself, which are worth less
than 0.2 % of its rate in a simulation.
"""

import contextlib
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ecd.client import BlockingClient
from ecd.errors import DaemonError, EcdError
from ecd.lab.pair import COSTS, Pair
from ecd.lab.rig import Rig, running_rig
from ecd.lab.runs import (
    Asking,
    Campaign,
    Cell,
    Measured,
    Mode,
    Objective,
    Reception,
    Run,
    Variant,
    WarmUp,
    schedule,
)
from ecd.lab.system import DaemonProcess

WARM_UP_K = 4
WARM_UP_TOKENS = 32
READ_TOKENS = 4  # enough that the draft model is asked, and reads the prompt too
LOAD_WAIT_S = 6.0  # a cloud tells its step times with the answers to PINGs, which go every 2 s
POLL_S = 0.1


def measure(
    pair: Pair,
    campaign: Campaign,
    progress: Callable[[Sequence[Cell]], AbstractContextManager[Iterable[Cell]]],
) -> Measured:
    """Starts the daemons, makes every request, one after the other, and stops the daemons.

    `progress` shows how far it is, like click.progressbar. A request that fails is kept as such; Ctrl-C
    or SIGTERM ends the measurement and keeps what there is. Raises EcdError when the daemons do not start or
    a warm-up fails.
    """
    runs: list[Run] = []
    interrupted = False
    with (
        tempfile.TemporaryDirectory(prefix="ecd-bench-") as folder,
        running_rig(Path(folder), pair.daemons, campaign) as rig,
    ):
        warm = _warm_up(rig, pair.askings, campaign.max_tokens)
        variants = {rtt_ms: list(_variants(campaign, rtt_ms, pair, warm)) for rtt_ms in campaign.rtts_ms}
        kinds = [asking.kind for asking in pair.askings]
        cells = schedule(variants, kinds, campaign.repeats, campaign.seed)
        # Also where a shell has started this in the background, which makes it deaf to Ctrl-C.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            with progress(cells) as shown:
                read = None
                for cell in shown:
                    asking = pair.askings[cell.prompt]
                    if campaign.cached and read != (cell.prompt, cell.repeat):
                        _read(rig, asking)
                        read = cell.prompt, cell.repeat
                    runs.append(_ask(rig, cell, asking, campaign))
        except KeyboardInterrupt:
            interrupted = True
        conditions = {rtt_ms: _conditions(edge) for rtt_ms, edge in rig.edges.items()}
    return Measured(tuple(runs), len(cells), interrupted, conditions)


def _settled_conditions(edge: DaemonProcess) -> dict[str, Any]:
    """The edge's conditions, once it has heard from the cloud what a step costs; or what there is by then.

    What pacing learns besides is not waited for: a warm-up's requests have a fixed pace and teach nothing.
    """
    deadline_s = time.monotonic() + LOAD_WAIT_S
    while True:
        conditions = _conditions(edge)
        missing = any(conditions.get(cost) is None for cost in COSTS)
        if not missing or time.monotonic() > deadline_s:
            return conditions
        time.sleep(POLL_S)


def _variants(campaign: Campaign, rtt_ms: float, pair: Pair, warm: WarmUp) -> Iterator[Variant]:
    for mode in campaign.modes:
        if mode is Mode.ROUNDS:
            for k in campaign.ks or (pair.best_k(rtt_ms, warm),):
                yield Variant(mode, k)
        else:
            yield Variant(mode)


def _conditions(edge: DaemonProcess) -> dict[str, Any]:
    try:
        return dict(edge.call("stats")["conditions"])
    except EcdError:
        return {}  # it is gone, and the runs say so


def _ask(rig: Rig, cell: Cell, asking: Asking, campaign: Campaign) -> Run:
    try:
        return _answered(rig, cell, asking, campaign.max_tokens, campaign.objective, kv_cache=campaign.cached)
    except (EcdError, OSError) as e:
        return Run(cell, error=str(e) or type(e).__name__)


def _read(rig: Rig, asking: Asking) -> None:
    """The cloud and the drafter of every edge read a prompt; what fails here fails again and is told then."""
    for rtt_ms in rig.edges:
        cell = Cell(Variant(Mode.ROUNDS, WARM_UP_K), rtt_ms, asking.kind, 0, 0)
        with contextlib.suppress(EcdError, OSError):
            _answered(rig, cell, asking, READ_TOKENS, "latency", kv_cache=True)


def _answered(
    rig: Rig, cell: Cell, asking: Asking, max_tokens: int, objective: Objective, *, kv_cache: bool
) -> Run:
    edge = rig.edges[cell.rtt_ms]
    before = edge.call("stats"), rig.cloud.call("stats")
    reception, result = Reception(), dict[str, Any]()
    with BlockingClient(edge.socket) as client:
        started_s = time.perf_counter()
        for event in client.stream(
            asking.prompt,
            temperature=asking.temperature,
            seed=asking.seed,
            max_tokens=max_tokens,
            **cell.variant.arguments(objective, kv_cache=kv_cache),
        ):
            match event["event"]:
                case "text":
                    reception.text(time.perf_counter() - started_s, len(event["ids"]))
                case "done":
                    result = event
    after = edge.call("stats"), rig.cloud.call("stats")
    if not reception.at_s:
        raise DaemonError("the answer had no text")
    stats = result["stats"]
    return Run(
        cell,
        ids=tuple(result["token_ids"]),
        **reception.numbers(),
        forwards=stats["target_forwards"],
        drafted=stats["drafted"],
        verified=stats["verified"],
        accepted=stats["accepted"],
        settled=stats["settled"],
        right=stats["right"],
        bytes_up=stats["wire_bytes_up"],
        bytes_down=stats["wire_bytes_down"],
        packet_bytes=_packet_bytes(after[0]) - _packet_bytes(before[0]),
        cpu_edge_s=after[0]["cpu_s"] - before[0]["cpu_s"],
        cpu_cloud_s=after[1]["cpu_s"] - before[1]["cpu_s"],
    )


def _packet_bytes(stats: dict[str, Any]) -> int:
    return int(stats["packet_bytes_in"] + stats["packet_bytes_out"])


def _warm_up(rig: Rig, askings: Sequence[Asking], max_tokens: int) -> WarmUp:
    """A short request to every edge, at the first one for each class of prompt, in rounds so that all draft.

    Raises EcdError if one fails: the rest would too.
    """
    first_of_kind = {asking.kind: asking for asking in reversed(askings)}
    of_first = list(first_of_kind.values())
    settled = right = 0
    conditions: dict[str, Any] = {}
    for number, (rtt_ms, edge) in enumerate(rig.edges.items()):
        for asking in of_first[: None if number == 0 else 1]:
            cell = Cell(Variant(Mode.ROUNDS, WARM_UP_K), rtt_ms, asking.kind, 0, 0)
            run = _answered(rig, cell, asking, min(max_tokens, WARM_UP_TOKENS), "latency", kv_cache=False)
            settled += run.settled
            right += run.right
        if number == 0:
            conditions = _settled_conditions(edge)
    return WarmUp(right / settled if settled else None, conditions)
