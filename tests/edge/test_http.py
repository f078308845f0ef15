"""When an edge serves HTTP, and who is told if it cannot."""

import logging
import socket
from typing import Any, cast

import pytest

from ecd.config import EdgeConfig, Http
from ecd.edge.http import gateway, serves_http
from ecd.edge.run_args import AnswerSettings
from ecd.edge.service import EdgeService
from ecd.errors import ConfigError, DaemonError
from tests.edge.gateway.instant_cloud import ByteModel, InstantCloud


def config(**settings: Any) -> EdgeConfig:
    return EdgeConfig(model="m", **settings)


def test_it_does_unless_told_otherwise() -> None:
    assert serves_http(config())
    assert not serves_http(config(http=None))
    assert not serves_http(config(http=False))


def test_without_the_extra_only_who_asked_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecd.edge.http.LIBRARIES", ("starlette", "no_such_library"))
    assert not serves_http(config())
    assert not serves_http(config(http=None))
    with pytest.raises(ConfigError, match=r"no_such_library is not installed; `pip install 'ecd\[http\]'`"):
        serves_http(config(http={"listen": "127.0.0.1:0"}))


async def served(settings: EdgeConfig, service: EdgeService) -> list[str]:
    async with gateway(settings, service, ByteModel(), AnswerSettings()) as urls:
        return urls


async def test_an_edge_that_was_not_asked_goes_on_without_its_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = InstantCloud().service
    with socket.create_server(("127.0.0.1", 0)) as taken:
        http = Http(listen=f"127.0.0.1:{taken.getsockname()[1]}")
        asked = config(http=http)
        default = cast(EdgeConfig, EdgeConfig.model_construct({"model"}, model="m", http=http))
        with caplog.at_level(logging.WARNING):
            assert await served(default, service) == []
        assert "no HTTP: cannot listen on 127.0.0.1" in caplog.text
        with pytest.raises(DaemonError, match=r"cannot listen on 127\.0\.0\.1"):
            await served(asked, service)
    assert await served(asked, service) == [f"http://{http.listen}"]
