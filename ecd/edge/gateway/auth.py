"""API keys: who may use the HTTP API."""

import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ecd.edge.gateway.errors import error_object

# For load balancers, what says that a key is wanted, and the page that asks for it.
OPEN_PATHS = ("/", "/health", "/ready", "/openapi.json")


class KeyCheck:
    """Lets requests through that show one of the keys as `Authorization: Bearer KEY`; ASGI middleware."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]):
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 in place of the application."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._shows_key(scope):
            body = error_object(
                401, "this server wants an API key: `Authorization: Bearer KEY`", None, "invalid_api_key"
            )
            refusal = JSONResponse(body, 401, {"www-authenticate": "Bearer"})
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _shows_key(self, scope: Scope) -> bool:
        scheme, _, shown = Headers(scope=scope).get("authorization", "").partition(" ")
        # All are compared, each in constant time, so that how long it takes tells nothing of any of them.
        given = shown.strip().encode("latin-1")
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        return scheme.lower() == "bearer" and any(matches)
