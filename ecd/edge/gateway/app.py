"""The HTTP application: paths, bodies, statuses.

Owns what lies where. What requests mean is `asking`'s, how they are answered `serving`'s.
"""

import time
import uuid
from functools import partial

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ecd import __version__
from ecd.config import Http
from ecd.daemon import Model
from ecd.edge.gateway.asking import Terms, chat_choices, completion_choices, parameter_of, text_of
from ecd.edge.gateway.auth import KeyCheck
from ecd.edge.gateway.bodies import done_with, read_body
from ecd.edge.gateway.errors import INTERNAL, Refused, error_object, error_payload, status_of
from ecd.edge.gateway.head import HeadCheck, hosts_to_name
from ecd.edge.gateway.metrics import Metrics, RequestCount
from ecd.edge.gateway.openapi import document
from ecd.edge.gateway.replies import CHAT, COMPLETION, Dialect, Head
from ecd.edge.gateway.schema import (
    Asked,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from ecd.edge.gateway.serving import Answering
from ecd.edge.playground import page
from ecd.edge.run_args import AnswerSettings
from ecd.edge.service import EdgeService
from ecd.edge.told import stats_told, status_told
from ecd.errors import EcdError, LinkError
from ecd.prompt import prompt_tokens

# Whose prompts, as far as something may be wrong with them, are conversations.
CHAT_PATHS = ("/v1/chat/completions", "/tokenize")


class Gateway:
    """The routes of one edge. `model` is its draft model, whose vocabulary is the target's."""

    def __init__(
        self, service: EdgeService, model: Model, settings: AnswerSettings, http: Http, *, draft_model: str
    ):
        self._service = service
        self._model = model
        self._settings = settings
        self._http = http
        self._draft_model = draft_model
        self._metrics = Metrics.of(service)
        self._document = document(with_keys=bool(http.api_keys))
        self._page, self._page_policy = page()
        self._began = int(time.time())

    def application(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completions, methods=["POST"]),
            Route("/v1/models", self._models),
            # Names on the Hugging Face hub have a slash.
            Route("/v1/models/{model:path}", self._named_model),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._show_metrics),
            Route("/ecd/stats", self._stats),
            Route("/openapi.json", self._show_document),
            Route("/", self._show_page),
        ]
        middleware = [
            Middleware(RequestCount, metrics=self._metrics, routes=routes),
            Middleware(HeadCheck, hosts=hosts_to_name(self._http)),
        ]
        if self._http.cors_origins:
            # In front of the keys: a browser asks whether it may, without one. OpenAI's package for browsers
            # sends headers of its own.
            middleware.append(
                Middleware(
                    CORSMiddleware,
                    allow_origins=self._http.cors_origins,
                    allow_methods=["GET", "POST"],
                    allow_headers=["*"],
                )
            )
        # Starlette's own is around all middleware: what it answers is not counted, and no page may read it.
        middleware.append(Middleware(ServerErrorMiddleware, handler=_on_failure))
        if self._http.api_keys:
            middleware.append(Middleware(KeyCheck, keys=self._http.api_keys))
        return Starlette(
            routes=routes,
            middleware=middleware,
            exception_handlers={
                EcdError: _on_error,
                HTTPException: _on_http,
                ClientDisconnect: _on_disconnect,
            },
        )

    # -- answers

    async def _chat(self, http: Request) -> Answering:
        asked, size = await read_body(http, ChatRequest)
        self._check_model(asked.model)
        choices = await done_with(size, chat_choices, asked, self._terms())
        return Answering(
            self._service,
            self._model,
            self._head(CHAT),
            choices,
            prompts=1,
            stream=bool(asked.stream),
            include_usage=_wants_usage(asked),
        )

    async def _completions(self, http: Request) -> Answering:
        asked, size = await read_body(http, CompletionRequest)
        self._check_model(asked.model)
        choices = await done_with(size, completion_choices, asked, self._terms())
        return Answering(
            self._service,
            self._model,
            self._head(COMPLETION),
            choices,
            prompts=len(asked.prompts),
            stream=bool(asked.stream),
            include_usage=_wants_usage(asked),
        )

    def _terms(self) -> Terms:
        ends = self._model.eog | self._service.cloud_ends
        return Terms(self._model, self._model.n_vocab, self._settings, ends, self._service.room_behind)

    def _head(self, dialect: Dialect) -> Head:
        name = self._model_name()
        return Head(
            dialect,
            dialect.id_prefix + uuid.uuid4().hex,
            int(time.time()),
            name,
            f"ecd-{__version__}-{name}",
        )

    # -- models and tokens

    def _model_name(self) -> str:
        """The target's, empty before the first link."""
        return str(self._service.cloud_model.get("name", ""))

    def _check_model(self, asked: str | None) -> None:
        served = self._model_name()
        if asked is not None and served and asked != served:
            raise Refused(
                f"model {asked!r:.80} is not served here; {served!r} is",
                param="model",
                code="model_not_found",
                status=404,
            )

    async def _models(self, http: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._told()] if self._model_name() else []})

    async def _named_model(self, http: Request) -> JSONResponse:
        asked = http.path_params["model"]
        if not self._model_name():
            raise LinkError("the model is not known before there is a link to the cloud; ask again later")
        self._check_model(asked)
        return JSONResponse(self._told())

    def _told(self) -> dict[str, object]:
        return {
            "id": self._model_name(),
            "object": "model",
            "created": self._began,
            "owned_by": "ecd",
            "max_model_len": self._service.max_context,
        }

    async def _tokenize(self, http: Request) -> JSONResponse:
        asked, size = await read_body(http, TokenizeRequest)
        self._check_model(asked.model)
        ids = await done_with(size, self._ids, asked)
        limit = self._service.max_context
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": limit})

    def _ids(self, asked: TokenizeRequest) -> list[int]:
        if asked.prompt is not None:
            return self._model.tokenize(asked.prompt, add_bos=asked.add_special_tokens, parse_special=True)
        messages = [message.to_map() for message in asked.messages or ()]
        return list(prompt_tokens(self._model, messages, chat=True))

    async def _detokenize(self, http: Request) -> JSONResponse:
        asked, size = await read_body(http, DetokenizeRequest)
        self._check_model(asked.model)
        if any(token >= self._model.n_vocab for token in asked.tokens):
            raise Refused(
                f"tokens: an id is not in the vocabulary of {self._model.n_vocab}",
                param="tokens",
                code="invalid_value",
            )
        return JSONResponse({"prompt": await done_with(size, text_of, asked.tokens, self._model)})

    # -- about this server

    async def _health(self, http: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def _ready(self, http: Request) -> JSONResponse:
        link = self._service.uplinks.link
        if self._service.draining:
            raise LinkError("this edge is draining and takes no new prompts")
        if link is None:
            raise LinkError(
                f"no link to the cloud: {self._service.uplinks.reason or self._service.uplinks.state}"
            )
        if link.connection.peer_draining:
            raise LinkError("the cloud is draining and takes no new sessions")
        return JSONResponse({"status": "ready", "model": self._model_name()})

    async def _stats(self, http: Request) -> JSONResponse:
        told = status_told(self._service, self._draft_model)
        return JSONResponse({"status": told, "stats": stats_told(self._service)})

    async def _show_metrics(self, http: Request) -> Response:
        encode, content_type = choose_encoder(http.headers.get("accept", ""))
        return Response(encode(self._metrics.registry), headers={"content-type": content_type})

    async def _show_document(self, http: Request) -> JSONResponse:
        return JSONResponse(self._document)

    async def _show_page(self, http: Request) -> Response:
        headers = {"content-security-policy": self._page_policy, "x-content-type-options": "nosniff"}
        return Response(self._page, headers=headers, media_type="text/html")


def _wants_usage(asked: Asked) -> bool:
    return asked.stream_options is not None and bool(asked.stream_options.include_usage)


async def _on_error(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, EcdError)
    named = partial(parameter_of, chat=http.scope["path"] in CHAT_PATHS)
    return JSONResponse(error_payload(error, named), status_of(error))


async def _on_http(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        error_object(error.status_code, f"{http.method} {http.url.path}: {error.detail}"),
        error.status_code,
        error.headers,
    )


async def _on_disconnect(http: Request, error: Exception) -> Response:
    # Before its body was complete. Nobody reads this, and it is no failure of ours to be logged.
    return Response(status_code=400)


async def _on_failure(http: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again behind this, and uvicorn logs it.
    return JSONResponse(error_object(INTERNAL, "the request failed; see the daemon's log"), INTERNAL)
