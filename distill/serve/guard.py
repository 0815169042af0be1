"""What every request passes before a route: the size of its headers, and its key."""

from __future__ import annotations

from hmac import compare_digest

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from distill.serve.fields import ApiError

_OPEN_PATHS = ("/health",)


class Guard:
    """Refuses headers that are too large, and without the key (compared in constant time) every path but /health.
    Paths are compared as the router will see them, so that no spelling reaches a route without its key."""

    def __init__(self, app: ASGIApp, api_key: str | None, max_header_bytes: int) -> None:
        self._app = app
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()
        self._max_header_bytes = max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None if scope["type"] == "lifespan" else self._refusal(scope)
        if error is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await JSONResponse(error.body, status_code=error.status)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) for name, value in headers) > self._max_header_bytes:
            return ApiError(431, f"the headers are larger than {self._max_header_bytes} bytes")
        if self._expected is None or (scope["type"] == "http" and scope["path"] in _OPEN_PATHS):
            return None
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) == 1 and compare_digest(given[0], self._expected):
            return None
        return ApiError(401, "a wrong or missing API key", code="invalid_api_key", kind="authentication_error")
