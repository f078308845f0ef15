"""What a request's head must be like before anything else looks at it: its lengths, and the host it names.

A page on the web can have its own name resolve to this machine (DNS rebinding). A browser then takes what it
asks here for the page's own business and lets it read the answers; but the Host header has the page's name.
"""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ecd.addresses import is_loopback, split_address
from ecd.config import Http
from ecd.edge.gateway.errors import error_object

MAX_HEAD_BYTES = 16 << 10


class HeadCheck:
    """Answers 431 to headers that are too long, 421 to a wrong host, 400 to two lengths; ASGI middleware.

    `hosts`: names allowed besides those of loopback, in lower case; None where any is. What comes through a
    Unix socket may name any host: browsers cannot reach it.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None):
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands on to the application, or answers in its place."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        head_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        if head_bytes + len(scope["raw_path"]) + len(scope["query_string"]) > MAX_HEAD_BYTES:
            return JSONResponse(error_object(431, f"the headers are longer than {MAX_HEAD_BYTES} bytes"), 431)
        headers = Headers(scope=scope)
        if "transfer-encoding" in headers and "content-length" in headers:
            # The parser goes by the chunks, but a proxy in front may have gone by the length and take what
            # follows for another client's request (RFC 9112, section 6.1).
            message = "a request has either content-length or transfer-encoding"
            return JSONResponse(error_object(400, message), 400, {"connection": "close"})
        host = host_of(headers.get("host", ""))
        if self._hosts is None or _through_unix_socket(scope) or is_loopback(host) or host in self._hosts:
            return None
        message = (
            f"this server is not {host!r:.80}; if that name is meant for it, add it to http.allowed_hosts"
        )
        return JSONResponse(error_object(421, message, code="wrong_host"), 421)


def hosts_to_name(http: Http) -> Collection[str] | None:
    """The `hosts` for these settings: any where other machines can reach it, for there keys are required."""
    if http.listen is None or not is_loopback(split_address(http.listen)[0]):
        return None
    return frozenset(host.strip("[]").lower().removesuffix(".") for host in http.allowed_hosts)


def host_of(header: str) -> str:
    """The host in a Host header, in lower case.

    Without the port, which may be empty, an IPv6 address without its brackets, a name without its last dot.
    """
    host, colon, port = header.rpartition(":")
    named = host if colon and (port.isdigit() or not port) else header
    return named.strip("[]").lower().removesuffix(".")


def _through_unix_socket(scope: Scope) -> bool:
    # TCP has a host and a port. Of a Unix socket uvicorn tells the path without a port, or (0.34) nothing.
    server = scope["server"]
    return server is None or server[1] is None
