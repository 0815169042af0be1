"""The OpenAI-compatible application over one engine."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from jinja2 import TemplateError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from distill.engine.runner import Engine
from distill.engine.types import SamplingParams
from distill.errors import EngineError
from distill.model.chat import render
from distill.serve import metrics
from distill.serve.answers import Answers
from distill.serve.loop import EngineLoop
from distill.serve.protocol import ApiError, Limits, Request, parse_chat, parse_completion
from distill.serve.streaming import Answering

_RETRY_AFTER_SECONDS = 1


def create_app(engine: Engine, *, model_name: str, api_key: str | None = None, limits: Limits = Limits()) -> FastAPI:
    """The application; it owns `engine` while it runs. With `api_key`, every route but /health asks for it."""
    assert engine.tokenizer is not None, "a server needs a tokenizer"
    service = _Service(engine, model_name, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.loop.start()
        yield
        service.loop.stop()

    app = FastAPI(title="distill", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.engine_loop = service.loop
    app.add_route("/health", service.health, methods=["GET"])
    app.add_route("/metrics", service.metrics, methods=["GET"])
    app.add_route("/v1/models", service.models, methods=["GET"])
    app.add_route("/v1/models/{name:path}", service.model, methods=["GET"])
    app.add_route("/v1/chat/completions", service.chat, methods=["POST"])
    app.add_route("/v1/completions", service.completions, methods=["POST"])
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _server_error)
    if api_key is not None:
        app.add_middleware(_KeyCheck, api_key=api_key)
    return app


class _Service:
    """The routes' common state."""

    def __init__(self, engine: Engine, model_name: str, limits: Limits) -> None:
        assert engine.tokenizer is not None
        self.engine = engine
        self.tokenizer = engine.tokenizer
        self.loop = EngineLoop(engine)
        self.model_name = model_name
        self.limits = limits
        self.created = int(time.time())
        self.requests = metrics.Requests()

    async def health(self, request: HttpRequest) -> Response:
        """200 while the engine's thread lives."""
        if self.loop.failure is not None:
            return JSONResponse({"status": "failed", "reason": str(self.loop.failure)}, status_code=503)
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: HttpRequest) -> Response:
        text = metrics.render(self.engine, self.requests, self.loop.num_accepted)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def models(self, request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: HttpRequest) -> Response:
        name = request.path_params["name"]
        if name != self.model_name:
            raise ApiError(404, f"no model '{name}'; this server has '{self.model_name}'", code="model_not_found")
        return JSONResponse(self._card())

    async def chat(self, request: HttpRequest) -> Response:
        return await self._answer(request, chat=True)

    async def completions(self, request: HttpRequest) -> Response:
        return await self._answer(request, chat=False)

    async def _answer(self, request: HttpRequest, *, chat: bool) -> Response:
        """Refuse or accept a request; what is returned waits for the engine itself."""
        self.requests.received += 1
        body = await self._body(request)
        if self.loop.num_accepted >= self.limits.max_queue:
            self.requests.rejected += 1
            raise ApiError(
                503, "too many requests are waiting", kind="server_error", retry_after_seconds=_RETRY_AFTER_SECONDS
            )
        parse = parse_chat if chat else parse_completion
        asked = parse(body, model_name=self.model_name, limits=self.limits)
        prompts = [self._chat_ids(asked)] if chat else [self._prompt_ids(p) for p in asked.prompts]
        params = [self._params(ids, asked) for ids in prompts]
        answers = Answers(self.tokenizer, model_name=self.model_name, chat=chat)
        try:
            ticket = self.loop.submit(prompts, params, n=asked.n, stream=asked.stream)
        except EngineError as error:
            raise ApiError(503, str(error), kind="server_error") from None
        return Answering(self.loop, ticket, answers, chat=chat, include_usage=asked.include_usage)

    async def _body(self, request: HttpRequest) -> Any:
        """The JSON body, never more of it than allowed."""
        limit, data = self.limits.max_body_bytes, bytearray()
        try:
            async for chunk in request.stream():
                data += chunk
                if len(data) > limit:
                    raise ApiError(413, f"the body is larger than {limit} bytes")
        except ClientDisconnect:
            raise ApiError(400, "the client went away") from None
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise ApiError(400, "the body is not JSON") from None

    def _chat_ids(self, asked: Request) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise ApiError(400, "this model has no chat template", code="no_chat_template", param="messages")
        try:
            return render(self.tokenizer, asked.messages, True)
        except (TemplateError, TypeError, ValueError) as error:
            raise ApiError(400, f"the chat template refuses these messages: {error}", param="messages") from None

    def _prompt_ids(self, prompt: str | tuple[int, ...]) -> Sequence[int]:
        """Token ids as they are; text with the tokenizer's own special tokens."""
        return prompt if isinstance(prompt, tuple) else [int(t) for t in self.tokenizer(prompt)["input_ids"]]

    def _params(self, ids: Sequence[int], asked: Request) -> SamplingParams:
        params = asked.params(self.engine.max_model_len - len(ids))
        try:
            self.engine.check(ids, params)
        except EngineError as error:
            code = "context_length_exceeded" if len(ids) >= self.engine.max_model_len else None
            raise ApiError(400, str(error), param="messages" if asked.messages else "prompt", code=code) from None
        return params

    def _card(self) -> dict[str, Any]:
        return {
            "id": self.model_name,
            "object": "model",
            "created": self.created,
            "owned_by": "distill",
            "max_model_len": self.engine.max_model_len,
        }


class _KeyCheck:
    """Asks for `Authorization: Bearer <key>` on every path but /health, comparing in constant time."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._expected = f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                error = ApiError(401, "a wrong or missing API key", code="invalid_api_key", kind="authentication_error")
                await JSONResponse(error.body, status_code=401)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _api_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {"retry-after": str(error.retry_after_seconds)} if error.retry_after_seconds is not None else None
    return JSONResponse(error.body, status_code=error.status, headers=headers)


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(
        ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").body,
        status_code=error.status_code,
        headers=error.headers,
    )


async def _server_error(request: HttpRequest, error: Exception) -> Response:
    return JSONResponse(ApiError(500, f"{type(error).__name__}: {error}", kind="server_error").body, status_code=500)
