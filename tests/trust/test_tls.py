"""TLS between an uplink and a listener on real sockets: who is refused, and what operators read of it."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from authority import Authority, Pair
from cryptography import x509

from ecd.cloud.admission import Admission
from ecd.cloud.listener import Listener
from ecd.edge.uplink import Backoff, LinkState, Uplink
from ecd.errors import ConfigError
from ecd.trust.settings import CloudTls, EdgeTls
from ecd.trust.tls import cloud_context, edge_context
from ecd.wire.connection import Closed, Connection, Event, Role, Settings
from ecd.wire.fingerprint import Fingerprint
from ecd.wire.frames import encode_frame
from ecd.wire.link import Link

FINGERPRINT = Fingerprint(1000, "aa", {"bos": 1}, "bpe", "bb")
LIMIT_S = 10.0
Scene = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Scene], None]:
    """Runs a test's coroutine on one of the loops."""

    def runner(test: Scene) -> None:
        async def limited() -> None:
            async with asyncio.timeout(LIMIT_S):
                await test()

        with asyncio.Runner(loop_factory=request.param) as loop:
            loop.run(limited())

    return runner


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Pair:
    """The cloud's own certificate, good for this machine."""
    return authority.sign("cloud")


class Cloud:
    """A listener whose links do nothing but shake hands."""

    def __init__(self, tls: CloudTls | None, handshake_s: float = 5.0):
        self.links: list[Link] = []
        self.closed: list[Closed] = []
        self.address = ""
        self.listener = Listener(self._link, Admission(64, 64), tls, handshake_s)

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def _link(self) -> Link:
        settings = Settings(Role.CLOUD, "cloud under test", FINGERPRINT)
        self.links.append(Link(Connection(settings, asyncio.get_running_loop().time()), self._on_event))
        return self.links[-1]

    def _on_event(self, link: Link, event: Event) -> None:
        if isinstance(event, Closed):
            self.closed.append(event)


@asynccontextmanager
async def running(cloud: Cloud) -> AsyncIterator[Cloud]:
    async with cloud.listener.listening("127.0.0.1", 0) as cloud.address:
        yield cloud


@asynccontextmanager
async def connecting(cloud: Cloud, tls: EdgeTls | None, host: str = "127.0.0.1") -> AsyncIterator[Uplink]:
    """An uplink that has made its first attempt."""
    settings = Settings(Role.EDGE, "edge under test", FINGERPRINT)
    uplink = Uplink(host, cloud.port, settings, Backoff(5, 5), lambda uplink, event: None, tls)
    untried = uplink.reason
    keeping = asyncio.create_task(uplink.keep())
    try:
        while uplink.reason == untried:
            await asyncio.sleep(0.005)
        yield uplink
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


def tls_of(pair: Pair, client_ca: Path | None = None) -> CloudTls:
    return CloudTls(certificate=pair.certificate, key=pair.key, client_ca=client_ca)


def encrypted_with(link: Link) -> tuple[str, bytes]:
    """The TLS version of a link, and the peer's certificate."""
    assert link._transport is not None
    ssl_object = link._transport.get_extra_info("ssl_object")
    return ssl_object.version(), ssl_object.getpeercert(binary_form=True)


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


def test_a_good_certificate_gives_a_link_over_tls_1_3(
    run: Callable[[Scene], None], authority: Authority, server: Pair
) -> None:
    async def talk() -> None:
        async with running(Cloud(tls_of(server))) as cloud:
            for host in ("127.0.0.1", "localhost"):
                async with connecting(cloud, EdgeTls(ca=authority.ca), host) as uplink:
                    assert (uplink.state, uplink.refused) == (LinkState.CONNECTED, None)
                    assert uplink.link is not None
                    assert encrypted_with(uplink.link) == ("TLSv1.3", der(server))

    run(talk)


def test_another_server_name_may_be_asked_for(run: Callable[[Scene], None], authority: Authority) -> None:
    pair = authority.sign("named", names=(x509.DNSName("cloud.example"),))

    async def talk() -> None:
        async with running(Cloud(tls_of(pair))) as cloud:
            tls = EdgeTls(ca=authority.ca, server_name="cloud.example")
            async with connecting(cloud, tls) as uplink:
                assert uplink.state is LinkState.CONNECTED

    run(talk)


@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        ({"end_days": -0.5}, "its certificate has expired; renew it and send the cloud SIGHUP"),
        ({"start_days": 0.5}, "not valid yet; compare the clocks"),
        ({"names": (x509.DNSName("other.example"),)}, "not for 127.0.0.1; set `tls.server_name`"),
    ],
)
def test_an_edge_refuses_a_certificate_that_proves_nothing(
    run: Callable[[Scene], None], authority: Authority, certificate: dict[str, Any], said: str
) -> None:
    pair = authority.sign("bad", **certificate)

    async def talk() -> None:
        async with (
            running(Cloud(tls_of(pair))) as cloud,
            connecting(cloud, EdgeTls(ca=authority.ca)) as uplink,
        ):
            assert said in uplink.reason
            # A prompt fails at once with this, and does not wait for a link.
            assert uplink.refused == uplink.reason
            assert uplink.link is None

    run(talk)


def test_an_edge_refuses_a_stranger_s_certificate_and_both_ends_say_so(
    run: Callable[[Scene], None], tmp_path: Path, server: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Authority(tmp_path, "stranger")

    async def talk() -> None:
        async with running(Cloud(tls_of(server))) as cloud:
            async with connecting(cloud, EdgeTls(ca=stranger.ca)) as uplink:
                assert "whom this edge does not trust" in uplink.reason
                assert "set `tls.ca`" in uplink.reason
                assert uplink.refused
            while not cloud.closed:
                await asyncio.sleep(0.005)
        assert cloud.listener.handshakes_failed == 1

    run(talk)
    assert "it may not trust this cloud's certificate" in caplog.text


def test_the_system_s_authorities_do_not_vouch_for_ours(run: Callable[[Scene], None], server: Pair) -> None:
    async def talk() -> None:
        async with running(Cloud(tls_of(server))) as cloud, connecting(cloud, EdgeTls()) as uplink:
            assert "whom this edge does not trust" in uplink.reason

    run(talk)


def test_a_cloud_that_demands_a_certificate_knows_its_edge(
    run: Callable[[Scene], None], authority: Authority, server: Pair
) -> None:
    edge = authority.sign("edge", names=())

    async def talk() -> None:
        async with running(Cloud(tls_of(server, authority.ca))) as cloud:
            tls = EdgeTls(ca=authority.ca, certificate=edge.certificate, key=edge.key)
            async with connecting(cloud, tls) as uplink:
                assert uplink.state is LinkState.CONNECTED
                assert encrypted_with(cloud.links[0])[1] == der(edge)

    run(talk)


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (None, "it showed no certificate; set `tls.certificate`"),
        ("expired", "its certificate has expired; give the edge a new one"),
        ("stranger's", "not signed by the CA of `tls.client_ca`"),
    ],
)
def test_a_cloud_that_demands_a_certificate_refuses_others(
    run: Callable[[Scene], None],
    authority: Authority,
    server: Pair,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    shown: str | None,
    said: str,
) -> None:
    signer = Authority(tmp_path, "stranger") if shown == "stranger's" else authority
    edge = signer.sign("edge", end_days=-0.5 if shown == "expired" else 30)
    own = {} if shown is None else {"certificate": edge.certificate, "key": edge.key}

    async def talk() -> None:
        async with running(Cloud(tls_of(server, authority.ca))) as cloud:
            async with connecting(cloud, EdgeTls(ca=authority.ca, **own)) as uplink:
                assert uplink.state is not LinkState.CONNECTED
                assert "`tls.certificate`" in uplink.reason
            assert cloud.listener.handshakes_failed == 1

    run(talk)
    assert said in caplog.text


def old(context: ssl.SSLContext) -> ssl.SSLContext:
    """As somebody would have it who takes the newer version away."""
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def test_a_cloud_speaks_nothing_older_than_tls_1_3(
    run: Callable[[Scene], None], authority: Authority, server: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk() -> None:
        async with running(Cloud(tls_of(server))) as cloud:
            with pytest.raises((ConnectionError, ssl.SSLError)):
                await asyncio.get_running_loop().create_connection(
                    asyncio.Protocol,
                    "127.0.0.1",
                    cloud.port,
                    ssl=old(edge_context(EdgeTls(ca=authority.ca))),
                    server_hostname="127.0.0.1",
                )
            while not cloud.closed:
                await asyncio.sleep(0.005)

    run(talk)
    assert "it offered no TLS 1.3, and nothing older is spoken here" in caplog.text


def test_an_edge_speaks_nothing_older_than_tls_1_3(
    run: Callable[[Scene], None],
    authority: Authority,
    server: Pair,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ecd.cloud.listener.cloud_context", lambda tls: old(cloud_context(tls)))

    async def talk() -> None:
        async with (
            running(Cloud(tls_of(server))) as cloud,
            connecting(cloud, EdgeTls(ca=authority.ca)) as uplink,
        ):
            assert "it may speak no TLS 1.3" in uplink.reason

    run(talk)


def test_a_plain_end_and_a_tls_end_say_what_to_set(
    run: Callable[[Scene], None], authority: Authority, server: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk() -> None:
        async with running(Cloud(None)) as cloud, connecting(cloud, EdgeTls(ca=authority.ca)) as uplink:
            assert "it speaks no TLS; set `tls` at the cloud" in uplink.reason
        async with running(Cloud(tls_of(server))) as cloud, connecting(cloud, None) as uplink:
            assert "it may demand TLS (`tls`) of this edge" in uplink.reason

    run(talk)
    assert "it speaks no TLS; set `tls` at the edge" in caplog.text


def test_a_certificate_is_replaced_under_connections_that_stay(
    run: Callable[[Scene], None], authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    first = authority.sign("cloud")

    async def talk() -> None:
        tls = EdgeTls(ca=authority.ca)
        async with running(Cloud(tls_of(first))) as cloud, connecting(cloud, tls) as before:
            was, now = der(first), der(authority.sign("cloud"))
            cloud.listener.reload()
            async with connecting(cloud, tls) as after:
                assert before.link is not None
                assert after.link is not None
                assert encrypted_with(before.link)[1] == was
                assert encrypted_with(after.link)[1] == now
                assert cloud.closed == []
            first.key.write_text("half a key")
            cloud.listener.reload()
            async with connecting(cloud, tls) as after:
                assert after.link is not None
                assert encrypted_with(after.link)[1] == now

    with caplog.at_level(logging.INFO):
        run(talk)
    assert "the certificate stays as it was: tls:" in caplog.text


def test_a_peer_is_held_back_over_tls_and_loses_nothing(
    run: Callable[[Scene], None], authority: Authority, server: Pair
) -> None:
    async def talk() -> None:
        tls = EdgeTls(ca=authority.ca)
        async with running(Cloud(tls_of(server))) as cloud, connecting(cloud, tls) as uplink:
            assert uplink.link is not None
            (link,) = cloud.links
            holding, asked = True, 0

            def wait_s(link: Link) -> float:
                nonlocal asked
                asked += 1
                return 0.001 if holding else 0.0

            link.wait_s = wait_s
            frames = link.connection.frames_in
            # Unknown types are ignored, and counted.
            unknown = encode_frame([99, 0, bytes(1000)])
            assert uplink.link._transport is not None
            for _ in range(2000):
                uplink.link._transport.write(unknown)
            while asked < 50:
                await asyncio.sleep(0.001)
            assert link.connection.frames_in <= frames + 2
            # What is read before it is held back is bounded, and the rest stays with the peer.
            assert link.held_bytes < 600_000
            holding = False
            while link.connection.frames_in < frames + 2000:
                await asyncio.sleep(0.001)
            assert cloud.closed == []

    run(talk)


def test_a_peer_that_never_finishes_the_tls_handshake_is_let_go(
    run: Callable[[Scene], None], server: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async def talk() -> None:
        async with running(Cloud(tls_of(server), handshake_s=0.2)) as cloud:
            with socket.create_connection(("127.0.0.1", cloud.port)) as sock:
                sock.setblocking(False)
                # The beginning of a ClientHello.
                await asyncio.get_running_loop().sock_sendall(sock, bytes.fromhex("16030100dc010000"))
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.get_running_loop().sock_recv(sock, 1000) == b""
            while not cloud.closed:
                await asyncio.sleep(0.005)

    run(talk)
    assert "a connection from 127.0.0.1 came to nothing" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda pair: pair.certificate.unlink(), "tls.certificate: cannot read .*No such file"),
        (lambda pair: pair.key.unlink(), "tls.key: cannot read .*No such file"),
        (lambda pair: pair.key.chmod(0o644), "tls.key: others .*chmod 600"),
        (lambda pair: pair.key.write_text("nonsense"), "are no PEM files"),
        (lambda pair: pair.certificate.write_text("nonsense"), "are no PEM files"),
    ],
)
def test_files_that_cannot_be_used_are_told(server: Pair, spoil: Callable[[Pair], object], said: str) -> None:
    spoil(server)
    with pytest.raises(ConfigError, match=said):
        cloud_context(tls_of(server))


def test_a_key_of_another_certificate_and_one_with_a_password_are_told(
    authority: Authority, server: Pair, tmp_path: Path
) -> None:
    other = authority.sign("other")
    with pytest.raises(ConfigError, match="is not its key"):
        cloud_context(tls_of(Pair(server.certificate, other.key)))
    with pytest.raises(ConfigError, match="is encrypted"):
        cloud_context(tls_of(authority.sign("locked", password=b"secret")))
    with pytest.raises(ConfigError, match=r"tls\.ca: .* is no PEM file"):
        edge_context(EdgeTls(ca=server.key))
    with pytest.raises(ConfigError, match=r"tls\.client_ca: cannot read"):
        cloud_context(tls_of(server, tmp_path / "nowhere"))
