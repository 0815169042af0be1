"""The JSON body of a request: never more of it than allowed, never later, and nothing that cannot be said in UTF-8."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from starlette.requests import ClientDisconnect, Request

from distill.serve.fields import ApiError, Limits

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_body(request: Request, limits: Limits) -> bytes:
    """The bytes, at most `max_body_bytes` of them within `body_seconds`."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise ApiError(413, f"the body is larger than {limits.max_body_bytes} bytes")
    data = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > limits.max_body_bytes:
                    raise ApiError(413, f"the body is larger than {limits.max_body_bytes} bytes")
    except ClientDisconnect:
        raise ApiError(400, "the client went away") from None
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {limits.body_seconds:g} s") from None
    return bytes(data)


def parse_json(data: bytes) -> Any:
    """The value; half a surrogate pair is refused, as neither tokenizer nor answer can hold it."""
    try:
        value = json.loads(data)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON in UTF-8") from None
    return value
