"""`ecd edge`: puts the drafter, the uplink and the service together and runs them."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ecd.config import EdgeConfig, split_address
from ecd.control import control_socket
from ecd.daemon import Lifecycle, Model, background, link_settings, run_daemon, until_end
from ecd.edge.acceptance import Acceptance
from ecd.edge.calls import EdgeCalls
from ecd.edge.combined_drafter import CombinedDrafter
from ecd.edge.drafter import Drafter
from ecd.edge.http import gateway, serves_http
from ecd.edge.lookup_drafter import LookupDrafter
from ecd.edge.meter import Meter
from ecd.edge.pacing import Objective
from ecd.edge.run_args import PaceSettings
from ecd.edge.service import EdgeService
from ecd.edge.telemetry import check_spans, spans
from ecd.edge.uplink import Backoff, Uplink
from ecd.trust.tls import edge_context
from ecd.wire.connection import Role

log = logging.getLogger(__name__)


def load_llama(config: EdgeConfig) -> tuple[Model, Drafter]:
    """The draft model on llama.cpp. Raises ModelError."""
    # Not above: an edge with another engine does without llama.cpp's library.
    from ecd.edge.llama_drafter import LlamaDrafter
    from ecd.engine.llama import LlamaModel
    from ecd.models.forms import gguf_file

    model = LlamaModel(gguf_file(config.model))
    drafter = LlamaDrafter(
        model,
        slots=config.sessions,
        context_tokens=config.context_tokens,
        threads=config.threads,
    )
    return model, drafter


def run_edge(config: EdgeConfig, load: Callable[[EdgeConfig], tuple[Model, Drafter]] = load_llama) -> None:
    """`ecd edge`, from its settings to its end; `load` makes the engine.

    Raises EcdError when it cannot start.
    """
    serves_http(config)
    check_spans(config)
    if config.tls is not None:
        # Here, so that a file that cannot be used is told before a model is loaded.
        edge_context(config.tls)
    run_daemon(config, lambda: load(config), lambda engine, life: _serve(config, *engine, life))


async def _serve(config: EdgeConfig, model: Model, drafter: Drafter, life: Lifecycle) -> None:
    acceptance, meter = Acceptance(), Meter()
    if config.lookup:
        lookup = LookupDrafter(
            slots=drafter.slots, branches=drafter.branches, slot_tokens=drafter.slot_tokens
        )
        drafter = CombinedDrafter(drafter, lookup, acceptance, meter)
    service = EdgeService(
        drafter,
        acceptance,
        meter,
        n_vocab=model.n_vocab,
        piece=model.piece,
        link_wait_s=config.link_wait_s,
    )
    host, port = split_address(config.cloud)
    backoff = Backoff(config.reconnect.first_s, config.reconnect.longest_s)
    link = replace(link_settings(Role.EDGE, config, model, limits={}), token=config.token)
    uplink = Uplink(host, port, link, backoff, service.on_event, config.tls)
    service.attach(uplink)
    settings = PaceSettings(
        Objective(config.objective), config.ahead_tokens, config.patience_ms, config.hint_tokens
    )
    calls = EdgeCalls(service, model, settings, model_name=config.model, on_drained=life.on_drained)
    beat = partial(life.notifier.beat_forever, service.drafter_turn, service.summary)
    async with (
        background(service.draft_forever, service.tend_forever, uplink.keep, beat),
        spans(config, service) as around,
        gateway(config, service, model, settings, around) as urls,
        control_socket(config.socket, calls.handlers()),
    ):
        http = ", ".join(urls) or "none"
        log.info("ready: %s for %s, control on %s, HTTP %s", config.model, config.cloud, config.socket, http)
        await until_end(life, service.drain, config.drain_s)
        service.stop()
        # One turn of the loop for the last answers to reach their clients.
        await asyncio.sleep(0)
    service.close()
