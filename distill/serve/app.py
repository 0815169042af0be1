"""The OpenAI-compatible application over one engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from distill.engine.runner import Engine
from distill.serve.fields import ApiError, Limits
from distill.serve.guard import Guard
from distill.serve.openapi import document
from distill.serve.service import Service

Route = Callable[[HttpRequest], Awaitable[Response]]


def create_app(engine: Engine, *, model_name: str, api_key: str | None = None, limits: Limits = Limits()) -> FastAPI:
    """The application; it owns `engine` while it runs. With `api_key`, every route but /health asks for it."""
    assert engine.tokenizer is not None, "a server needs a tokenizer"
    service = Service(engine, model_name, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.loop.start()
        yield
        service.stop()

    async def schema(request: HttpRequest) -> Response:
        return JSONResponse(document(model_name, limits, engine.vocab_size))

    app = FastAPI(title="distill", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.engine_loop = service.loop
    routes: list[tuple[str, str, Route]] = [
        ("GET", "/health", service.health),
        ("GET", "/metrics", service.metrics),
        ("GET", "/openapi.json", schema),
        ("GET", "/v1/models", service.models),
        ("GET", "/v1/models/{name:path}", service.model),
        ("POST", "/v1/chat/completions", service.chat),
        ("POST", "/v1/completions", service.completions),
        ("POST", "/tokenize", service.tokenize),
        ("POST", "/detokenize", service.detokenize),
        ("GET", "/tokenizer_info", service.tokenizer_info),
    ]
    for method, path, route in routes:
        app.add_route(path, _counted(service, path, route), methods=[method])
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _server_error)
    app.add_middleware(Guard, api_key=api_key, max_header_bytes=limits.max_header_bytes)
    return app


def _counted(service: Service, path: str, route: Route) -> Route:
    """The route, with refusals in OpenAI's form and every answer counted."""

    async def answer(request: HttpRequest) -> Response:
        try:
            response = await route(request)
        except ApiError as error:
            response = JSONResponse(error.body, status_code=error.status, headers=error.headers)
        service.traffic.answers[(path, response.status_code)] += 1
        return response

    return answer


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(refusal.body, status_code=error.status_code, headers=error.headers)


async def _server_error(request: HttpRequest, error: Exception) -> Response:
    return JSONResponse(ApiError(500, f"{type(error).__name__}: {error}", kind="server_error").body, status_code=500)
