"""Whether the edge serves HTTP, and the gateway that does if so.

The gateway's libraries come with the extra `ecd[http]`. An edge without them serves no HTTP, and says so only
to those who asked for it; likewise when the default address is taken.
"""

import contextlib
import importlib.util
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from ecd.config import EdgeConfig
from ecd.daemon import Model
from ecd.edge.run_args import AnswerSettings
from ecd.edge.service import EdgeService
from ecd.errors import ConfigError, DaemonError

log = logging.getLogger(__name__)

LIBRARIES = ("starlette", "uvicorn", "prometheus_client")


def serves_http(config: EdgeConfig) -> bool:
    """Whether there will be HTTP. Raises ConfigError when it was asked for and the extra is missing."""
    if config.http is None:
        return False
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing and "http" in config.model_fields_set:
        raise ConfigError(
            f"http is set and {', '.join(missing)} is not installed; "
            "`pip install 'ecd[http]'`, or set `http: null`"
        )
    return not missing


@contextlib.asynccontextmanager
async def gateway(
    config: EdgeConfig,
    service: EdgeService,
    model: Model,
    settings: AnswerSettings,
    around: Callable[[Any], Any] = lambda app: app,
) -> AsyncIterator[list[str]]:
    """Serves HTTP, if at all, while the context lasts; gives the URLs. Raises ConfigError, DaemonError.

    `around` is put around the application.
    """
    async with contextlib.AsyncExitStack() as stack:
        urls: list[str] = []
        if serves_http(config):
            assert config.http is not None
            # Not above: they are not installed everywhere.
            from ecd.edge.gateway.app import Gateway
            from ecd.http_server import http_server

            app = around(
                Gateway(service, model, settings, config.http, draft_model=config.model).application()
            )
            try:
                urls = await stack.enter_async_context(
                    http_server(app, config.http.listen, config.http.socket)
                )
            except DaemonError as e:
                if "http" in config.model_fields_set:
                    raise
                log.warning("no HTTP: %s", e)
        yield urls
