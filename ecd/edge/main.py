"""`ecd edge`: puts the drafter, the uplink and the service together and runs them."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ecd.addresses import split_address
from ecd.config import ConfidenceConfig, EdgeConfig
from ecd.control import control_socket
from ecd.daemon import Lifecycle, Model, background, link_settings, run_daemon, until_end
from ecd.edge.acceptance import Acceptance
from ecd.edge.calls import EdgeCalls
from ecd.edge.combined_drafter import CombinedDrafter
from ecd.edge.confidence import Confidence, Strategy
from ecd.edge.drafter import Drafter
from ecd.edge.handing import Handing
from ecd.edge.http import gateway, serves_http
from ecd.edge.lookup_drafter import LookupDrafter
from ecd.edge.meter import Meter
from ecd.edge.page_holder import PageHolder
from ecd.edge.run_args import AnswerSettings
from ecd.edge.service import EdgeService
from ecd.edge.taking import Taking, handover, showing
from ecd.edge.telemetry import check_spans, spans
from ecd.edge.uplink import Backoff
from ecd.edge.uplinks import Place, Uplinks
from ecd.pages import Encoding
from ecd.trust.tls import edge_context
from ecd.wire.connection import COMMIT, PAGES, Role

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
        kv_cache=config.kv_cache,
        confidence=confidence_of(config.confidence),
    )
    return model, drafter


def confidence_of(config: ConfidenceConfig) -> Confidence:
    """The strategy of the settings."""
    weights = {Strategy(name): weight for name, weight in config.weights.items()}
    return Confidence(Strategy(config.strategy), config.temperature, config.top_k, weights)


def check_installed(config: EdgeConfig) -> None:
    """Raises ConfigError for a setting whose libraries are not installed; it says which extra has them."""
    serves_http(config)
    check_spans(config)


def run_edge(config: EdgeConfig, load: Callable[[EdgeConfig], tuple[Model, Drafter]] = load_llama) -> None:
    """`ecd edge`, from its settings to its end; `load` makes the engine.

    Raises EcdError when it cannot start.
    """
    check_installed(config)
    if config.tls is not None:
        # Here, so that a file that cannot be used is told before a model is loaded.
        edge_context(config.tls)
    run_daemon(config, lambda: load(config), lambda engine, life: _serve(config, *engine, life))


def places_of(config: EdgeConfig) -> list[Place]:
    """Where the clouds of the settings are."""
    if not config.clouds:
        return [Place(*split_address(config.cloud))]
    return [Place(*split_address(each.address), each.weight, each=True) for each in config.clouds]


async def _serve(config: EdgeConfig, model: Model, drafter: Drafter, life: Lifecycle) -> None:
    acceptance, meter = Acceptance(), Meter()
    pages = drafter if isinstance(drafter, PageHolder) else None
    encoding = None if config.assist is None else Encoding(f"{config.assist}+zstd")
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
        ends=model.eog,
        link_wait_s=config.link_wait_s,
        pages=pages,
        encoding=encoding,
        link_grace_s=config.link_grace_s,
    )
    backoff = Backoff(config.reconnect.first_s, config.reconnect.longest_s)
    link = replace(link_settings(Role.EDGE, config, model, limits={}), token=config.token)
    if pages is not None:
        link = replace(link, features=(*link.features, PAGES))
    uplinks = Uplinks(places_of(config), link, backoff, service.on_event, lambda: service.bound, config.tls)
    service.attach(uplinks)
    settings = AnswerSettings.of(config)
    handing = Handing(service, link, insecure=config.insecure)
    limits = {"max_streams": config.sessions, "max_context": config.context_tokens}
    taking_link = replace(link, role=Role.CLOUD, limits=limits, identify=showing(config.token))
    # Tokens of an answer that was handed over are this edge's and its cloud's to commit.
    taking_link = replace(taking_link, features=tuple(f for f in link.features if f != COMMIT))
    taking = Taking(service, taking_link, settings)
    calls = EdgeCalls(service, handing, model, settings, model_name=config.model, on_drained=life.on_drained)
    beat = partial(life.notifier.beat_forever, service.drafting.turn, service.summary)
    async with (
        background(service.drafting.forever, service.tend_forever, uplinks.keep, beat),
        spans(config, service) as around,
        gateway(config, service, model, settings, around) as urls,
        control_socket(config.socket, calls.handlers()),
        handover(config, taking),
    ):
        http = ", ".join(urls) or "none"
        clouds = ", ".join(each.address for each in config.clouds) or config.cloud
        log.info("ready: %s for %s, control on %s, HTTP %s", config.model, clouds, config.socket, http)
        await until_end(life, service.drain, config.drain_s)
        service.stop()
        # One turn of the loop for the last answers to reach their clients.
        await asyncio.sleep(0)
    service.close()
