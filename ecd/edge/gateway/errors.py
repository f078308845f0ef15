"""Errors as HTTP clients see them: a status, and an object in the shape of OpenAI's.

Owns which status stands for which of our codes.
"""

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
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


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
    """A request that is not let through, with what OpenAI's errors tell of it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.param = param
        self.error_code = code
        self.status = status


def status_of(error: EcdError) -> int:
    """The HTTP status of an error."""
    return error.status if isinstance(error, Refused) else STATUS.get(error.code, INTERNAL)


def error_payload(error: EcdError) -> dict[str, Any]:
    """The error as OpenAI's API tells it."""
    match error:
        case Refused():
            param, code = error.param, error.error_code
        case EcdError(code=Code.CONTEXT_OVERFLOW):
            param, code = None, "context_length_exceeded"
        case _:
            param, code = None, error.code.name.lower()
    return error_object(status_of(error), str(error), param, code)


def error_object(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """The same for what is no EcdError, such as an unknown path."""
    kind = TYPES.get(status, "invalid_request_error" if status < INTERNAL else "server_error")
    return ErrorResponse(error=ErrorBody(message=message, type=kind, param=param, code=code)).model_dump()
