"""The one error tree, and the codes that name an error on the wire.

Every error a person may see derives from `EcdError` and says what failed, which setting or peer, and what to
do.
"""

from enum import IntEnum


class Code(IntEnum):
    """Codes of ERROR, RESET and GOAWAY frames and of the control socket; docs/PROTOCOL.md lists them."""

    NONE = 0
    PROTOCOL = 1
    VERSION = 2
    FINGERPRINT = 3
    AUTH = 4
    LIMIT = 5
    BUSY = 6
    BAD_REQUEST = 7
    UNKNOWN_PREFIX = 8
    CONTEXT_OVERFLOW = 9
    ENGINE = 10
    DRAINING = 11
    TIMEOUT = 12
    CANCELLED = 13
    INTERNAL = 14
    SLOW_READER = 15
    UNAVAILABLE = 16
    ENGINE_RESTARTED = 17


class EcdError(Exception):
    """Root of everything ecd raises on purpose; `code` is what a peer is told."""

    code = Code.INTERNAL


class ConfigError(EcdError):
    """A setting is missing, unknown or out of range."""

    code = Code.BAD_REQUEST


class BadRequest(EcdError):
    """A request asks for something that cannot be done as asked.

    `param`: the argument of `run` that is to blame, where it is one.
    """

    code = Code.BAD_REQUEST

    def __init__(self, message: str, *, param: str | None = None):
        super().__init__(message)
        self.param = param


class ContextOverflow(BadRequest):
    """Prompt and answer together do not fit the context."""

    code = Code.CONTEXT_OVERFLOW


class AuthError(EcdError):
    """A peer did not show what it takes to be let in, or shows it no longer."""

    code = Code.AUTH


class LimitExceeded(EcdError):
    """A tenant asks for more than it may have, however often it asks."""

    code = Code.LIMIT


class Overloaded(EcdError):
    """There is no room now; the same request may succeed later."""

    code = Code.BUSY


class UnknownPrefix(BadRequest):
    """An OPEN builds on a prompt prefix that the cloud does not hold."""

    code = Code.UNKNOWN_PREFIX


class ModelError(EcdError):
    """A model file could not be found, fetched, checked, built or loaded."""

    code = Code.ENGINE


class EngineError(EcdError):
    """The inference engine failed while running."""

    code = Code.ENGINE


class EngineLost(EngineError):
    """The engine failed as a whole and is being started again; what is committed can be gone on from."""

    code = Code.ENGINE_RESTARTED


class ProtocolError(EcdError):
    """The peer sent something the protocol does not allow; ends one connection."""

    code = Code.PROTOCOL


class PageError(EcdError):
    """KV pages are not those that were asked for; whoever wanted them computes them itself."""

    code = Code.BAD_REQUEST


class LinkError(EcdError):
    """A connection could not be made or was lost."""

    code = Code.UNAVAILABLE


class DaemonError(EcdError):
    """A daemon could not start, or cannot be reached over its control socket."""

    code = Code.UNAVAILABLE


class RemoteError(EcdError):
    """An error told by a peer, with the code it gave."""

    def __init__(self, code: Code, message: str):
        super().__init__(message)
        self.code = code
