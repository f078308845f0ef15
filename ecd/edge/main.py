"""`ecd edge`: puts the drafter, the uplink and the service together and runs them."""

import asyncio
import logging

from ecd.config import EdgeConfig, split_address
from ecd.control import control_socket
from ecd.daemon import Lifecycle, background, link_settings, run_daemon, until_end
from ecd.edge.calls import EdgeCalls
from ecd.edge.llama_drafter import LlamaDrafter
from ecd.edge.service import EdgeService
from ecd.edge.uplink import Backoff, Uplink
from ecd.engine.llama import LlamaModel
from ecd.wire.connection import Role

log = logging.getLogger(__name__)


def run_edge(config: EdgeConfig) -> None:
    """`ecd edge`, from its settings to its end. Raises EcdError when it cannot start."""
    run_daemon(config, lambda model, life: _serve(config, model, life))


async def _serve(config: EdgeConfig, model: LlamaModel, life: Lifecycle) -> None:
    drafter = LlamaDrafter(
        model,
        slots=config.sessions,
        context_tokens=config.context_tokens,
        threads=config.threads,
    )
    service = EdgeService(
        drafter,
        n_vocab=model.n_vocab,
        piece=model.piece,
        link_wait_s=config.link_wait_s,
    )
    host, port = split_address(config.cloud)
    backoff = Backoff(config.reconnect.first_s, config.reconnect.longest_s)
    uplink = Uplink(host, port, link_settings(Role.EDGE, config, model, limits={}), backoff, service.on_event)
    service.attach(uplink)
    calls = EdgeCalls(
        service,
        model,
        model_name=config.model,
        ahead=config.ahead_tokens,
        patience=config.patience_ms,
        on_drained=life.on_drained,
    )
    async with (
        background(service.draft_forever, service.tend_forever, uplink.keep),
        control_socket(config.socket, calls.handlers()),
    ):
        log.info("ready: %s for %s, control on %s", config.model, config.cloud, config.socket)
        await until_end(life, service.drain, config.drain_s)
        service.stop()
        # One turn of the loop for the last answers to reach their clients.
        await asyncio.sleep(0)
    service.close()
