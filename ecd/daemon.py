"""What both daemons have in common: the event loop, signals, logging, background tasks and their end.

SIGTERM drains (running answers finish, nothing new starts), SIGINT stops, a second signal ends at once.
SIGHUP has certificates and tokens read again.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

import uvloop

from ecd import __version__
from ecd.config import Daemon
from ecd.logs import set_up_logs
from ecd.notify import Notifier
from ecd.prompt import Tokenizer
from ecd.wire.connection import Role, Settings
from ecd.wire.fingerprint import Fingerprint

log = logging.getLogger(__name__)

EXIT_SECOND_SIGNAL = 130
# What a daemon keeps, its ring of events above all, is looked through for cycles whenever Python collects the
# oldest generation: up to 40 ms in which no token is told. It collects less often, and not what load() made.
GC_THRESHOLDS = 50_000, 10, 10

Loaded = TypeVar("Loaded")


class Model(Tokenizer, Protocol):
    """What a daemon needs to know of its model, whatever engine runs it: the vocabulary.

    `eog`: ids that end a text. `context_train`: tokens that the model was made for.
    """

    n_vocab: int
    eog: frozenset[int]
    context_train: int

    def fingerprint(self) -> Fingerprint:
        """What the model at the other end must share so that token ids mean the same."""
        ...


class Lifecycle:
    """Whether the daemon should end (`ending`), and whether that may take its time (`draining`).

    `reload`: SIGHUP came; who reads files again clears it. `notifier` tells the service manager.
    """

    def __init__(self, notifier: Notifier) -> None:
        self.notifier = notifier
        self.ending = asyncio.Event()
        self.reload = asyncio.Event()
        self.draining = False

    def on_signal(self, *, drain: bool) -> None:
        """Asks the daemon to end; the second time, ends the process at once."""
        if self.ending.is_set():
            log.warning("second signal: ending at once")
            os._exit(EXIT_SECOND_SIGNAL)
        self.draining = drain
        self.ending.set()

    def on_drained(self) -> None:
        """A drain that was asked for over the control socket is through: nothing is left to wait for."""
        self.ending.set()


def run_daemon(
    config: Daemon,
    load: Callable[[], Loaded],
    serve: Callable[[Loaded, Lifecycle], Coroutine[Any, Any, None]],
) -> None:
    """Loads the engine, then serves on uvloop with signals wired to a lifecycle."""
    set_up_logs(config.log_level, config.log_format)
    for warning in config.warnings():
        log.warning("insecure: %s", warning)
    # What SIGHUP has read again is read after the model in any case; nothing is to end because of it.
    signal.signal(signal.SIGHUP, lambda *_: None)
    # Before the other signals are handled, so that until then they end the process as usual.
    log.info("loading %s; a model of the catalogue is fetched first if it is not here", config.model)
    notifier = Notifier.from_environment(os.environ)
    notifier.tell(STATUS=f"loading {config.model}")
    engine = load()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)

    async def main() -> None:
        life = Lifecycle(notifier)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, lambda: life.on_signal(drain=True))
        loop.add_signal_handler(signal.SIGINT, lambda: life.on_signal(drain=False))
        loop.add_signal_handler(signal.SIGHUP, life.reload.set)
        await serve(engine, life)

    uvloop.run(main())


def link_settings(role: Role, config: Daemon, model: Model, limits: dict[str, int]) -> Settings:
    """One end's side of the negotiation, from its configuration and its model."""
    return Settings(
        role=role,
        agent=f"ecd/{__version__}",
        fingerprint=model.fingerprint(),
        limits=limits,
        model={"name": Path(config.model).name, "context_train": model.context_train},
        ping_interval_s=config.keepalive.ping_interval_s,
        silence_s=config.keepalive.silence_s,
        handshake_s=config.keepalive.handshake_s,
    )


async def until_end(life: Lifecycle, drain: Callable[[], Awaitable[None]], drain_s: float) -> None:
    """The daemon is ready. Returns when it should stop, after a drain of up to `drain_s` if asked for."""
    life.notifier.tell(READY="1")
    await life.ending.wait()
    life.notifier.tell(STOPPING="1", STATUS="draining" if life.draining else "stopping")
    if life.draining:
        log.info("draining: running sessions have %g s to finish", drain_s)
        try:
            async with asyncio.timeout(drain_s):
                await drain()
        except TimeoutError:
            log.warning("not drained within %g s; stopping anyway", drain_s)
    log.info("stopping")


@contextlib.asynccontextmanager
async def background(*jobs: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Runs jobs while the context lasts; one that fails ends the daemon, since none of them ever returns."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(job()) for job in jobs]
            yield
            for task in tasks:
                task.cancel()
    except ExceptionGroup as failures:
        # The first is the cause; what follows came of the others being cancelled.
        raise failures.exceptions[0] from None
