"""How bytes reach a teacher: one HTTP exchange, over a thin pool of our own or through the official SDK."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A whole HTTP reply; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Unreachable(Exception):
    """No HTTP reply came: no connection, or one that broke. Says why."""


class Transport(Protocol):
    """One exchange at a time for each caller; many callers at once."""

    async def request(self, method: str, path: str, body: bytes | None, content_type: str) -> HttpReply:
        """Send to base URL + path. Raises Unreachable. Any status is a reply."""

    async def close(self) -> None:
        """Close all connections."""


def has_proxy(url: str) -> bool:
    """Whether the environment sends this URL through a proxy."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in LOOPBACK:
        return False
    proxies = urllib.request.getproxies()
    return bool(proxies.get(parts.scheme) or proxies.get("all")) and not urllib.request.proxy_bypass(host)


def is_plain(url: str) -> bool:
    """Whether the thin pool can serve this URL: no proxy, no credentials or query inside it."""
    parts = urlsplit(url)
    return not (has_proxy(url) or parts.query or "@" in parts.netloc)
