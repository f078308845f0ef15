"""What the cloud offers on its control socket: calls that look at what runs, and `drain`.

Owns the calls by name, as docs/PROTOCOL.md lists them; not what they tell.
"""

from collections.abc import Callable
from typing import Any

from ecd.cloud.service import CloudService
from ecd.control import Handler, Notify
from ecd.tracing import SESSION, tell_trace


class CloudCalls:
    """Handlers of the cloud's control socket; `on_drained` is called when `drain` is through."""

    def __init__(self, service: CloudService, on_drained: Callable[[], None]):
        self._service = service
        self._on_drained = on_drained

    def handlers(self) -> dict[str, Handler]:
        """By name of the call."""
        return {
            "status": self.status,
            "stats": self.stats,
            "sessions": self.sessions,
            "trace": self.trace,
            "drain": self.drain,
        }

    async def status(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """Who is connected and what is served."""
        return self._service.status()

    async def stats(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """Counters since start and what follows from them."""
        return self._service.stats()

    async def sessions(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """One map per session."""
        return {"sessions": self._service.sessions()}

    async def trace(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """An event for each that a session's state machine was told of."""
        return await tell_trace(self._service.ring, SESSION, args, emit)

    async def drain(self, args: dict[str, Any], emit: Notify) -> dict[str, Any]:
        """Answers when all sessions have ended; the daemon ends then."""
        await self._service.drain()
        self._on_drained()
        return {"drained": True}
