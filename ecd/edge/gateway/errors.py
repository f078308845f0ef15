"""Errors as HTTP clients see them: a status, and an object in the shape of OpenAI's.

Owns which status stands for which of our codes.
"""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from ecd.errors import BadRequest, Code, EcdError

STATUS = {
    Code.BAD_REQUEST: 400,
    Code.CONTEXT_OVERFLOW: 400,
    Code.BUSY: 429,
    Code.LIMIT: 429,
    Code.AUTH: 503,
    Code.FINGERPRINT: 503,
    Code.VERSION: 503,
    Code.DRAINING: 503,
    Code.TIMEOUT: 503,
    Code.CANCELLED: 503,
    Code.UNAVAILABLE: 503,
}
INTERNAL = 500
# 401 and 404 have no type of their own at OpenAI's: it is their `code` that tells.
TYPES = {429: "rate_limit_error"}


class ErrorBody(BaseModel):
    """What failed. `param` names the parameter that is to blame, `code` the kind of error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every response that is not a success."""

    error: ErrorBody


class Refused(BadRequest):
    """A request that is not let through, with what OpenAI's errors tell; `param` is the client's own name."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message, param=param)
        self.error_code = code
        self.status = status


def status_of(error: EcdError) -> int:
    """The HTTP status of an error."""
    return error.status if isinstance(error, Refused) else STATUS.get(error.code, INTERNAL)


def error_payload(
    error: EcdError, named: Callable[[str], str | None] = lambda argument: None
) -> dict[str, Any]:
    """The error as OpenAI's API tells it; `named`: what the request calls an argument of `run`."""
    match error:
        case Refused():
            param, code = error.param, error.error_code
        case EcdError(code=Code.CONTEXT_OVERFLOW):
            # Found here or by the cloud. OpenAI's names the prompt, whatever `max_tokens` is.
            param, code = named("prompt"), "context_length_exceeded"
        case BadRequest(param=str(argument)):
            param, code = named(argument), "bad_request"
        case _:
            param, code = None, error.code.name.lower()
    return error_object(status_of(error), str(error), param, code)


def error_object(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The same for what is no EcdError, such as an unknown path."""
    kind = TYPES.get(status, "invalid_request_error" if status < INTERNAL else "server_error")
    return ErrorResponse(error=ErrorBody(message=message, type=kind, param=param, code=code)).model_dump()
