"""`/openapi.json`: what the API takes and gives, made from the models that check it."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ecd import __version__
from ecd.edge.gateway.auth import OPEN_PATHS
from ecd.edge.gateway.errors import ErrorResponse
from ecd.edge.gateway.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

_REF = "#/components/schemas/{model}"
_MODELS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    CompletionRequest,
    TokenizeRequest,
    DetokenizeRequest,
    ErrorResponse,
)
_SAID = {
    400: "The request cannot be done as asked.",
    401: "No valid API key was shown.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body is too long.",
    415: "The body is not JSON, or it is compressed.",
    421: "The Host header names another server.",
    429: "The cloud has no room now.",
    431: "The headers are too long.",
    500: "The engine failed.",
    503: "There is no link to a cloud that takes prompts, or the answer was cancelled.",
}
_OF_ALL = (400, 421, 431)
_OF_ANSWERS = (404, 408, 413, 415, 429, 500, 503)
_OF_TOKENS = (404, 408, 413, 415)


def document(*, with_keys: bool) -> dict[str, Any]:
    """The document, in OpenAPI 3.1."""
    _, schemas = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_REF)
    # The document has no way to tell what one event holds.
    events: dict[str, Any] = {"text/event-stream": {"schema": {}}}
    answer = {
        "application/json": {"schema": _object("id", "object", "created", "model", "choices", "usage", "ecd")}
    }
    described: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "ecd edge", "version": __version__},
        "components": {"schemas": schemas["$defs"]},
        "paths": {
            "/v1/chat/completions": {
                "post": _operation("Answers a conversation", answer | events, _OF_ANSWERS, ChatRequest)
            },
            "/v1/completions": {
                "post": _operation("Continues a text", answer | events, _OF_ANSWERS, CompletionRequest)
            },
            "/v1/models": {"get": _operation("Lists the model", _json("object", "data"))},
            "/v1/models/{model}": {
                "get": _operation("Describes the model", _json("id", "object"), (404, 503))
                | {
                    "parameters": [
                        {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
                    ]
                }
            },
            "/tokenize": {
                "post": _operation("Text to token ids", _json("tokens", "count"), _OF_TOKENS, TokenizeRequest)
            },
            "/detokenize": {
                "post": _operation("Token ids to text", _json("prompt"), _OF_TOKENS, DetokenizeRequest)
            },
            "/health": {"get": _operation("Whether the server runs", _json("status"))},
            "/ready": {"get": _operation("Whether prompts can be answered", _json("status"), (503,))},
            "/ecd/stats": {"get": _operation("The edge's status and counters", _json("status", "stats"))},
            "/metrics": {
                "get": _operation("Metrics for Prometheus", {"text/plain": {"schema": {"type": "string"}}})
            },
        },
    }
    if with_keys:
        described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
        for path, methods in described["paths"].items():
            for operation in methods.values():
                if path in OPEN_PATHS:
                    operation["security"] = []
                else:
                    operation["responses"]["401"] = _failure(401)
    return described


def _operation(
    said: str,
    content: dict[str, Any],
    failures: tuple[int, ...] = (),
    body: type[BaseModel] | None = None,
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": said,
        "responses": {"200": {"description": "Done.", "content": content}}
        | {str(status): _failure(status) for status in (*failures, *_OF_ALL)},
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _body_of(body)}
    return operation


def _failure(status: int) -> dict[str, Any]:
    return {"description": _SAID[status], "content": _body_of(ErrorResponse)}


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}}


def _json(*required: str) -> dict[str, Any]:
    return {"application/json": {"schema": _object(*required)}}


def _object(*required: str) -> dict[str, Any]:
    return {"type": "object", "required": list(required)}
